"""Files on a phone: memory, delegates and outputs, and times by the clock of the program that runs them there. All of it runs here and drives the phone.

`load`, `warm_up` and `block` stand in for those of evaluators/metrics/latency.py, so arms are timed in the same interleaved blocks with the same A/A arm.
"""

import os
import tempfile
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import numpy as np

from compress.artifact import Artifact
from evaluators.android import benchmark_model, executorch_runner
from evaluators.android.device import FOLDER
from evaluators.android.phone import PHONE, Phone
from evaluators.artifact_facts import from_facts
from evaluators.dataset import stored_samples
from evaluators.metrics import Done, memory
from evaluators.metrics.accuracy import kept
from evaluators.metrics.latency import INPUTS
from evaluators.metrics.outputs import agreement, stacked
from evaluators.targets.adb import Adb

RUNS = 50  # of benchmark_model where its numbers are shown as it gives them
ESTIMATE_RUNS = 10  # that say how long a block has to be
BLOCK_WARMUP_SECONDS = 0.1  # each block is a process of its own on the phone
PROTOCOL = {
    "Phone over adb": "This machine drives the phone; the clock is that of the program over there. Blocks, their order, the A/A arm and all statistics are "
    "those of every latency, but each block is a process of its own on the phone, one for each that the study asks for, on cores that the environment names, "
    "after a rest and a warm-up. "
    "benchmark_model gives one time for a block, its median of that many runs on inputs that it makes, so there are no percentiles of its arms; the runner "
    "of ExecuTorch gives every time, on the same inputs as here. What ran while the phone was throttled (a thermal status above none, or a core whose limit "
    "is below its maximum, before or after a run) has failed and is not shown.",
}

Measured = tuple[dict[str, Any], dict[str, np.ndarray]]


class Program(Protocol):
    """An artifact with the program on the phone that runs it."""

    phone: Phone

    def measure(self) -> Measured: ...
    def warm_up(self, seconds: float) -> dict[str, Any]: ...
    def block(self, runs: int) -> np.ndarray: ...


class LiteRT:
    """benchmark_model makes its own inputs and keeps its own statistics: a block is one time, the median or, in builds without one, the mean."""

    def __init__(self, phone: Phone, artifact: Artifact, threads: int, data: Path, samples: int):
        self.phone, self.threads, self.delegate = phone, threads, phone.target.delegate
        self.program, self.graph = (phone.device.push(path) for path in (phone.target.programs()["litert"], artifact.path))

    def run(self, seconds: float, runs: int) -> benchmark_model.Report:
        limit = self.phone.target.limit_seconds
        words = benchmark_model.arguments(self.graph, self.threads, self.delegate, seconds, runs, limit)
        return benchmark_model.parse(self.phone.run([self.program, *words]), self.delegate)

    def measure(self) -> Measured:
        found = self.run(BLOCK_WARMUP_SECONDS, RUNS)
        value = "median" if found.median_us is not None else "mean, as this build of benchmark_model prints no median"
        notes = [f"on the phone, one run of benchmark_model: {found.words()}; of each of its timed blocks the latency has the {value}"]
        notes += [f"on the phone, {found.coverage()}"] if found.replaced else ["on the phone, benchmark_model does not say which nodes a delegate took"]
        notes += ["benchmark_model takes no inputs and gives no outputs, so neither outputs nor accuracy were measured on the phone"]
        if found.memory_bytes is None:
            return {"notes": [*notes, "this build of benchmark_model does not print memory"]}, {}
        notes += ["memory is how far benchmark_model grew from its start, by its own account"]
        return {"notes": notes, "peak_bytes": found.memory_bytes, "baseline_bytes": 0}, {}

    def warm_up(self, seconds: float) -> dict[str, Any]:
        found = self.run(seconds, ESTIMATE_RUNS)
        times = {"load_ms": found.init_us / 1e3, "first_ms": found.first_us / 1e3, "estimate_ns": round(1e3 * found.middle_us)}
        return times | {"warmup_runs": found.warmup_runs, "steady": True}  # every block warms up again, in the tool

    def block(self, runs: int) -> np.ndarray:
        return np.array([round(1e3 * self.run(BLOCK_WARMUP_SECONDS, runs).middle_us)], np.int64)


