"""Times of single operators, and what this machine reaches at best: what runs in a measuring process to explain an arm."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from compress.artifact import Artifact
from compress.errors import Refused
from evaluators.artifact_facts import from_facts
from evaluators.dataset import stored_samples
from evaluators.runtimes import RUNTIMES
from evaluators.timing import pin

INPUTS = 8  # test samples that a profile cycles through
COPIED = 1 << 26  # bytes, more than the caches of a core
SIDE = 1024  # rows and columns of the matrices that are multiplied
REPEATS = 24


@dataclass(frozen=True)
class OperatorTime:
    """One operator of a loaded file, in the order in which they run."""

    name: str  # what the runtime calls this one
    kind: str  # its kernel in the runtime's words: "QLinearConv", "Convolution (NHWC, QC8) IGEMM", "aten::addmm"
    seconds: float  # of one run, without operators that are listed themselves
    library: str = ""  # whose kernel it is, where a runtime has kernels of several


@dataclass(frozen=True)
class Timed:
    """An event of a profile; it lies inside another one where that calls it."""

    operator: OperatorTime
    start: float  # in the unit of `duration`
    duration: float


def own_times(events: Iterable[Timed], unit: float) -> list[OperatorTime]:
    """Each event's operator with its time less that of the events inside it; `unit` is a second's part of `start` and `duration`."""
    found, inside, open_events = [], [], []
    for event in sorted(events, key=lambda event: (event.start, -event.duration)):
        while open_events and event.start >= open_events[-1][1]:
            open_events.pop()
        if open_events:
            inside[open_events[-1][0]] += event.duration
        open_events.append((len(found), event.start + event.duration))
        found.append(event)
        inside.append(0.0)
    return [replace(event.operator, seconds=max(0.0, event.duration - less) * unit) for event, less in zip(found, inside, strict=True)]


def medians(runs: Sequence[Sequence[OperatorTime]]) -> list[OperatorTime]:
    """The operators of most runs, each with the median of its times."""
    order = Counter(tuple(operator.kind for operator in run) for run in runs).most_common(1)[0][0]
    same = [run for run in runs if tuple(operator.kind for operator in run) == order]
    return [replace(parts[0], seconds=median(part.seconds for part in parts)) for parts in zip(*same, strict=True)]


def opened(facts: dict[str, Any], folder: str, data: str) -> tuple[Artifact, Iterator[dict[str, np.ndarray]]]:
    artifact = from_facts(facts, Path(folder))
    return artifact, stored_samples(Path(data), artifact.contents.inputs)


def profile(facts: dict[str, Any], folder: str, runtime: str, threads: int, data: str, runs: int) -> list[dict[str, Any]]:
    """In a measuring process: the operators of an artifact as JSON. Refused for a runtime that has no profiler here."""
    measure = getattr(RUNTIMES.load(runtime), "operator_times", None)
    if measure is None:
        raise Refused(f"{runtime} has no profiler here")
    artifact, samples = opened(facts, folder, data)
    pin(threads)
    return to_json(measure(artifact, list(islice(samples, INPUTS)), runs, threads))


def multiply_adds(facts: dict[str, Any], folder: str, runtime: str, threads: int, data: str) -> int:
    """In a measuring process: multiply-adds of one run of a float32 artifact. Refused where the runtime does not tell what they follow from."""
    artifact, samples = opened(facts, folder, data)
    count = getattr(RUNTIMES.load(runtime), "multiply_adds", None)
    if count is None:
        raise Refused(f"{runtime} does not tell the shapes of its operators")
    return count(artifact, next(samples))


def machine(threads: int) -> dict[str, float]:
    """In a measuring process: bytes a second that copying moves, read and written, and multiply-adds a second of NumPy's float32 product (`peak`)."""
    pin(threads)
    left, right = np.random.default_rng(0).standard_normal((2, SIDE, SIDE), np.float32)
    out = np.empty_like(left)
    source, target = np.ones((threads, COPIED // threads), np.uint8), np.zeros((threads, COPIED // threads), np.uint8)
    with ThreadPoolExecutor(threads) as pool:
        copied = best(lambda: list(pool.map(np.copyto, target, source)))
    return {"copied_bytes": 2 * source.nbytes / copied, "peak": SIDE**3 / best(lambda: np.matmul(left, right, out=out))}


def best(work: Callable[[], Any]) -> float:
    """Seconds of the fastest of some calls, after one that is not timed."""
    times = []
    for _ in range(REPEATS + 1):
        begin = perf_counter()
        work()
        times.append(perf_counter() - begin)
    return min(times[1:])


def to_json(operators: Sequence[OperatorTime]) -> list[dict[str, Any]]:
    return [asdict(operator) for operator in operators]


def from_json(rows: Sequence[Mapping[str, Any]]) -> list[OperatorTime]:
    return [OperatorTime(**row) for row in rows]
