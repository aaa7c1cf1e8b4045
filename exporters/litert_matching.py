"""Finds a network's weights among the constants of a .tflite file, by value: converters keep neither names nor layouts."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import permutations
from math import prod
from typing import Any

import numpy as np

from compress.network import Weight
from exporters import tflite_file

SAMPLED = 97  # values compared before a whole tensor is
TOLERANCE = 1e-5  # relative: converters fold constants in float32, in another order than the framework


@dataclass(frozen=True)
class Layout:
    """Where a weight lies in a file and how: file = canonical.transpose(order).reshape(shape)."""

    file_name: str
    shape: tuple[int, ...]  # in the file
    order: tuple[int, ...]  # permutation of the canonical axes
    canonical: tuple[int, ...]  # shape

    def to_file(self, values: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(values.transpose(self.order)).reshape(self.shape)

    def to_canonical(self, values: np.ndarray) -> np.ndarray:
        moved = values.reshape([self.canonical[axis] for axis in self.order])
        return np.ascontiguousarray(moved.transpose(np.argsort(self.order)))

    @property
    def channel_axis(self) -> int | None:
        """The file's axis of output channels; None where there is only one channel, so that every axis of length 1 will do."""
        if self.canonical[0] == 1:
            return None
        before = prod(self.canonical[axis] for axis in self.order[: self.order.index(0)])
        return next(axis for axis, size in enumerate(self.shape) if size > 1 and prod(self.shape[:axis]) == before)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> "Layout":
        return cls(entry["file_name"], tuple(entry["shape"]), tuple(entry["order"]), tuple(entry["canonical"]))


def match(model: Any, weights: Mapping[str, Weight]) -> dict[str, tuple[Layout, ...]]:
    """Every float32 constant that holds a weight's values, in any order of axes; a tied weight may be there twice."""
    by_size = defaultdict(list)
    for place in tflite_file.constants(model):
        if place.dtype == "float32":
            by_size[tuple(sorted(n for n in place.shape if n > 1))].append((place, tflite_file.values(model, place)))
    return {name: tuple(layouts(weight.value, by_size[tuple(sorted(n for n in weight.value.shape if n > 1))])) for name, weight in weights.items()}


def layouts(value: np.ndarray, candidates: list) -> list[Layout]:
    found = ((place, order_of(value, stored)) for place, stored in candidates)
    return [Layout(place.name, place.shape, order, value.shape) for place, order in found if order is not None]


def order_of(value: np.ndarray, stored: np.ndarray) -> tuple[int, ...] | None:
    """The permutation of the canonical axes that gives the stored array, axes of length 1 aside; None where no one does."""
    picked = np.linspace(0, value.size - 1, min(SAMPLED, value.size)).astype(np.int64)
    for order in orders(value.shape, stored.shape):
        moved = value.transpose(order).reshape(stored.shape)
        if close(moved.flat[picked], stored.flat[picked], value) and close(moved, stored, value):
            return order
    return None


def orders(shape: tuple[int, ...], stored: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Permutations of the axes of `shape` that give the stored shape, axes of length 1 aside."""
    short = tuple(axis for axis, size in enumerate(shape) if size == 1)
    sizes = [size for size in stored if size > 1]
    for order in permutations(axis for axis, size in enumerate(shape) if size > 1):
        if [shape[axis] for axis in order] == sizes:
            yield (*order, *short)


def close(a: np.ndarray, b: np.ndarray, scale: np.ndarray) -> bool:
    return np.array_equal(a, b) or bool(np.allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE * float(np.abs(scale).max(initial=0.0))))