class ExecuTorch:
    """The runner reads real samples and writes all outputs; it prints every single time."""

    def __init__(self, phone: Phone, artifact: Artifact, threads: int, data: Path, samples: int):
        self.phone, self.artifact, self.threads, self.data = phone, artifact, threads, data
        inputs = list(islice(stored_samples(data, artifact.contents.inputs), samples))
        self.samples = len(inputs)
        self.program, self.graph = (phone.device.push(path) for path in (phone.target.programs()["executorch"], artifact.path))
        with tempfile.TemporaryDirectory(prefix="compresskit-") as folder:
            packed = Path(folder, "inputs")
            packed.write_bytes(executorch_runner.packed(inputs, artifact.contents.inputs))
            self.inputs = phone.device.push(packed)

    def run(self, seconds: float, runs: int, outputs: str = "-") -> executorch_runner.Report:
        words = executorch_runner.arguments(self.graph, self.inputs, self.samples, outputs, self.threads, seconds, runs)
        return executorch_runner.parse(self.phone.run([self.program, *words]))

    def measure(self) -> Measured:
        place = f"{FOLDER}/{uuid4().hex}"
        try:
            found = self.run(0, 1, place)
            rows = executorch_runner.unpacked(self.phone.device.read(place), self.samples, self.artifact.contents.outputs)
        finally:
            self.phone.device.shell(f"rm -f {place}")
        return {"notes": [], "peak_bytes": found.peak_bytes, "baseline_bytes": found.baseline_bytes}, kept(rows, self.data) | stacked(rows)

    def warm_up(self, seconds: float) -> dict[str, Any]:
        found = self.run(seconds, ESTIMATE_RUNS)
        times = {"load_ms": found.load_ns / 1e6, "first_ms": found.first_ns / 1e6, "estimate_ns": int(np.median(found.times_ns))}
        return times | {"warmup_runs": found.warmup_runs, "steady": True}  # every block warms up again, in the runner

    def block(self, runs: int) -> np.ndarray:
        return self.run(BLOCK_WARMUP_SECONDS, runs).times_ns


PROGRAMS = {"litert": LiteRT, "executorch": ExecuTorch}


def rows(done: Done, before: Done) -> dict[str, Any]:
    found = done("android")
    told = {"memory": memory.derive(found.facts, found.facts)} if "peak_bytes" in found.facts else {}
    return told | agreement(found, done("outputs"))


@dataclass
class Loaded:
    """What a measuring process holds between calls."""

    program: Program | None = None


HELD = Loaded()


def opened(facts: dict[str, Any], folder: str, runtime: str, threads: int, data: str, samples: int) -> Program:
    phone = Phone(Adb.model_validate_json(os.environ[PHONE]), threads)
    return PROGRAMS[runtime](phone, from_facts(facts, Path(folder)), threads, Path(data), samples)


def measure(facts: dict[str, Any], folder: str, runtime: str, threads: int, data: str, samples: int) -> Measured:
    """`notes`, and memory where the program tells it; what the task keeps and `output_*` as the metric outputs has them where it gives outputs."""
    return opened(facts, folder, runtime, threads, data, samples).measure()


def load(facts: dict[str, Any], folder: str, runtime: str, threads: int, data: str) -> dict[str, Any]:
    HELD.program = opened(facts, folder, runtime, threads, data, INPUTS)
    return {"cores": list(HELD.program.phone.cores)}


def warm_up(seconds: float) -> dict[str, Any]:
    return HELD.program.warm_up(seconds)


def block(runs: int) -> np.ndarray:
    """int64 nanoseconds: of every run, or one for all of them where the program tells no more."""
    return HELD.program.block(runs)


def energy() -> dict[str, Any]:
    """Nothing: no program here reads a phone's energy."""
    return {}
