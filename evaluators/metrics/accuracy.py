"""Accuracy of classification: every arm answers the same samples in the same order, and the answers are kept."""

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from compress.errors import InputError
from evaluators.dataset import stored_samples
from evaluators.metrics.session import load
from evaluators.results import Accuracy

NO_ANSWER = -1  # where the scores hold NaN or infinity; equal to no label


def measure(facts: dict[str, Any], folder: str, runtime: str, threads: int, data: str, samples: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """`logits` float32 [samples, classes] and `answers` int32 [samples], one sample a run."""
    artifact, session = load(facts, folder, runtime, threads)
    rows = [scores(session.run(sample)) for sample in islice(stored_samples(Path(data), artifact.contents.inputs), samples)]
    logits = np.stack(rows)
    return {}, {"logits": logits, "answers": answers(logits)}


def scores(outputs: list[np.ndarray]) -> np.ndarray:
    """float32 [classes]: the first output of one sample."""
    found = np.array(outputs[0], np.float32).ravel()
    if found.size < 2:
        raise InputError(f"task classification needs one score per class; the model's first output has {found.size} value")
    return found


def answers(logits: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(logits).all(1), logits.argmax(1), NO_ANSWER).astype(np.int32)


def derive(answers: np.ndarray, float32: np.ndarray | None, labels: np.ndarray) -> Accuracy:
    """Accuracy and, where the float32 arm of the same runtime has answers, what changed against it."""
    from evaluators import statistics  # SciPy takes a second to import, which a measuring process need not spend

    right = answers == labels
    correct, count = int(right.sum()), len(labels)
    value = statistics.wilson(correct, count)
    if float32 is None:
        return Accuracy(correct, count, value, *[None] * 7)
    before = float32 == labels
    worse, better = int((before & ~right).sum()), int((~before & right).sum())
    flipped = float((answers != float32).mean())
    return Accuracy(
        correct,
        count,
        value,
        difference=statistics.accuracy_difference(worse, better, count),
        mcnemar_p=statistics.mcnemar(worse, better),
        worse=worse,
        better=better,
        flipped=flipped,
        agreement=1 - flipped,
        smallest_drop=statistics.smallest_drop(count, (worse + better) / count),
    )


def note(answers: np.ndarray) -> tuple[str, ...]:
    lost = int((answers == NO_ANSWER).sum())
    return (f"{lost} of {len(answers)} outputs held NaN or infinity and count as wrong",) if lost else ()
