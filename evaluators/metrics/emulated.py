"""One process on an emulated machine: outputs on the test samples, peak memory, and the instructions of an inference by class."""

from collections.abc import Callable
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from evaluators.artifact_facts import from_facts
from evaluators.dataset import stored_samples
from evaluators.emulation.guest import CLASSES, counted, peak_bytes
from evaluators.metrics.accuracy import kept
from evaluators.metrics.outputs import stacked
from evaluators.results import Instructions
from evaluators.runtimes import RUNTIMES, Runtime

STEADY = 1e-4  # relative difference of two runs, both of the first sample, that ends the counting
MOST_RUNS = 5
KERNELS = {"mmla": ("SMMLA", 32), "dot": ("SDOT", 16), "int_mla": ("SMLAL", 8), "fmla": ("FMLA", 4)}
"""What multiplies and adds: the name of a class, and multiply-adds of one instruction of 128 bits (8-bit integers, 32-bit floats)."""


def measure(facts: dict[str, Any], folder: str, runtime: str, threads: int, data: str, samples: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What the task keeps, `output_*` as the metric outputs has them, and `counts` int64 [runs, classes]."""
    module = guest_module(runtime)
    known, artifact = module.versions(), from_facts(facts, Path(folder))
    baseline = peak_bytes()
    session = module.load(artifact, threads)
    inputs = list(islice(stored_samples(Path(data), artifact.contents.inputs), samples))
    rows = [session.run(sample) for sample in inputs]
    counts = steady(lambda: session.run(inputs[0]))
    arrays = kept(rows, Path(data)) | {"counts": counts} | stacked(rows)
    return {"versions": known, "baseline_bytes": baseline, "peak_bytes": peak_bytes()}, arrays


def steady(run: Callable[[], Any]) -> np.ndarray:
    """int64 [2, classes]: instructions of the first two runs in a row whose totals agree. Early runs of small models still find memory and symbols."""
    counts = [counted(run), counted(run)]
    while abs(counts[-1][0] - counts[-2][0]) > STEADY * counts[-1][0] and len(counts) < MOST_RUNS:
        counts.append(counted(run))
    return np.array(counts[-2:], np.int64)


def guest_module(runtime: str) -> Runtime:
    """What loads a runtime's files there: ExecuTorch's Python needs torch, whose aarch64 wheel is made for CUDA."""
    return import_module("evaluators.runtimes.executorch_native") if runtime == "executorch" else RUNTIMES.load(runtime)


def derive(counts: np.ndarray, float32: np.ndarray | None) -> Instructions:
    """The row of one arm; `float32` holds the counts of the float32 arm of the same model, runtime and target."""
    middle = dict(zip(CLASSES, np.rint(counts.mean(axis=0)).astype(int).tolist(), strict=True))
    totals = counts[:, 0]
    fewer = float(float32[:, 0].mean()) / middle["total"] if float32 is not None else None
    spread = float((totals.max() - totals.min()) / totals.min())
    return Instructions(**middle, runs=len(counts), spread=spread, fewer=fewer, kernels=kernels(middle))


def kernels(counts: dict[str, int]) -> str:
    """ "SDOT", "SDOT and FMLA": what does at least a tenth of the multiply-adds."""
    work = {name: counts[key] * width for key, (name, width) in KERNELS.items()}
    total = sum(work.values())
    return " and ".join(name for name, done in sorted(work.items(), key=lambda item: -item[1]) if total and done >= 0.1 * total)
