"""Which samples each optimizer step sees, for any number of processes."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from compress.errors import InputError
from compress.finetune.budget import Budget

SORTED = 16  # batches that are sorted by length together: their lengths agree, their order stays random


@dataclass(frozen=True, eq=False)
class Samples:
    """Inputs [samples, ...] by name, and labels [samples, ...] or, of tokens, [samples, tokens] with -100 where none counts.

    lengths  of each sample in tokens; None where samples have no attention_mask: nothing is bucketed
    """

    inputs: Mapping[str, np.ndarray]
    labels: np.ndarray

    def __post_init__(self):
        for name, array in self.inputs.items():
            if len(array) != len(self.labels):
                raise InputError(f"{len(array)} samples of input {name} for {len(self.labels)} labels")
        if not len(self.labels):
            raise InputError("the data is empty: fine-tuning needs at least one sample")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> np.ndarray | None:
        mask = self.inputs.get("attention_mask")
        return None if mask is None else mask.sum(1)

    def take(self, rows: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """These samples, no longer than the longest of them."""
        lengths = self.lengths
        inputs, labels = {name: array[rows] for name, array in self.inputs.items()}, self.labels[rows]
        if lengths is None:
            return inputs, labels
        tokens, width = self.inputs["attention_mask"].shape[1], int(lengths[rows].max())
        cut = {name: array[:, :width] if array.ndim > 1 and array.shape[1] == tokens else array for name, array in inputs.items()}
        return cut, labels[:, :width] if labels.ndim > 1 and labels.shape[1] == tokens else labels


@dataclass(frozen=True)
class Batches:
    """The samples of every step: each epoch has an order that follows from (seed, epoch)."""

    samples: Samples
    budget: Budget

    @property
    def size(self) -> int:
        return min(self.budget.batch, len(self.samples))

    def rows(self, step: int) -> np.ndarray:
        """Indices of the samples of an optimizer step."""
        epoch, place = divmod(step, len(self.samples) // self.size)
        return self.epoch(epoch)[place]

    def epoch(self, epoch: int) -> np.ndarray:
        """[batches, size]"""
        random = np.random.default_rng((self.budget.seed, epoch))
        order, size, lengths = random.permutation(len(self.samples)), self.size, self.samples.lengths
        order = order[: len(order) // size * size]
        if lengths is None or not self.budget.bucket:
            return order.reshape(-1, size)
        chunks = [order[i : i + SORTED * size] for i in range(0, len(order), SORTED * size)]
        batches = np.concatenate([chunk[np.argsort(lengths[chunk], kind="stable")] for chunk in chunks]).reshape(-1, size)
        return batches[random.permutation(len(batches))]

    def parts(self, step: int, process: int, processes: int) -> list[np.ndarray]:
        """This process's share of a step's samples, in as many equal parts as the budget accumulates. InputError where it does not divide."""
        rows, count = self.rows(step), processes * self.budget.accumulate
        if len(rows) % count:
            raise InputError(f"a batch of {len(rows)} samples cannot be shared by {processes} processes in {self.budget.accumulate} part(s) each")
        return np.split(rows, count)[process::processes]
