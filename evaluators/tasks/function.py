"""A score of the user's own: a function (predictions, labels) that returns a number, or whether it is right, for each sample."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compress.errors import InputError
from evaluators.dataset import labels as stored_labels
from evaluators.results import Metric
from evaluators.tasks import Kept, Scored, once
from evaluators.tasks.outputs import named

SCORES = "scores"


@dataclass(frozen=True)
class Function:
    """`score` names the function; what it returns is called `title`, else after it."""

    score: str
    title: str = ""
    unit: str = ""
    higher_is_better: bool = True

    ANSWERS = SCORES

    def scores(self, kept: Kept, float32: Kept | None, labels: np.ndarray | None) -> list[Scored]:
        values = kept[SCORES]
        right = values.dtype == bool
        title = self.title or self.score.rpartition(":")[2].replace("_", " ")
        metric = Metric(title, "right" if right else "mean", "%" if right else self.unit, self.higher_is_better)
        return [Scored(metric, values, once(values))]

    def notes(self, kept: Kept, labels: np.ndarray | None) -> tuple[str, ...]:
        return ()


def score(reference: str, folder: str, kept: Mapping[str, np.ndarray], data: str) -> dict[str, np.ndarray]:
    """`scores` bool or float64 [samples], of what the task `outputs` keeps, in a process that may run the user's code.

    The function gets what the model put out, [samples, ...] or a list of these where it has several outputs, and the labels, None where there are none.
    """
    from compress.references import resolve

    outputs = [unbatched(kept[name]) for name in named(kept)]
    labels = stored_labels(Path(data))
    found = resolve(reference, Path(folder))(outputs[0] if len(outputs) == 1 else outputs, None if labels is None else labels[: len(outputs[0])])
    return {SCORES: checked(found, reference, len(outputs[0]))}


def unbatched(array: np.ndarray) -> np.ndarray:
    """[samples, ...] of [samples, 1, ...]."""
    return array[:, 0] if array.ndim > 1 and array.shape[1] == 1 else array


def checked(found: Any, reference: str, count: int) -> np.ndarray:
    array = np.asarray(found)
    if array.shape != (count,):
        raise InputError(f"{reference!r} returned {list(array.shape)} for {count} samples: one number for each is needed")
    if array.dtype == bool:
        return array
    if not np.issubdtype(array.dtype, np.number) or np.iscomplexobj(array) or not np.isfinite(array).all():
        raise InputError(f"{reference!r} returned scores that are no finite numbers ({array.dtype})")
    return array.astype(np.float64)
