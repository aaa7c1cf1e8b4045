"""Outputs of a file sample by sample, all of them: what another target's outputs are compared with, element by element."""

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from evaluators.dataset import stored_samples
from evaluators.metrics.session import load
from evaluators.results import Agreement


def measure(facts: dict[str, Any], folder: str, runtime: str, threads: int, data: str, samples: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """`output_0`, `output_1`, ...: [samples, ...] in the dtypes of the file, one sample a run."""
    artifact, session = load(facts, folder, runtime, threads)
    return {}, stacked([session.run(sample) for sample in islice(stored_samples(Path(data), artifact.contents.inputs), samples)])


def stacked(rows: list[list[np.ndarray]]) -> dict[str, np.ndarray]:
    return {f"output_{index}": np.stack(parts) for index, parts in enumerate(zip(*rows, strict=True))}


def agreement(away: Any, home: Any) -> dict[str, Agreement]:
    """How far the outputs of a piece measured elsewhere are from this machine's; {} where either has none."""
    return {"agreement": derive(away.arrays, home.arrays)} if home and "output_0" in away.arrays else {}


def derive(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> Agreement:
    """How far outputs are from those of this machine; an element that is NaN in both agrees."""
    pairs = [(found[name], wanted[name]) for name in wanted]
    equal = all(a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in pairs)
    errors = [np.abs(a.astype(np.float64) - b.astype(np.float64))[~(np.isnan(a) & np.isnan(b))] for a, b in pairs]
    largest = max((float(e.max()) for e in errors if e.size), default=0.0)
    scale = max((float(np.nanmax(np.abs(b.astype(np.float64)))) for _, b in pairs if b.size), default=0.0)
    return Agreement(len(pairs[0][0]), sum(b.size for _, b in pairs), largest, scale, equal)
