"""What explains an arm: its operators' times, its layers' errors, each layer alone. Each is measured once and kept as a piece of the study."""

import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.errors import CompressError
from evaluators.alone import Source
from evaluators.artifacts import EXPORT, TRAINED
from evaluators.causes import INSTRUCTIONS
from evaluators.derive import EVIDENCE
from evaluators.environment import cpu_flags, cpu_model
from evaluators.exporting import ARTIFACTS, export_key
from evaluators.profiling import Unmeasured, call, machine, multiply_adds, profiles
from evaluators.results import Arm
from evaluators.sources import fingerprint
from evaluators.store import Piece, Store, identity
from evaluators.study import Study
from evaluators.worker import Worker

HOME = "cpu"
ALONE_SECONDS = 60.0
PLAIN = {"torch-compiled": "torch"}  # the runtime that computes the same without compiling every file
FLAGS = {flag for _, flags in INSTRUCTIONS.values() for flag in flags}

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Subject:
    """An arm that has a result, float32 of the same group, and where both lie."""

    store: Store
    arm: Arm
    baseline: Arm
    tell: Tell = lambda text: None

    def piece(self, arm: Arm, kind: str) -> Piece:
        return self.store.piece(self.store.links(arm.id)[kind])

    def artifact(self, arm: Arm) -> dict[str, Any]:
        return self.piece(arm, "export").facts["artifact"]

    @property
    def limit(self) -> float:
        return self.store.fact("settings")["limit_seconds"]

    @property
    def threads(self) -> int:
        return self.store.arms()[self.arm.id]["threads"]

    @property
    def artifacts(self) -> str:
        return str(self.store.folder / ARTIFACTS)

    @property
    def data(self) -> str:
        return str(self.store.folder / "data" / self.store.links(self.arm.id)["data"])

    @property
    def layers(self) -> list[str]:
        facts = self.piece(self.arm, "export").facts
        return facts.get("layers") or list(facts["planned"])

    def key(self, kind: str) -> str:
        files = [self.artifact(arm)["sha256"] for arm in (self.baseline, self.arm)]
        versions = self.piece(self.arm, "runtime").facts["versions"]
        return identity(kind, files, self.arm.runtime, versions, self.store.links(self.arm.id)["data"], self.threads, cpu_model())

    def settled(self, kind: str) -> Piece | None:
        return self.store.settled(self.key(kind))

    def kept(self, kind: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The facts of a piece that is there, or that is measured and kept now; the arm is linked to it. What is refused is kept too, and stays so."""
        piece = self.settled(kind)
        if piece is None:
            piece = self.measured(kind, work)
            self.store.keep(piece)
        self.store.link(self.arm.id, kind, piece.key)
        if piece.status != "done":
            raise Unmeasured(piece.cause)
        return dict(piece.facts)

    def measured(self, kind: str, work: Callable[[], dict[str, Any]]) -> Piece:
        begun = time.perf_counter()
        try:
            return Piece(self.key(kind), kind, self.arm.id, "done", facts=work(), seconds=time.perf_counter() - begun)
        except Unmeasured as error:
            if not error.final:
                raise
            return Piece(self.key(kind), kind, self.arm.id, "refused", str(error))


def linked(subject: Subject) -> None:
    """Links the arm to what an earlier call measured: `compare` starts with no links."""
    for kind in EVIDENCE:
        if piece := subject.settled(kind):
            subject.store.link(subject.arm.id, kind, piece.key)


# time by operator


def operators(subject: Subject) -> dict[str, Any]:
    """JSON of both arms' operators, this machine's rates, and multiply-adds of a run. Unmeasured says why there are none."""
    if subject.arm.target != HOME:
        raise Unmeasured(f"operators are timed on target {HOME}, and this arm ran on {subject.arm.target}")
    measured = subject.store.fact("environment", {}).get("CPU")
    if measured != cpu_model():
        raise Unmeasured(f"the study was measured on another CPU: {measured}")
    return subject.kept("operators", lambda: timed(subject))


def timed(subject: Subject) -> dict[str, Any]:
    sides, threads = {"float32": subject.baseline, "own": subject.arm}, subject.threads
    given = {side: (subject.artifact(arm), subject.artifacts, arm.runtime, threads, subject.data) for side, arm in sides.items()}
    found = profiles(given, {side: arm.latency.median_ms.value for side, arm in sides.items()}, threads, subject.limit, subject.tell)
    subject.tell("what this machine reaches at best")
    rates = once(subject.store, identity("machine", cpu_model(), threads), "machine", lambda: machine(threads, subject.limit))
    counted = identity("multiply-adds", given["float32"][0]["sha256"], subject.arm.runtime)
    count = once(subject.store, counted, "multiply-adds", lambda: multiply_adds(given["float32"], threads, subject.limit))
    return found | {"machine": rates, "multiply_adds": count, "flags": sorted(FLAGS.intersection(cpu_flags())), "architecture": platform.machine()}


def once(store: Store, key: str, kind: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The facts of a piece that several arms share."""
    piece = store.settled(key)
    if piece is None:
        store.keep(piece := Piece(key, kind, "", "done", facts=work()))
    return dict(piece.facts)


# errors by layer


def layers(subject: Subject) -> dict[str, Any]:
    """JSON: see evaluators.layers.measure. Unmeasured where the runtime shows no layers."""
    if not subject.layers:
        raise Unmeasured("its plan compresses no layer")
    return subject.kept("layers", lambda: shown(subject))


def shown(subject: Subject) -> dict[str, Any]:
    subject.tell("outputs of every layer, beside float32's")
    files = subject.artifact(subject.arm), subject.artifact(subject.baseline)
    with Worker(subject.threads) as worker:
        given = *files, subject.artifacts, subject.arm.runtime, subject.threads, subject.data, subject.layers
        return call(worker, "evaluators.layers:measure", *given, limit=subject.limit)


def alone(subject: Subject, seconds: float = ALONE_SECONDS) -> dict[str, Any]:
    """JSON: `way`, `outputs` (dB of the model's outputs by the layer that alone is compressed), `failed` (why, by layer) and `left`, layers that no time was
    left for. A call goes on where the last one ended; `seconds` run from when the first layer is done, for which the model is opened and converted, and 0
    measures nothing. Unmeasured where the study's model is not to be opened as it was.
    """
    piece = subject.settled("alone")
    known = dict(piece.facts) if piece else {"way": "", "outputs": {}, "failed": {}}
    if piece:
        subject.store.link(subject.arm.id, "alone", piece.key)
    todo = left(subject, known)
    if todo and seconds > 0:
        source = source_of(subject)
        with Worker(subject.threads) as exporting, Worker(subject.threads) as running, tempfile.TemporaryDirectory() as folder:
            subject.tell("opening the model, to compress one layer at a time")
            known["way"], end = call(exporting, "evaluators.alone:way", source, subject.arm.exporter, EXPORT, limit=subject.limit), None
            for index, layer in enumerate(todo):
                if end is not None and time.monotonic() > end:
                    break
                subject.tell(f"{layer} alone, {index + 1} of {len(todo)}")
                try:
                    known["outputs"][layer] = one_alone(subject, source, known["way"], layer, exporting, running, folder)
                except Unmeasured as error:
                    known["failed"][layer] = str(error)
                subject.store.keep(Piece(subject.key("alone"), "alone", subject.arm.id, "done", facts=known))
                subject.store.link(subject.arm.id, "alone", subject.key("alone"))
                end = end or time.monotonic() + seconds
    return known | {"left": left(subject, known)}


def left(subject: Subject, known: dict[str, Any]) -> list[str]:
    """The layers that were not measured alone yet, those with the least exact weights first."""
    errors = subject.piece(subject.arm, "export").facts.get("errors", {})
    todo = [name for name in subject.layers if name not in known["outputs"] and name not in known["failed"]]
    return sorted(todo, key=lambda name: errors.get(name, float("inf")))


def one_alone(subject: Subject, source: Source, way: str, layer: str, exporting: Worker, running: Worker, folder: str) -> float:
    if way == "network":
        return call(exporting, "evaluators.alone:output_db", source, layer, subject.data, limit=subject.limit)
    name = Path(subject.arm.artifact).name
    facts = call(exporting, "evaluators.alone:write", source, layer, subject.arm.exporter, EXPORT, folder, name, limit=subject.limit)
    runtime = PLAIN.get(subject.arm.runtime, subject.arm.runtime)
    given = facts, folder, subject.artifact(subject.baseline), subject.artifacts, runtime, subject.threads, subject.data
    return call(running, "evaluators.layers:output_db", *given, limit=subject.limit)


def source_of(subject: Subject) -> Source:
    """What the arm was exported from. Unmeasured where that is not there as it was."""
    store, arm = subject.store, subject.arm
    if store.fact("folder") is None:
        raise Unmeasured("the study does not say where its models lie: run `compresskit compare` once more")
    study = Study.model_validate(store.fact("settings")).in_folder((store.folder / store.fact("folder")).resolve())
    try:
        recipe = next(recipe for recipe in study.loaded_recipes() if recipe.name == arm.recipe)
        contents = {reference: fingerprint(reference, study.folder) for reference in study.references()}
    except CompressError as error:
        raise Unmeasured(str(error)) from error
    if export_key(study, contents, arm.model, recipe, arm.exporter, Path(arm.artifact).name, EXPORT) != subject.piece(arm, "export").key:
        raise Unmeasured("the model, its data or a package is not as it was when the file was written: run `compresskit compare` again")
    calibration, training = study.data(arm.model)[0], study.lessons(arm.model) if recipe.trains else (None, 0.0)
    return Source(study.models[arm.model].open, calibration, training, str(study.folder), recipe.to_yaml(), str(store.folder / TRAINED))
