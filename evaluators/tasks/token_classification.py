"""A class for each token of a sentence: the model's first output has scores [tokens, classes], labels are class numbers [samples, tokens].

Tokens of one sentence are not independent, so a sentence is what is resampled; it counts as much as it has tokens.
"""

import numpy as np

from compress.errors import InputError
from evaluators.results import Metric
from evaluators.tasks import IGNORED, Kept, Scored, classes, once

TOKENS = Metric("token accuracy", "mean", "%", noun="sentence")
SENTENCES = Metric("sentence accuracy", "right", "%", noun="sentence")
ANSWERS = "answers"
NO_ANSWER = -1  # where the scores hold NaN or infinity; equal to no label


def check(labels: np.ndarray | None) -> np.ndarray:
    return classes(labels, ("samples", "tokens"), ignored=True)


def keep(outputs: list[np.ndarray], label: np.ndarray) -> dict[str, np.ndarray]:
    """`answers` int32 [tokens]; -100 where none is asked for."""
    scores = np.array(outputs[0][0], np.float32)
    if scores.ndim != 2 or len(scores) != len(label) or scores.shape[1] < 2:
        raise InputError(f"task token_classification needs scores [{len(label)} tokens, classes]; the model's first output is {list(scores.shape)}")
    answers = np.where(np.isfinite(scores).all(1), scores.argmax(1), NO_ANSWER)
    return {"answers": np.where(label == IGNORED, IGNORED, answers).astype(np.int32)}


def scores(kept: Kept, float32: Kept | None, labels: np.ndarray) -> list[Scored]:
    asked = labels != IGNORED
    right, count = ((kept["answers"] == labels) & asked).sum(1), asked.sum(1)
    has = (count > 0).astype(np.float64)
    return [Scored(TOKENS, right / np.maximum(count, 1), count.astype(np.float64)), Scored(SENTENCES, right == count, once(labels) * has)]


def notes(kept: Kept, labels: np.ndarray) -> tuple[str, ...]:
    lost, asked = int((kept["answers"] == NO_ANSWER).sum()), int((labels != IGNORED).sum())
    return (f"the scores of {lost} of {asked} tokens held NaN or infinity and count as wrong",) if lost else ()
