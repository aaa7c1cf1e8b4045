"""This machine's CPU."""

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar

from pydantic import Field

from compress.errors import MissingExtra, Refused, Unreachable
from evaluators.environment import cores, cpu_flags, cpu_model, environment
from evaluators.runtimes import RUNTIMES
from evaluators.targets import Listed, Settings
from evaluators.worker import Worker, here


class Cpu(Settings):
    """This machine, with threads of its own number and on cores by their numbers where these are given."""

    ARGUMENT: ClassVar = ""
    title: ClassVar = "this CPU"
    untimed: ClassVar = ""
    metrics: ClassVar = ("accuracy", "memory")
    threads: int | None = Field(None, ge=1)
    cores: tuple[int, ...] = ()

    def identity(self) -> Any:
        return cpu_model(), cpu_flags(), cores(), self.cores

    def sample_count(self, wanted: int) -> int:
        return wanted

    def thread_count(self, wanted: int) -> int:
        return self.threads or wanted

    def start(self, threads: int) -> Worker:
        return Worker(threads, replace(here(), cores=self.cores))

    def side_by_side(self, threads: int) -> int:
        return max(1, self.usable() // threads)

    def usable(self) -> int:
        return min(len(self.cores) or cores(), cores())

    def environment(self) -> dict[str, str]:
        return environment()

    def runtimes(self) -> tuple[str, ...]:
        return tuple(filter(installed, RUNTIMES))

    def refuse(self, runtime: str, threads: int) -> None:
        if threads > self.usable():
            raise Refused(f"{threads} threads were asked for; this process may use {self.usable()} core(s)")

    def check(self) -> None:
        absent = set(self.cores) - os.sched_getaffinity(0)
        if absent:
            raise Unreachable(f"cores {', '.join(map(str, sorted(absent)))} are not this process's: it may use {', '.join(map(str, os.sched_getaffinity(0)))}")


TARGET = Cpu


def listed() -> Iterator[Listed]:
    yield Listed("cpu", True, f"{cpu_model()}, {cores()} core(s)", Cpu().runtimes())


def installed(runtime: str) -> bool:
    try:
        RUNTIMES.load(runtime).versions()
    except MissingExtra:
        return False
    return True
