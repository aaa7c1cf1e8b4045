"""ExecuTorch's program runner (runner.cpp): how it is called, and what it prints and writes."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files

import numpy as np

from compress.errors import CompressError
from compress.network import Inputs, InputSpec

SOURCE = files("evaluators.android") / "runner.cpp"
NAMES = ("baseline_kb", "load_ns", "first_ns", "warmup_runs", "peak_kb", "times_ns")


@dataclass(frozen=True)
class Report:
    """One run of the runner; memory is the largest resident set, before a program was loaded and at the end."""

    baseline_bytes: int
    peak_bytes: int
    load_ns: int
    first_ns: int
    warmup_runs: int
    times_ns: np.ndarray  # int64 [runs]


def arguments(program: str, inputs: str, samples: int, outputs: str, threads: int, warmup_seconds: float, runs: int) -> list[str]:
    """Runs every sample once and writes its outputs, warms up, then times `runs` runs, the samples in turn. `outputs` is "-" for none."""
    return [program, inputs, str(samples), outputs, str(threads), str(round(1000 * warmup_seconds)), str(runs)]


def parse(output: str) -> Report:
    said = dict(re.findall(r"^(\w+) ?([\d ]*?)\s*$", output, re.MULTILINE))
    absent = [name for name in NAMES if name not in said]
    if absent:
        raise CompressError(f"executorch_runner printed no {', '.join(absent)}: it is not built from evaluators/android/runner.cpp, or of another version")
    memory = {"baseline_bytes": int(said["baseline_kb"]) * 1024, "peak_bytes": int(said["peak_kb"]) * 1024}
    times = np.array(said["times_ns"].split(), np.int64)
    return Report(**memory, load_ns=int(said["load_ns"]), first_ns=int(said["first_ns"]), warmup_runs=int(said["warmup_runs"]), times_ns=times)


def packed(samples: Iterable[Inputs], specs: Sequence[InputSpec]) -> bytes:
    """Samples one after another, each the raw bytes of its inputs in the program's order."""
    return b"".join(np.ascontiguousarray(sample[spec.name], spec.dtype).tobytes() for sample in samples for spec in specs)


def unpacked(data: bytes, samples: int, specs: Sequence[InputSpec]) -> list[list[np.ndarray]]:
    """Outputs sample by sample, in the dtypes and shapes of the program."""
    sizes = [int(np.prod(spec.shape)) * np.dtype(spec.dtype).itemsize for spec in specs]
    if len(data) != samples * sum(sizes):
        raise CompressError(f"executorch_runner wrote {len(data):,} bytes of outputs where {samples * sum(sizes):,} were expected")
    rows, at = [], 0
    for _ in range(samples):
        row = []
        for spec, size in zip(specs, sizes, strict=True):
            row.append(np.frombuffer(data, spec.dtype, size // np.dtype(spec.dtype).itemsize, at).reshape(spec.shape))
            at += size
        rows.append(row)
    return rows
