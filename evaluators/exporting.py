"""Exports: one process opens a model once and writes recipe after recipe with one exporter."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from compress import __version__
from compress.recipe import Recipe
from evaluators.environment import versions
from evaluators.store import Piece, identity
from evaluators.study import Label, Planned, Study
from evaluators.worker import Hear

ARTIFACTS = "artifacts"


@dataclass(frozen=True)
class Column:
    """A label of the study with what its modules say of themselves; `piece` is a failure where they cannot be loaded."""

    label: Label
    runtime: str
    exporter: str
    suffix: str
    piece: Piece


@dataclass(frozen=True)
class Ready:
    """An arm whose artifact is there."""

    arm: Planned
    column: Column
    export: Piece
    data: Piece


class Lane:
    """The process that exports one model with one exporter; a new one goes on where it died."""

    def __init__(self, run: Any):
        self.run, self.stack, self.process = run, ExitStack(), None

    def call(self, function: str, *arguments: Any, hear: Hear) -> Any:
        if self.process is None or not self.process.alive:
            self.stack.close()
            self.process = self.stack.enter_context(self.run.worker())
        return self.process.call(function, *arguments, limit=self.run.study.limit_seconds, hear=hear)

    def __enter__(self) -> "Lane":
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()


def export_lane(run: Any, recipes: Mapping[str, list[tuple[Planned, Column]]], data: Future, hand_on: Callable[[Ready], None]) -> None:
    """Exports the recipes of one model and exporter, and hands every arm on as soon as its artifact is there.

    `recipes` holds the arms of each recipe: several runtimes may load the same artifact.
    """
    with Lane(run) as lane:
        for arms in recipes.values():
            piece = exported(run, lane, arms)
            for arm, column in arms:
                run.close(arm, "export", piece)
                if piece.status == "done":
                    run.progress.stage(arm.id, "exported")
                    hand_on(Ready(arm, column, piece, data.result()))


def exported(run: Any, lane: Lane, arms: list[tuple[Planned, Column]]) -> Piece:
    arm, column = arms[0]
    folder, (calibration, _) = run.study.folder, run.study.data(arm.model)
    reference = run.study.models[arm.model].open
    training = run.study.lessons(arm.model) if arm.recipe.trains else (None, 0.0)
    name = f"{arm.model}.{arm.recipe.name}.{column.exporter}{column.suffix}"
    key = export_key(run.study, run.contents, arm.model, arm.recipe, column.exporter, name, run.export)
    piece = run.store.settled(key)
    if piece and (piece.status != "done" or is_there(run, name, piece)):
        return piece
    for one, _ in arms:
        run.progress.stage(one.id, "exporting")
    run.begin_work()
    run.store.keep_facts(**{f"artifact {name}": ""})
    call = reference, calibration, training, str(folder), arm.recipe.to_yaml(), column.exporter, str(run.store.folder / ARTIFACTS), name, run.export

    def hear(text: str) -> None:
        for one, _ in arms:
            run.progress.stage(one.id, "training", text)

    outcome = lane.call("evaluators.artifacts:export_recipe", *call, hear=hear)
    run.store.keep_facts(**{f"artifact {name}": key})
    return run.keep("export", key, f"{arm.model}/{arm.recipe.name}/{column.exporter}", outcome, lambda value: (value, {}))


def export_key(study: Study, contents: Mapping[str, Any], model: str, recipe: Recipe, exporter: str, name: str, export: str) -> str:
    """What determines a file; `contents` has the fingerprints of the study's references."""
    calibration, training = study.data(model)[0], study.lessons(model) if recipe.trains else (None, 0.0)
    made_of = contents[study.models[model].open], contents.get(calibration, []), *((contents[training[0]], training[1]) if training[0] else ())
    return identity("export", made_of, name, recipe.id, exporter, export, versions(), __version__)


def is_there(run: Any, name: str, piece: Piece) -> bool:
    """Whether the file in the folder is the one that this piece wrote: another export under the same name may have replaced it."""
    path = run.store.folder / ARTIFACTS / name
    return path.is_file() and run.store.fact(f"artifact {name}") == piece.key and path.stat().st_size == piece.facts["artifact"]["ledger"]["file_bytes"]
