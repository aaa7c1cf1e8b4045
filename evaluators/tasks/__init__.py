"""What a model is tested at. Each module says what of a sample's outputs is kept, and how it is scored.

A module needs NumPy alone: `keep` runs in measuring processes, on boards and emulated machines too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from compress.errors import InputError
from compress.registry import Entry, Registry
from evaluators.results import Metric

TASKS = Registry(
    "task",
    {
        "classification": Entry("evaluators.tasks.classification", about="share of right answers, and beside it of those among the best five"),
        "token_classification": Entry("evaluators.tasks.token_classification", about="share of tokens that get the right class"),
        "regression": Entry("evaluators.tasks.regression", about="mean absolute error"),
        "causal_lm": Entry("evaluators.tasks.causal_lm", about="perplexity of documents"),
        "embeddings": Entry("evaluators.tasks.embeddings", about="retrieval of samples with the same label, and cosine to float32's embeddings"),
        "outputs": Entry("evaluators.tasks.outputs", about="how close all outputs are to float32's, in dB; no labels"),
    },
    aliases={
        "token-classification": "token_classification",
        "language_modelling": "causal_lm",
        "language_modeling": "causal_lm",
        "causal-lm": "causal_lm",
        "embedding": "embeddings",
        "detection": "outputs",
    },
)

Kept = Mapping[str, np.ndarray]
"""What is kept of all samples, by name; samples first."""
IGNORED = -100  # the label of a token that no answer is asked for, as in transformers


@dataclass(frozen=True, eq=False)
class Scored:
    """A score of each sample, bool or float64 [samples], and how much each counts in the mean, float64 [samples]; those of weight 0 have no score."""

    metric: Metric
    values: np.ndarray
    weights: np.ndarray


class Task(Protocol):
    ANSWERS: str
    """How the names of those kept arrays begin that say whether an answer changed."""

    def check(self, labels: np.ndarray | None) -> np.ndarray | None:
        """Labels [samples, ...] as they are stored. InputError where they cannot be what this task needs."""

    def keep(self, outputs: list[np.ndarray], label: np.ndarray | None) -> dict[str, np.ndarray]:
        """Of one sample, whose outputs have a batch axis of 1. InputError for outputs that cannot be scored."""

    def scores(self, kept: Kept, float32: Kept | None, labels: np.ndarray | None) -> list[Scored]:
        """The score that arms are judged by, then others. `float32` is what the float32 arm kept; without it, none that compare with it."""

    def notes(self, kept: Kept, labels: np.ndarray | None) -> Sequence[str]:
        """What has to be said of an arm's outputs."""


def open_task(name: str | Mapping[str, Any]) -> Task:
    """A task by its name, or the document of a user's own score. UnknownName where there is none."""
    if isinstance(name, str):
        return TASKS.load(name)
    from evaluators.tasks.function import Function

    return Function(**name)


def keeper(name: str | Mapping[str, Any]) -> str:
    """The name of the task that keeps what this one scores: a user's own gets all outputs."""
    return name if isinstance(name, str) else "outputs"


def once(values: np.ndarray) -> np.ndarray:
    """The weights of samples that all count the same."""
    return np.ones(len(values))


def finite(outputs: np.ndarray, title: str) -> np.ndarray:
    """The outputs, which a number is computed from. InputError where one of them is none."""
    if not np.isfinite(outputs).all():
        raise InputError(f"the outputs of a sample hold NaN or infinity: there is no {title} of them")
    return outputs


def classes(labels: np.ndarray | None, axes: tuple[str, ...], ignored: bool = False) -> np.ndarray:
    """Class numbers, int64 [samples, ...]; IGNORED is one where `ignored`."""
    wanted = f"class numbers [{', '.join(axes)}]"
    if labels is None or labels.ndim != len(axes):
        raise InputError(f"it needs labels, {wanted}; {'there are none' if labels is None else f'they have the shape {labels.shape}'}")
    if not np.issubdtype(labels.dtype, np.integer) and labels.dtype != bool:
        raise InputError(f"labels are of type {labels.dtype}: class numbers are integers")
    real = labels[labels != IGNORED] if ignored else labels
    if real.size and real.min() < 0:
        raise InputError(f"the label {real.min()} is negative: class numbers start at 0{f', and {IGNORED} asks for no answer' if ignored else ''}")
    if not real.size:
        raise InputError(f"every label is {IGNORED}: nothing is asked for")
    return labels.astype(np.int64)
