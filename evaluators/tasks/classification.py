"""One class for each sample: the model's first output has a score for every class, labels are class numbers [samples]."""

import numpy as np

from compress.errors import InputError
from evaluators.results import Metric
from evaluators.tasks import Kept, Scored, classes, once

TOP1 = Metric("accuracy", "right", "%", noun="answer")
TOP5 = Metric("top-5 accuracy", "right", "%", noun="answer")
ANSWERS = "answers"
NO_ANSWER = -1  # where the scores hold NaN or infinity; equal to no label


def check(labels: np.ndarray | None) -> np.ndarray:
    return classes(labels, ("samples",))


def keep(outputs: list[np.ndarray], label: np.ndarray | None) -> dict[str, np.ndarray]:
    """`answers` int32, and where there are more than 5 classes `top` int32 [5], the highest first."""
    scores = np.array(outputs[0], np.float32).ravel()
    if scores.size < 2:
        raise InputError(f"task classification needs one score per class; the model's first output has {scores.size} value")
    usable = np.isfinite(scores).all()
    found = {"answers": np.int32(scores.argmax() if usable else NO_ANSWER)}
    if scores.size > 5:
        found["top"] = np.argsort(-scores, kind="stable")[:5].astype(np.int32) if usable else np.full(5, NO_ANSWER, np.int32)
    return found


def scores(kept: Kept, float32: Kept | None, labels: np.ndarray) -> list[Scored]:
    found = [Scored(TOP1, kept["answers"] == labels, once(labels))]
    if "top" in kept:
        found.append(Scored(TOP5, (kept["top"] == labels[:, None]).any(1), once(labels)))
    return found


def notes(kept: Kept, labels: np.ndarray | None) -> tuple[str, ...]:
    lost = int((kept["answers"] == NO_ANSWER).sum())
    return (f"{lost} of {len(kept['answers'])} outputs held NaN or infinity and count as wrong",) if lost else ()
