"""Where a canonical weight lies in an ONNX graph, found by value."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import permutations
from math import prod

import numpy as np

RTOL = 1e-5  # folding a batch norm or a scale of 1 rounds a float32 once or twice


@dataclass(frozen=True)
class Layout:
    """Steps from the canonical tensor to an initializer: reshape, transpose, reshape. `split` is the shape between."""

    split: tuple[int, ...]
    order: tuple[int, ...]
    shape: tuple[int, ...]

    def apply(self, canonical: np.ndarray) -> np.ndarray:
        return canonical.reshape(self.split).transpose(self.order).reshape(self.shape)

    def canonical(self, value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """The inverse: the tensor of canonical `shape`."""
        moved = value.reshape([self.split[axis] for axis in self.order])
        return np.ascontiguousarray(moved.transpose(np.argsort(self.order))).reshape(shape)


def layouts(canonical: tuple[int, ...], shape: tuple[int, ...]) -> Iterable[Layout]:
    """Every layout that frameworks use: a permutation of the axes; kernels of depthwise and grouped convolutions with the channels split."""
    for order in permutations(range(len(canonical))):
        if tuple(canonical[axis] for axis in order) == shape:
            yield Layout(canonical, order, shape)
    if len(shape) == 3 and canonical == (shape[0] * shape[1], shape[2]):  # both directions of a recurrent layer
        yield Layout(canonical, (0, 1), shape)
    if len(canonical) == len(shape) > 2:
        out, kernel = canonical[0], canonical[2:]
        axes = tuple(range(3, 3 + len(kernel)))
        if canonical[1] == 1 and shape[-2] * shape[-1] == out:  # Keras's depthwise kernel [*kernel, channels, multiplier]
            yield Layout((shape[-2], shape[-1], *kernel), (*range(2, 2 + len(kernel)), 0, 1), shape)
        groups = shape[0] // canonical[1] if shape[0] % canonical[1] == 0 else 0
        if groups > 1 and shape[1] * groups == out:  # torch's grouped transposed convolution [in, out / groups, *kernel]
            yield Layout((groups, shape[1], canonical[1], *kernel), (0, 2, 1, *axes), shape)


def fingerprint(values: np.ndarray) -> tuple:
    """Equal for the same numbers in any order, rounding aside; cheap to look up."""
    magnitude = float(np.abs(values).sum(dtype=np.float64))
    return values.size, f"{magnitude:.3e}"


def layout_of(canonical: np.ndarray, value: np.ndarray) -> Layout | None:
    """The layout in which `value` holds the canonical tensor, or None."""
    if prod(value.shape) != canonical.size:
        return None
    for layout in layouts(canonical.shape, value.shape):
        if np.allclose(layout.apply(canonical), value, rtol=RTOL, atol=0):
            return layout
    return None
