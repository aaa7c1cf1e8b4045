"""LiteRT's sparse constants: values that are not 0, and their places in compressed rows along one axis."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from compress.numerics.sparse import Shape, best_axis, index_type

INDEX_TYPES = {np.dtype(np.uint8): "Uint8Vector", np.dtype(np.uint16): "Uint16Vector", np.dtype(np.int32): "Int32Vector"}


@dataclass(frozen=True, eq=False)
class Rows:
    """A tensor without its zeros.

    values    of the numbers that are not 0, row by row
    starts    [rows + 1]: where each row's values start
    places    along the axis, for each value
    """

    shape: Shape
    axis: int
    values: np.ndarray
    starts: np.ndarray
    places: np.ndarray

    @classmethod
    def of(cls, dense: np.ndarray) -> "Rows":
        """Along the axis that takes the fewest bytes. A zero with a sign, as pruning makes them, loses it."""
        axis = best_axis(dense.shape, np.count_nonzero(dense))
        rows = np.moveaxis(dense, axis, -1).reshape(-1, dense.shape[axis])
        starts = np.concatenate([[0], np.cumsum(np.count_nonzero(rows, axis=1))])
        places = np.nonzero(rows)[1]
        return cls(dense.shape, axis, rows[rows != 0], starts.astype(index_type(starts[-1])), places.astype(index_type(dense.shape[axis] - 1)))

    def dense(self) -> np.ndarray:
        """ValueError or IndexError where the parts do not fit together."""
        length = self.shape[self.axis]
        others = self.shape[: self.axis] + self.shape[self.axis + 1 :]
        rows = np.zeros((prod(others), length), self.values.dtype)
        counts = np.diff(self.starts.astype(np.int64))
        rows[np.repeat(np.arange(len(rows)), counts), self.places] = self.values
        return np.ascontiguousarray(np.moveaxis(rows.reshape(*others, length), -1, self.axis))

    def parameters(self) -> Any:
        """SparsityParametersT: every axis but the last of the traversal is dense."""
        made = schema.SparsityParametersT()
        made.traversalOrder = [axis for axis in range(len(self.shape)) if axis != self.axis] + [self.axis]
        made.dimMetadata = [level(self.shape[axis]) for axis in made.traversalOrder[:-1]] + [compressed_level(self.starts, self.places)]
        return made


def level(size: int) -> Any:
    made = schema.DimensionMetadataT()
    made.format, made.denseSize = schema.DimensionType.DENSE, size
    return made


def compressed_level(starts: np.ndarray, places: np.ndarray) -> Any:
    made = schema.DimensionMetadataT()
    made.format = schema.DimensionType.SPARSE_CSR
    (made.arraySegmentsType, made.arraySegments), (made.arrayIndicesType, made.arrayIndices) = index_vector(starts), index_vector(places)
    return made


def index_vector(numbers: np.ndarray) -> tuple[int, Any]:
    kind = INDEX_TYPES[numbers.dtype]
    made = getattr(schema, f"{kind}T")()
    made.values = numbers
    return getattr(schema.SparseIndexVector, kind), made


def index_vectors(tensor: Any) -> Iterator[np.ndarray]:
    """Starts and places of every compressed axis of a tensor, whoever wrote it."""
    for found in tensor.sparsity.dimMetadata:
        if found.format == schema.DimensionType.SPARSE_CSR:
            yield np.asarray(found.arraySegments.values)
            yield np.asarray(found.arrayIndices.values)


def in_rows(tensor: Any) -> bool:
    """Whether a sparse tensor is compressed along one axis, the last of its traversal, and not in blocks."""
    sparsity, dense = tensor.sparsity, schema.DimensionType.DENSE
    whole = sparsity.blockMap is None or not len(sparsity.blockMap)
    kinds = [found.format for found in sparsity.dimMetadata]
    return whole and len(kinds) == len(tensor.shape) and kinds[-1] != dense and all(kind == dense for kind in kinds[:-1]) and ascending(tensor)


def ascending(tensor: Any) -> bool:
    order = [int(axis) for axis in tensor.sparsity.traversalOrder]
    return order[:-1] == [axis for axis in range(len(order)) if axis != order[-1]]


def rows_of(tensor: Any, shape: Shape, values: np.ndarray) -> Rows:
    """A constant that is `in_rows`."""
    return Rows(shape, int(tensor.sparsity.traversalOrder[-1]), values, *index_vectors(tensor))
