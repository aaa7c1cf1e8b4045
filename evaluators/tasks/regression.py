"""Numbers for each sample: the model's first output and the labels [samples, ...] have as many."""

import numpy as np

from compress.errors import InputError
from evaluators.results import Metric
from evaluators.tasks import Kept, Scored, finite, once

ERROR = Metric("mean absolute error", higher_is_better=False, noun="prediction")
ANSWERS = "predictions"


def check(labels: np.ndarray | None) -> np.ndarray:
    """float32 [samples, ...]."""
    if labels is None:
        raise InputError("it needs labels, numbers [samples, ...]; there are none")
    if not np.issubdtype(labels.dtype, np.number) or not np.isfinite(labels).all():
        raise InputError("labels are not finite numbers" if np.issubdtype(labels.dtype, np.number) else f"labels are of type {labels.dtype}, not numbers")
    return labels.astype(np.float32)


def keep(outputs: list[np.ndarray], label: np.ndarray) -> dict[str, np.ndarray]:
    """`predictions` float32, shaped like the label."""
    found = finite(np.array(outputs[0], np.float32), ERROR.title)
    if found.size != label.size:
        raise InputError(f"task regression needs as many outputs as labels; the model's first output has {found.size} values, a label {label.size}")
    return {"predictions": found.reshape(label.shape)}


def scores(kept: Kept, float32: Kept | None, labels: np.ndarray) -> list[Scored]:
    errors = np.abs(kept["predictions"].astype(np.float64) - labels).reshape(len(labels), -1).mean(1)
    return [Scored(ERROR, errors, once(labels))]


def notes(kept: Kept, labels: np.ndarray | None) -> tuple[str, ...]:
    return ()
