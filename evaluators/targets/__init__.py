"""Where measuring processes run. A target is named by its kind, as `kind:argument`, or by an entry of targets.yaml beside the study."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from pydantic import BaseModel, ConfigDict, RootModel, ValidationError

from compress.errors import MissingExtra, RecipeError, Unreachable
from compress.recipe import field_errors, parse_document
from compress.registry import Entry, Registry, suggest
from evaluators.worker import Worker

TARGETS = Registry(
    "target",
    {
        "cpu": Entry("evaluators.targets.cpu", about="this machine's CPU"),
        "cuda": Entry("evaluators.targets.cuda", about="an NVIDIA GPU of this machine, by its number: cuda:0"),
        "arm64": Entry("evaluators.targets.arm64", about="an emulated arm64 core: outputs, instructions and memory, no milliseconds"),
        "adb": Entry("evaluators.targets.adb", "adb", "an Android phone: latency, memory, outputs where its programs give them"),
        "ssh": Entry("evaluators.targets.ssh", about="a board over ssh, as a Raspberry Pi"),
    },
)
"""Kinds of targets. A module has `TARGET`, a document that is a `Target`; `listed()`, the targets of its kind that can be named here; and, where
there is something to prepare, `set_up(tell)`, which says by `tell` what it does."""

FILE = "targets.yaml"


class Settings(BaseModel):
    """A target's document. `ARGUMENT` is the field that the argument of `kind:argument` fills, "" where the kind takes none."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    timing: ClassVar = "evaluators.metrics.latency"

    def latency(self, settings: Any) -> Any:
        """How arms are timed there, where the study says `settings`."""
        return settings

    def clean_up(self) -> None:
        """Nothing is left on most targets."""


class Target(Protocol):
    """What runs there is named `module:function`, so only `start` knows where that is."""

    ARGUMENT: str
    timing: str  # the module whose `load`, `warm_up`, `block` and `energy` measure an arm there

    @property
    def title(self) -> str:
        """What a report calls it."""
        ...

    @property
    def untimed(self) -> str:
        """Why no latency is measured there, "" where it is."""
        ...

    def identity(self) -> Any:
        """JSON of everything about it that decides what is measured there."""
        ...

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names in METRICS: what is measured there, arm by arm, in this order."""
        ...

    def sample_count(self, wanted: int) -> int:
        """How many of the study's test samples are run there."""
        ...

    def thread_count(self, wanted: int) -> int:
        """How many threads a runtime gets there, where the study says `wanted`."""
        ...

    def latency(self, settings: Any) -> Any:
        """How arms are timed there, where the study says `settings`."""
        ...

    def start(self, threads: int) -> Worker:
        """A fresh measuring process."""
        ...

    def side_by_side(self, threads: int) -> int:
        """How many measuring processes can work at once without taking each other's cores."""
        ...

    def environment(self) -> dict[str, str]:
        """What explains its results, in words."""
        ...

    def runtimes(self) -> tuple[str, ...]:
        """Runtimes that it could run."""
        ...

    def refuse(self, runtime: str, threads: int) -> None:
        """Refused, with the reason, where this target cannot run a runtime with so many threads."""
        ...

    def check(self) -> None:
        """Unreachable, with what to do, where nothing can run there now."""
        ...

    def clean_up(self) -> None:
        """Takes away what a study left there, at its end; CompressError where it cannot."""
        ...


@dataclass(frozen=True)
class Listed:
    """A target that can be named on this machine: whether it can be reached, what it says of itself, and the runtimes that it could run."""

    name: str
    reachable: bool
    state: str
    runtimes: tuple[str, ...]


class Targets(RootModel[dict[str, dict[str, Any]]]):
    """targets.yaml: names to a kind and its settings."""


def open_target(name: str, folder: Path = Path(".")) -> Target:
    """The target of a name, looked up in `folder`/targets.yaml first. UnknownName or RecipeError for what cannot be one."""
    entries = in_file(folder / FILE)
    if name in entries:
        settings = dict(entries[name])
        return made(str(settings.pop("kind", "")), settings, f"{FILE}: {name}")
    kind, colon, argument = name.partition(":")
    if kind not in TARGETS and entries:
        raise RecipeError(f"no target {name!r}: {suggest(name, [*entries, *TARGETS])}known: {', '.join([*entries, *TARGETS])}")
    field = TARGETS.load(kind).TARGET.ARGUMENT
    if colon and not field:
        raise RecipeError(f"target {name!r}: {kind} takes no argument")
    return made(kind, {field: argument} if colon else {}, f"target {name!r}")


def in_file(path: Path) -> dict[str, dict[str, Any]]:
    return parse_document(Targets, path.read_text(encoding="utf-8"), FILE).root if path.is_file() else {}


def made(kind: str, settings: dict[str, Any], source: str) -> Target:
    try:
        return TARGETS.load(kind).TARGET(**settings)
    except ValidationError as error:
        raise RecipeError(f"{source} is not a valid {kind} target:\n" + "\n".join(field_errors(error))) from error


def listed(folder: Path = Path(".")) -> Iterator[Listed]:
    """Every target that can be named on this machine, and those of `folder`/targets.yaml."""
    for kind in TARGETS:
        yield from TARGETS.load(kind).listed()
    for name in in_file(folder / FILE):
        yield own(name, open_target(name, folder))


def own(name: str, target: Target) -> Listed:
    try:
        target.check()
    except (MissingExtra, Unreachable) as error:
        return Listed(name, False, str(error), ())
    return Listed(name, True, target.title, target.runtimes())


def set_up(kind: str, tell: Callable[[str], None]) -> None:
    """Prepares what a kind of target needs. Unreachable says what this machine lacks for it."""
    prepare = getattr(TARGETS.load(kind), "set_up", None)
    if prepare is None:
        raise RecipeError(f"target {kind!r} needs no setting up")
    prepare(tell)
