"""What a model is tested at. Each module says what of a sample's outputs is kept, and how it is scored.

A module needs NumPy alone: `keep` runs in measuring processes, on boards and emulated machines too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from compress.registry import Entry, Registry
from evaluators.results import Metric

TASKS = Registry(
    "task",
    {
        "classification": Entry("evaluators.tasks.classification", about="share of right answers; top-5 beside it where there are more than 5 classes"),
    },
)

Kept = Mapping[str, np.ndarray]
"""What is kept of all samples, by name; samples first."""


@dataclass(frozen=True, eq=False)
class Scored:
    """A score of each sample, bool or float64 [samples], and how much each counts in the mean, float64 [samples]; those of weight 0 have no score."""

    metric: Metric
    values: np.ndarray
    weights: np.ndarray


class Task(Protocol):
    ANSWERS: tuple[str, ...]
    """Names of kept arrays: what is compared when it is said that an answer changed."""

    def check(self, labels: np.ndarray | None) -> np.ndarray | None:
        """Labels [samples, ...] as they are stored. InputError where they cannot be what this task needs."""

    def keep(self, outputs: list[np.ndarray], label: np.ndarray | None) -> dict[str, np.ndarray]:
        """Of one sample, whose outputs have a batch axis of 1. InputError for outputs that cannot be scored."""

    def scores(self, kept: Kept, float32: Kept | None, labels: np.ndarray | None) -> list[Scored]:
        """The score that arms are judged by, then others. `float32` is what the float32 arm kept, for those that compare with it; [] without it."""

    def notes(self, kept: Kept, labels: np.ndarray | None) -> Sequence[str]:
        """What has to be said of an arm's outputs."""


def once(values: np.ndarray) -> np.ndarray:
    """The weights of samples that all count the same."""
    return np.ones(len(values))


def open_task(name: str) -> Task:
    """UnknownName where there is none."""
    return TASKS.load(name)
