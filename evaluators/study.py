"""A study: models x recipes x runtimes x targets, as a document."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, PrivateAttr, Tag, field_validator, model_validator

from compress.errors import InputError, RecipeError
from compress.recipe import Recipe, one_word, parse_document
from compress.references import reference_to
from compress.registry import suggest
from evaluators.artifacts import EXPORT
from evaluators.naming import fits
from evaluators.progress import Progress
from evaluators.results import Results
from evaluators.runtimes import RUNTIMES
from evaluators.sources import check
from evaluators.targets import Target, open_target
from evaluators.tasks import TASKS

ENOUGH = 44  # timed runs that carry a 90th percentile (LoadGen's rule)
FEWEST = 5  # blocks or processes that carry an interval


class Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LatencySettings(Document):
    """How long to measure. An arm gets `blocks` blocks of at least `runs` runs and `seconds` each, after a warm-up until steady.

    All of it anew in each of `processes` processes, as two processes with the same model differ: by 1% and more with what was loaded before them.
    """

    processes: int = Field(6, ge=1)
    blocks: int = Field(5, ge=FEWEST)
    runs: int = Field(2, ge=1)
    seconds: float = Field(0.05, ge=0)
    warmup_seconds: float = Field(0.5, ge=0)

    @model_validator(mode="after")
    def enough(self) -> "LatencySettings":
        if 1 < self.processes < FEWEST:
            raise ValueError(f"processes = {self.processes}: an interval over processes needs {FEWEST} of them; or 1, for an interval over blocks")
        timed = self.processes * self.blocks * self.runs
        if timed < ENOUGH:
            raise ValueError(f"processes x blocks x runs = {timed}: at least {ENOUGH} timed runs are needed for a 90th percentile")
        return self


class Model(Document):
    """Where a model comes from, with its own data where the study's does not fit it."""

    open: str
    calibration: str | None = None
    test: str | None = None
    training: str | None = None
    learning_rate: float | None = Field(None, gt=0)


def from_name(value: object) -> object:
    return {"open": value} if isinstance(value, str) else value


class UserScore(Document):
    """A function (predictions, labels) that returns a number, or whether it is right, for each sample, and what that is called."""

    score: str
    title: str = ""  # else the function's name
    unit: str = ""  # "%": scores are shares from 0 to 1
    higher_is_better: bool = True


def from_task(value: object) -> object:
    """`file.py:function` and a Python function as the document of a user's score."""
    if callable(value):
        return {"score": reference_to(value)}
    return {"score": value} if isinstance(value, str) and ":" in value else value


OneTask = Annotated[
    Annotated[str, Tag("name")] | Annotated[UserScore, Tag("function")],
    Discriminator(lambda value: "name" if isinstance(value, str) else "function"),
]


