"""The way of a training through its steps, whatever the framework: masks that change, checkpoints, a loss that is no number."""

import math
from collections.abc import Mapping, Sequence
from time import monotonic
from typing import Any, Protocol

import numpy as np

from compress.backends.training_data import Batches, Checkpoint, advice
from compress.errors import TrainingError
from compress.training import Course

SAVE_SECONDS = 10.0


class Learner(Protocol):
    """A model while it trains; its state is all that changes from step to step.

    parts  what learns, each with its `name`, `constraint`, `codes`, `canonical()` and `remask(mask)`
    """

    course: Course
    batches: Batches
    parts: Sequence[Any]

    def state(self) -> dict[str, np.ndarray]: ...

    def restore(self, step: int, arrays: Mapping[str, np.ndarray]) -> None: ...

    def step(self, step: int, rate: float, inputs: list[np.ndarray], labels: np.ndarray) -> float:
        """The loss before an optimizer step at this learning rate; one that is not finite changes nothing."""
        ...

    def culprit(self, inputs: list[np.ndarray]) -> str | None:
        """The first layer whose outputs are not finite, in the order of the model's calls."""
        ...


def train(learner: Learner, weights: Mapping[str, np.ndarray]) -> None:
    """Trains to the end, from the checkpoint of the same training where there is one. Adam's learning rate decays along a cosine to 0.

    weights  those of the start, by which a checkpoint is known

    TrainingError for a loss that is NaN or infinite. An existing checkpoint of another training is replaced, with a warning.
    """
    course, checkpoint = learner.course, Checkpoint(learner.course, learner.batches, weights)
    start, arrays = checkpoint.read(set(learner.state()))
    if start:
        learner.restore(start, arrays)
    else:
        checkpoint.write(0, learner.state())
    saved, rate = monotonic(), course.budget.learning_rate or course.data.learning_rate
    total = course.budget.total(learner.batches.samples)
    for step in range(start, total):
        remask(learner, step, total)
        inputs, labels = learner.batches.at(step)
        loss = learner.step(step, rate * (1 + math.cos(math.pi * step / total)) / 2, inputs, labels)
        if not math.isfinite(loss):
            layer = learner.culprit(inputs)
            where = f"the first outputs that are not finite are those of layer {layer}" if layer else "the outputs of every layer are finite, the loss is not"
            raise TrainingError(f"{course.name}: the loss is {loss} at step {step + 1} of {total}; {where}{advice(course.checkpoint)}")
        if course.progress:
            course.progress(step + 1, total, loss)
        if step + 1 == total or monotonic() - saved > SAVE_SECONDS:
            checkpoint.write(step + 1, learner.state())
            saved = monotonic()


def remask(learner: Learner, step: int, total: int) -> None:
    """Asks for new masks while the sparsity grows, and before the last step for those that stay."""
    course, last = learner.course, step == total - 1
    masked = {part.name: part for part in learner.parts if part.constraint.mask is not None and part.codes is None}
    if course.remask is None or not masked or (step % course.remask_every and not last):
        return
    for name, mask in course.remask(1.0 if last else step / total, {name: part.canonical() for name, part in masked.items()}).items():
        masked[name].remask(mask)
