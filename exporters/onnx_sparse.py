"""Weights without their most frequent value, mostly 0: a bitmask says where the others lie, and folding fills it in when a file is loaded.

ONNX's own sparse initializers take 8 bytes for the place of each value, so that they are smaller only beyond 98% of zeros; ONNX Runtime expands them as well.
"""

from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_ir as ir

from compress.numerics.sparse import from_mask, to_mask, worth
from exporters import onnx_unpacking as unpack
from exporters.onnx_graph import Builder
from exporters.to_onnx import sparse_bytes


@dataclass(frozen=True, eq=False)
class Kept:
    """A tensor in two arrays: `values` [1 + stored], the first of them wherever `mask` (uint8, low bits first) is 0."""

    values: np.ndarray
    mask: np.ndarray

    @classmethod
    def of(cls, dense: np.ndarray) -> "Kept":
        common = most_frequent(dense)
        kept = dense != common
        return cls(np.concatenate([np.array([common], dense.dtype), dense[kept]]), to_mask(kept))

    def dense(self, shape: tuple[int, ...]) -> np.ndarray:
        """ValueError where values and mask do not fit together."""
        found, kept = np.full(prod(shape), self.values[0]), from_mask(self.mask, prod(shape))
        found[kept] = self.values[1:]
        return found.reshape(shape)


def most_frequent(dense: np.ndarray) -> np.generic:
    """0 of floats, the most frequent one of 8- and 16-bit codes."""
    if dense.dtype.kind == "f":
        return dense.dtype.type(0)
    unsigned = f"u{dense.itemsize}"
    return np.array(np.bincount(dense.ravel().view(unsigned)).argmax(), unsigned).view(dense.dtype)[()]


def is_smaller(dense: np.ndarray, bits: int) -> bool:
    stored = np.count_nonzero(dense != most_frequent(dense))
    return worth(sparse_bytes(dense.size, bits, stored), dense.size * bits // 8)


def filled(build: Builder, values: ir.Value, mask: ir.Value, shape: tuple[int, ...], name: str) -> ir.Value:
    """A tensor of `shape` and the values' type: the position of a value among those that are kept is the sum of the mask up to there."""
    kept = unpack.dense(build, mask, 1, prod(shape), f"{name}/mask")
    axis = build.shared("axis_0", np.int64(0))
    places = build.node("Mul", [build.node("CumSum", [kept, axis], f"{name}/counted"), kept], f"{name}/places")
    return build.reshape(build.node("Gather", [values, places], f"{name}/filled", axis=0), shape, f"{name}/whole")
