"""How far a file's layers are from float32's, in a measuring process: both files run the same samples and show what their layers give."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from math import isfinite, log10
from pathlib import Path
from typing import Any

import numpy as np

from compress.artifact import Artifact
from compress.errors import Refused
from evaluators.artifact_facts import from_facts
from evaluators.dataset import stored_samples
from evaluators.runtimes import RUNTIMES
from evaluators.timing import pin

SAMPLES = 8
LIMIT_DB = 150.0  # float32 says no more: what is equal, and at the other end what is no number, lies there


class Noise:
    """Signal and noise summed over samples, in dB."""

    def __init__(self):
        self.signal = self.noise = 0.0

    def add(self, float32: np.ndarray, own: np.ndarray) -> None:
        before = np.asarray(float32, np.float64).ravel()
        self.signal += float(np.square(before).sum())
        self.noise += float(np.square(np.asarray(own, np.float64).ravel() - before).sum())

    @property
    def db(self) -> float:
        if not isfinite(self.noise) or not self.signal:
            return -LIMIT_DB if self.noise else LIMIT_DB
        return max(-LIMIT_DB, min(LIMIT_DB, 10 * log10(self.signal / self.noise))) if self.noise else LIMIT_DB


def measure(own: Mapping[str, Any], float32: Mapping[str, Any], folder: str, runtime: str, threads: int, data: str, layers: Sequence[str]) -> dict[str, Any]:
    """JSON: `outputs`, [layer, dB] of every layer whose output both files show, in the order of computation, and `unseen`, the names of the others.

    Refused for a runtime that cannot show what its files compute on the way.
    """
    show = getattr(RUNTIMES.load(runtime), "show_layers", None)
    if show is None:
        raise Refused(f"{runtime} does not show what its files compute on the way to their outputs")
    pin(threads)
    files = [from_facts(facts, Path(folder)) for facts in (float32, own)]
    (names, before), (known, now) = (show(file, weights(files, layers), threads) for file in files)
    sums: dict[str, Noise] = {}
    for sample in samples(files[1], data):
        expected, got = dict(zip(names, before(sample), strict=True)), dict(zip(known, now(sample), strict=True))
        for name in names:
            if name in layers and name in got and is_shown(expected[name], got[name]):
                sums.setdefault(name, Noise()).add(expected[name], got[name])
    return {"outputs": [[name, found.db] for name, found in sums.items()], "unseen": [name for name in layers if name not in sums]}


def is_shown(expected: np.ndarray, got: np.ndarray) -> bool:
    """Whether a file's tensor can be another's: as many elements, and not codes that nothing decodes."""
    return got.size == expected.size and (got.dtype.kind == "f" or expected.dtype.kind != "f")


def weights(files: Iterable[Artifact], layers: Sequence[str]) -> dict[str, str]:
    """Names that either file has for a weight, and the weight's own: layers, and whatever else has two dimensions and so marks where they end."""
    return {t.file_name: t.name for file in files for t in file.tensors if t.file_name and (t.name in layers or sum(n > 1 for n in t.shape) > 1)}


def samples(artifact: Artifact, data: str) -> list[dict[str, np.ndarray]]:
    return list(islice(stored_samples(Path(data), artifact.contents.inputs), SAMPLES))


def output_db(own: Mapping[str, Any], place: str, float32: Mapping[str, Any], folder: str, runtime: str, threads: int, data: str) -> float:
    """How far the outputs of the file in `place` are from those of float32's file in `folder`, which run once in a process."""
    if float32["sha256"] not in HELD:
        HELD[float32["sha256"]] = outputs(from_facts(float32, Path(folder)), runtime, threads, data)
    return difference(outputs(from_facts(own, Path(place)), runtime, threads, data), HELD[float32["sha256"]])


HELD: dict[str, list[list[np.ndarray]]] = {}


def outputs(artifact: Artifact, runtime: str, threads: int, data: str) -> list[list[np.ndarray]]:
    """Of every sample."""
    pin(threads)
    session = RUNTIMES.load(runtime).load(artifact, threads)
    return [[np.array(array) for array in session.run(sample)] for sample in samples(artifact, data)]


def difference(own: Sequence[Sequence[np.ndarray]], float32: Sequence[Sequence[np.ndarray]]) -> float:
    """dB over all samples and outputs."""
    total = Noise()
    for rows in zip(float32, own, strict=True):
        for pair in zip(*rows, strict=True):
            total.add(*pair)
    return total.db
