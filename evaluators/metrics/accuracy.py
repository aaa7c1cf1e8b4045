"""What arms reach at the study's task: every arm gets the same samples in the same order, and what the task scores of its outputs is kept."""

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from compress.errors import InputError
from evaluators import dataset
from evaluators.metrics.session import load
from evaluators.results import Estimate, Metric, Score
from evaluators.tasks import Kept, Scored, Task, open_task

LARGEST_BYTES = 256_000_000  # kept of one arm: study.sqlite holds it as one value


def measure(facts: dict[str, Any], folder: str, runtime: str, threads: int, data: str, samples: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What the task keeps, [samples, ...], one sample a run."""
    artifact, session = load(facts, folder, runtime, threads)
    rows = (session.run(sample) for sample in islice(dataset.stored_samples(Path(data), artifact.contents.inputs), samples))
    return {}, kept(rows, Path(data))


def kept(rows: Iterable[list[np.ndarray]], data: Path) -> dict[str, np.ndarray]:
    """What the task of the samples in `data` keeps of outputs, sample by sample. InputError where it is too much."""
    task, labels, found = open_task(dataset.task(data)), dataset.labels(data), []
    for number, outputs in enumerate(rows):
        found.append(task.keep(outputs, None if labels is None else labels[number]))
        size = sum(array.nbytes for array in found[0].values())
        if size * len(found) > LARGEST_BYTES:
            raise InputError(f"{size:,} bytes are kept of each sample, {LARGEST_BYTES:,} at most of all: set `samples` to {LARGEST_BYTES // size} or fewer")
    return {name: np.stack([one[name] for one in found]) for name in found[0]}


def derive(task: Task, kept: Kept, float32: Kept | None, labels: np.ndarray | None, is_baseline: bool = False) -> list[Score]:
    """The judged score of an arm, then others, and, where `float32` holds what that arm of the same runtime kept, what changed against it."""
    before = float32 if not is_baseline else None
    flips = None if before is None else flipped(task, kept, before)
    mine = task.scores(kept, kept if is_baseline else float32, labels)
    theirs = task.scores(before, before, labels) if before is not None else [None] * len(mine)
    return [score(one, other, flips) for one, other in zip(mine, theirs, strict=False)]  # an earlier study may have kept less


def flipped(task: Task, kept: Kept, float32: Kept) -> float:
    """Share of samples whose answer is not float32's."""
    pairs = [(kept[name], float32[name]) for name in kept if name.startswith(task.ANSWERS) and name in float32]
    return float(np.any([(a != b).reshape(len(a), -1).any(1) for a, b in pairs], axis=0).mean())


def score(mine: Scored, theirs: Scored | None, flipped: float | None) -> Score:
    """The row of one score; `theirs` is float32's."""
    from evaluators import statistics  # SciPy takes a second to import, which a measuring process need not spend

    metric, has = mine.metric, mine.weights > 0
    values, weights = mine.values[has], mine.weights[has]
    count, right = len(values), metric.kind == "right"
    value = statistics.wilson(int(values.sum()), count) if right else shaped(metric, statistics.mean(values, weights))
    worst = None if right else shape(metric, float(values.min() if metric.higher_is_better else values.max()))
    if theirs is None:
        return Score(metric, count, value, *[None] * 7, worst)
    before = theirs.values[has]
    gained = (values.astype(np.float64) - before) * (1 if metric.higher_is_better else -1)
    worse, better = int((gained < 0).sum()), int((gained > 0).sum())
    found = {"before": shape(metric, float(np.average(before, weights=weights))), "worse": worse, "better": better, "flipped": flipped, "worst": worst}
    if right:
        difference, p = statistics.accuracy_difference(worse, better, count), statistics.mcnemar(worse, better)
        smallest = statistics.smallest_drop(count, (worse + better) / count)
    elif metric.kind == "likeness":
        difference = p = smallest = None
    else:
        change = values - before
        difference, p = shaped_change(metric, statistics.mean(change, weights)), statistics.sign_flips(change * weights)
        smallest = statistics.smallest_difference(change, weights)
        smallest = shape_change(metric, smallest) if smallest is not None else None
    return Score(metric, count, value, difference=difference, p=p, smallest=smallest, **found)


def shape(metric: Metric, value: float) -> float:
    return float(np.exp(value)) if metric.kind == "perplexity" else value


def shape_change(metric: Metric, value: float) -> float:
    """The ratio of two perplexities, less 1, is one of exponentials of a difference."""
    return float(np.expm1(value)) if metric.kind == "perplexity" else value


def shaped(metric: Metric, found: Estimate) -> Estimate:
    return Estimate(*(shape(metric, end) for end in (found.value, found.low, found.high)))


def shaped_change(metric: Metric, found: Estimate) -> Estimate:
    return Estimate(*(shape_change(metric, end) for end in (found.value, found.low, found.high)))
