"""Weights without their most frequent value, mostly 0: a bitmask says where the others lie, and folding fills it in when a file is loaded.

ONNX's own sparse initializers take 8 bytes for the place of each value, so that they are smaller only beyond 98% of zeros; ONNX Runtime expands them as well.
"""

from math import prod

import numpy as np
import onnx_ir as ir

from compress.numerics.sparse import most_frequent, worth
from exporters import onnx_unpacking as unpack
from exporters.onnx_graph import Builder
from exporters.to_onnx import sparse_bytes


def is_smaller(dense: np.ndarray, bits: int) -> bool:
    """Whether the file is, for values of so many bits."""
    stored = np.count_nonzero(dense != most_frequent(dense))
    return worth(sparse_bytes(dense.size, bits, stored), dense.size * bits // 8)


def filled(build: Builder, values: ir.Value, mask: ir.Value, shape: tuple[int, ...], name: str) -> ir.Value:
    """A tensor of `shape` and the values' type: the position of a value among those that are kept is the sum of the mask up to there."""
    kept = unpack.dense(build, mask, 1, prod(shape), f"{name}/mask")
    axis = build.shared("axis_0", np.int64(0))
    places = build.node("Mul", [build.node("CumSum", [kept, axis], f"{name}/counted"), kept], f"{name}/places")
    return build.reshape(build.node("Gather", [values, places], f"{name}/filled", axis=0), shape, f"{name}/whole")