class Study(Document):
    """What to compare. Names of files are relative to the study's own file.

    models       `file.py:function`, `package.module:function` or a model file, by name
    calibration  a function returning inputs or (inputs, labels), or an .npy or .npz file
    test         a function returning (inputs, labels); called with limit=samples
    training     a function returning (inputs, labels), for recipes that train; with a learning_rate that suits the model
    recipes      built-in names or .yaml files
    runtimes     names of runtimes, or of exporters, whose files then run where they belong
    targets      names in targets.yaml beside the study, or as `cpu` and `arm64:cortex-a76`
    task         what accuracy is: a task's name, or a function of the user's own, `file.py:function`, see UserScore
    least_sqnr   dB that an arm's whole interval must reach to count as without loss, for the task `outputs`
    explain      whether arms that are slower, larger or worse than they should be say why: see docs/explain.md
    """

    name: str
    models: dict[str, Annotated[Model, BeforeValidator(from_name, json_schema_input_type=Model | str)]] = Field(min_length=1)
    calibration: str | None = None
    test: str | None = None
    training: str | None = None
    learning_rate: float = Field(1e-3, gt=0)
    samples: int = Field(600, ge=1)
    recipes: tuple[str, ...] = Field(min_length=1)
    runtimes: tuple[str, ...] = Field(min_length=1)
    targets: tuple[str, ...] = Field(("cpu",), min_length=1)
    threads: int = Field(1, ge=1)
    task: Annotated[OneTask, BeforeValidator(from_task)] = "classification"
    least_sqnr: float | None = None
    latency: LatencySettings = LatencySettings()
    limit_seconds: float = Field(900, gt=0)  # for one piece of an arm; what takes longer is ended and has failed
    explain: bool = True  # times the operators of arms that are slower, larger or worse than they should be, some seconds each
    _folder: Path = PrivateAttr(default_factory=Path.cwd)

    @field_validator("task")
    @classmethod
    def known(cls, value: str | UserScore) -> str | UserScore:
        return TASKS.name(value) if isinstance(value, str) else value

    @field_validator("models")
    @classmethod
    def plain(cls, value: dict[str, Model]) -> dict[str, Model]:
        for name in value:
            one_word(name, "a model's name")
        return value

    @field_validator("recipes", "runtimes", "targets")
    @classmethod
    def different(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        twice = {name for name in value if value.count(name) > 1}
        if twice:
            raise ValueError(f"{', '.join(sorted(twice))}: named twice")
        return value

    @model_validator(mode="after")
    def tested(self) -> "Study":
        untested = [name for name, model in self.models.items() if not (model.test or self.test)]
        if untested:
            raise ValueError(f"test: the model(s) {', '.join(untested)} have no test data")
        return self

    @model_validator(mode="after")
    def alike(self) -> "Study":
        if self.least_sqnr is not None and self.task != "outputs":
            raise ValueError("least_sqnr: only the task `outputs` is judged by its SQNR; arms of the others have lost where a test shows it")
        return self

    @classmethod
    def load(cls, study: "str | os.PathLike | Study", targets: Sequence[str] = ()) -> "Study":
        """A study from a YAML file, or itself, with every name in it looked up, and other targets where some are given.

        RecipeError, InputError, UnknownName and Unreachable say what is wrong.
        """
        if not isinstance(study, Study):
            path = Path(study)
            try:
                text = path.read_text(encoding="utf-8")
            except OSError as error:
                raise RecipeError(f"study {str(study)!r} cannot be read: {error.strerror}") from error
            study = parse_document(cls, text, str(study))
            study._folder = path.parent
        if targets:
            study = study.model_copy(update={"targets": tuple(dict.fromkeys(targets))})
        study.look_up()
        return study

    @property
    def folder(self) -> Path:
        return self._folder

    def in_folder(self, folder: Path) -> "Study":
        """The same study, its references relative to another folder."""
        moved = self.model_copy()
        moved._folder = folder
        return moved

    def look_up(self) -> None:
        """Checks every reference, recipe, runtime and target without running any of their code."""
        for reference in self.references():
            check(reference, self.folder)
        recipes = self.loaded_recipes()
        trains = [recipe.name for recipe in recipes if recipe.trains]
        untaught = [name for name, model in self.models.items() if not (model.training or self.training)]
        if trains and untaught:
            raise RecipeError(f"training: the recipe(s) {', '.join(trains)} train, and the model(s) {', '.join(untaught)} have no training data")
        names = [recipe.name for recipe in recipes]
        if len(set(names)) < len(names):
            raise RecipeError(f"recipes: two of them have the same name: {', '.join(names)}")
        for target in self.opened_targets().values():
            target.check()

    def references(self) -> list[str]:
        """Everything that its models are made, calibrated, trained and tested with."""
        found = [name for model in self.models for name in (self.models[model].open, *self.data(model), self.lessons(model)[0])]
        found += [self.task.score] if isinstance(self.task, UserScore) else []
        return list(dict.fromkeys(filter(None, found)))

    @property
    def task_document(self) -> str | dict[str, Any]:
        """What `open_task` takes."""
        return self.task if isinstance(self.task, str) else self.task.model_dump()

    def loaded_recipes(self) -> list[Recipe]:
        return [Recipe.load(self.folder / name if name.endswith((".yaml", ".yml")) else name) for name in self.recipes]

    def opened_targets(self) -> dict[str, Target]:
        return {name: open_target(name, self.folder) for name in self.targets}

    def data(self, model: str) -> tuple[str | None, str]:
        """References to a model's calibration and test data."""
        own = self.models[model]
        return own.calibration or self.calibration, own.test or self.test

    def lessons(self, model: str) -> tuple[str | None, float]:
        """Reference to a model's training data, and the learning rate that suits it."""
        own = self.models[model]
        return own.training or self.training, own.learning_rate or self.learning_rate


@dataclass(frozen=True)
class Label:
    """A column of the study: what its user called it, and what that means."""

    name: str
    runtime: str | None  # None: the runtime of the exporter
    exporter: str | None  # None: the exporter of the runtime


def labels(study: Study, export: str) -> dict[str, Label]:
    """Runtimes and exporters that a study names, in their registered spelling. UnknownName for anything else."""
    exporters = import_module(export.partition(":")[0]).EXPORTERS if any(name not in RUNTIMES for name in study.runtimes) else {}
    found = {}
    for name in study.runtimes:
        if name in RUNTIMES:
            label = Label(RUNTIMES.name(name), RUNTIMES.name(name), None)
        elif name in exporters:
            label = Label(exporters.name(name), None, exporters.name(name))
        else:
            known = [*RUNTIMES, *exporters]
            raise RecipeError(f"runtimes: no runtime or exporter {name!r}; {suggest(name, known)}known: {', '.join(dict.fromkeys(known))}")
        if label.name in found:
            raise RecipeError(f"runtimes: {name!r} is {label.name!r}, which is there already")
        found[label.name] = label
    return found


@dataclass(frozen=True)
class Planned:
    """An arm before any work."""

    model: str
    recipe: Recipe
    label: Label
    target: str

    @property
    def id(self) -> str:
        return f"{self.model}/{self.recipe.name}/{self.label.name}/{self.target}"


def matrix(study: Study, export: str = EXPORT) -> Iterator[Planned]:
    """Every arm of a study: models x runtimes x targets x recipes."""
    recipes, columns = study.loaded_recipes(), labels(study, export)
    for model in study.models:
        for label in columns.values():
            for target in study.targets:
                for recipe in recipes:
                    yield Planned(model, recipe, label, target)


def chosen(arms: Sequence[Planned], patterns: Sequence[str]) -> list[Planned]:
    """The arms whose names fit a pattern, and the float32 arms that they are compared with; all without patterns. InputError where nothing fits."""
    wanted = [arm for arm in arms if not patterns or any(fits(arm.id, pattern) for pattern in patterns)]
    if not wanted:
        raise InputError(f"no arm is named {' or '.join(patterns)}; there are: {', '.join(arm.id for arm in arms)}")
    groups = {(arm.model, arm.label, arm.target) for arm in wanted}
    return [arm for arm in arms if arm in wanted or (not arm.recipe.steps and (arm.model, arm.label, arm.target) in groups)]


def compare(
    study: str | os.PathLike | Study,
    out: str | os.PathLike,
    progress: Progress | None = None,
    export: str = EXPORT,
    targets: Sequence[str] = (),
    arms: Sequence[str] = (),
) -> Results:
    """Runs every arm of a study that `out`/study.sqlite does not hold yet, and returns what is known then.

    progress  hears of every stage; None shows it on a terminal and writes a line for each event elsewhere
    export    `module:function` that writes artifacts, and whose module has the registry EXPORTERS
    targets   instead of the study's own
    arms      patterns of arms' names: only these run, with the float32 arms that they are compared with; none means all

    RecipeError, InputError and UnknownName for a study that cannot mean anything. Whatever goes wrong in an arm is a row of the results.
    """
    from evaluators.scheduling import run_study

    return run_study(Study.load(study, targets), Path(out), command(study, out, targets, arms), progress, export, arms)


def command(study: str | os.PathLike | Study, out: str | os.PathLike, targets: Sequence[str], arms: Sequence[str]) -> str:
    """What to type to get this again, without absolute paths."""
    source, folder = ("STUDY.yaml" if isinstance(study, Study) else Path(study)), Path(out)
    names = [path.name if isinstance(path, Path) and path.is_absolute() else path for path in (source, folder)]
    given = (f" --targets {','.join(targets)}" if targets else "") + "".join(f" --arm {quote(arm)}" for arm in arms)
    return f"compresskit compare {names[0]}{given} --out {names[1]}"
