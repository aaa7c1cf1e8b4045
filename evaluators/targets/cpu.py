"""This machine's CPU."""

from collections.abc import Iterator
from typing import Any, ClassVar

from compress.errors import MissingExtra, Refused
from evaluators.environment import cores, cpu_flags, cpu_model, environment
from evaluators.runtimes import RUNTIMES
from evaluators.targets import Listed, Settings
from evaluators.worker import Worker


class Cpu(Settings):
    ARGUMENT: ClassVar = ""
    title: ClassVar = "this CPU"
    untimed: ClassVar = ""
    metrics: ClassVar = ("accuracy", "memory")

    def identity(self) -> Any:
        return cpu_model(), cpu_flags(), cores()

    def sample_count(self, wanted: int) -> int:
        return wanted

    def start(self, threads: int) -> Worker:
        return Worker(threads)

    def side_by_side(self, threads: int) -> int:
        return max(1, cores() // threads)

    def environment(self) -> dict[str, str]:
        return environment()

    def runtimes(self) -> tuple[str, ...]:
        return tuple(filter(installed, RUNTIMES))

    def refuse(self, runtime: str, threads: int) -> None:
        if threads > cores():
            raise Refused(f"{threads} threads were asked for; this process may use {cores()} core(s)")

    def check(self) -> None:
        """It is always there."""


TARGET = Cpu


def listed() -> Iterator[Listed]:
    yield Listed("cpu", True, f"{cpu_model()}, {cores()} core(s)", Cpu().runtimes())


def installed(runtime: str) -> bool:
    try:
        RUNTIMES.load(runtime).versions()
    except MissingExtra:
        return False
    return True
