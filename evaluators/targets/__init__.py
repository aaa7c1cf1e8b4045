"""Where measuring processes run."""

from typing import Protocol

from compress.registry import Entry, Registry
from evaluators.worker import Worker

TARGETS = Registry("target", {"cpu": Entry("evaluators.targets.cpu", about="this machine's CPU")})


class Target(Protocol):
    """A module with these names. What runs there is named `module:function`, so only `start` knows where that is."""

    def start(threads: int) -> Worker:
        """A fresh measuring process."""
        ...

    def side_by_side(threads: int) -> int:
        """How many measuring processes can work at once without taking each other's cores."""
        ...

    def environment() -> dict[str, str]:
        """What explains its times, in words."""
        ...

    def refuse(runtime: str, threads: int) -> None:
        """Refused, with the reason, where this target cannot run a runtime with so many threads."""
        ...
