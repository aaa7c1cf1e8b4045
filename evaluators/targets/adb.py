"""An Android phone, or another device that adb reaches: benchmark_model runs LiteRT's files there, a runner ExecuTorch's, and their clock counts."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from compress.artifact import file_hash
from compress.errors import MissingExtra, Refused, Unreachable
from evaluators.android.benchmark_model import WHERE
from evaluators.android.device import FOLDER, READY, Device, connect, remedy, server_runs, states
from evaluators.android.facts import Facts, chosen
from evaluators.android.phone import PHONE, facts
from evaluators.targets import Listed, Settings
from evaluators.worker import Worker, here

PROGRAMS = {"litert": "benchmark_model", "executorch": "executorch_runner"}  # by runtime: the setting that names what runs its files


class Adb(Settings):
    """One device with one delegate; a document for each delegate puts them side by side.

    serial             as `adb devices` shows it; "" is the only device there is
    delegate           of benchmark_model: the CPU, or a part of the phone that must show that it took the model
    cores              the fastest clusters that hold all threads, the slowest, all, or numbers
    benchmark_model    path of the user's own build, for LiteRT
    executorch_runner  path of evaluators/android/runner.cpp built for the device, for ExecuTorch
    samples            test samples that are run there, where a program takes inputs
    cool_seconds       rest before every run
    patience_seconds   longest wait for a throttled phone to recover
    limit_seconds      for one run, after which the device ends it
    """

    ARGUMENT: ClassVar = "serial"
    untimed: ClassVar = ""
    timing: ClassVar = "evaluators.metrics.android"
    serial: str = ""
    delegate: Literal["cpu", "gpu", "nnapi"] = "cpu"
    cores: Literal["big", "little", "all"] | tuple[int, ...] = "big"
    benchmark_model: Path | None = None
    executorch_runner: Path | None = None
    samples: int = Field(200, ge=1)
    cool_seconds: float = Field(2, ge=0)
    patience_seconds: float = Field(60, ge=0)
    limit_seconds: float = Field(300, gt=0)

    @property
    def title(self) -> str:
        return f"{self.serial or 'the device'} over adb{'' if self.delegate == 'cpu' else f', {self.delegate.upper()} delegate'}"

    @cached_property
    def device(self) -> Device:
        return connect(self.serial)

    @cached_property
    def known(self) -> Facts:
        return facts(self.device)

    def programs(self) -> dict[str, Path]:
        """By runtime: what runs its files."""
        return {runtime: path.expanduser() for runtime, name in PROGRAMS.items() if (path := getattr(self, name))}

    def identity(self) -> Any:
        return self.device.serial, self.known.lasting(), self.delegate, self.cores, self.samples, {name: file_hash(p) for name, p in self.programs().items()}

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("outputs", "android") if self.executorch_runner else ("android",)  # benchmark_model gives no outputs to compare

    def sample_count(self, wanted: int) -> int:
        return min(wanted, self.samples)

    def thread_count(self, wanted: int) -> int:
        return wanted

    def latency(self, settings: Any) -> Any:
        """On a phone every block is a process of its own: one for each process of the study, as long as all blocks of that."""
        if settings.processes == 1:
            return settings
        blocks = settings.blocks
        one = {"processes": 1, "blocks": settings.processes, "runs": settings.runs * blocks, "seconds": settings.seconds * blocks}
        return settings.model_copy(update=one)

    def start(self, threads: int) -> Worker:
        own = self.model_copy(update={"serial": self.device.serial}).model_dump_json()
        launch = here()
        return Worker(threads, replace(launch, environment={**launch.environment, PHONE: own}))

    def side_by_side(self, threads: int) -> int:
        return 1

    def environment(self) -> dict[str, str]:
        now = facts(self.device)
        used = chosen(self.cores, 1, now.cores)
        where = f"one thread runs on core(s) {', '.join(map(str, used))}" if used else "no cores are chosen"
        return {f"Device {now.name}": f"{now.words()}; {where}; {', '.join(f'{PROGRAMS[name]} {file_hash(p)[:12]}' for name, p in self.programs().items())}"}

    def runtimes(self) -> tuple[str, ...]:
        return tuple(self.programs())

    def refuse(self, runtime: str, threads: int) -> None:
        if runtime not in PROGRAMS:
            raise Refused(f"{runtime} has no program that runs over adb; {' and '.join(PROGRAMS)} have")
        if runtime not in self.programs():
            source = {"litert": WHERE, "executorch": "evaluators/android/runner.cpp, built against ExecuTorch with the NDK"}[runtime]
            raise Refused(f"{runtime} needs a program on the device: give its path as `{PROGRAMS[runtime]}` in targets.yaml; it is {source}")
        if runtime == "executorch" and self.delegate != "cpu":
            raise Refused(f"the delegate {self.delegate} is benchmark_model's; ExecuTorch's files here are made for XNNPACK on the CPU")
        if self.known.cores and threads > len(self.known.cores):
            raise Refused(f"{threads} threads were asked for; {self.known.name} has {len(self.known.cores)} cores")

    def check(self) -> None:
        for path in self.programs().values():
            if not path.is_file():
                raise Unreachable(f"target {self.title}: there is no file {path}")
        there = {core.number for core in self.known.cores}
        absent = set(self.cores) - there if isinstance(self.cores, tuple) else set()
        if absent:
            raise Unreachable(f"{self.device.serial} has no core {', '.join(map(str, sorted(absent)))}")

    def clean_up(self) -> None:
        self.device.remove(FOLDER)


TARGET = Adb


def listed() -> Iterator[Listed]:
    """Every device that adb sees. Asking starts no server, which is what naming a device in a study does."""
    try:
        found = states() if server_runs() else None
    except (MissingExtra, Unreachable) as error:
        yield Listed("adb:SERIAL", False, str(error), ())
        return
    if not found:
        idle = "adb's server does not run: `adb start-server` starts it, and so does a study that names a phone"
        state = idle if found is None else "adb sees no device: allow USB debugging on one and plug it in"
        yield Listed("adb:SERIAL", False, state, ())
    for serial, state in (found or {}).items():
        yield Listed(f"adb:{serial}", state == READY, words(serial) if state == READY else remedy(serial, state), ())


def words(serial: str) -> str:
    try:
        return f"{facts(connect(serial)).words()}; LiteRT and ExecuTorch run by programs that targets.yaml names"
    except Unreachable as error:
        return str(error)
