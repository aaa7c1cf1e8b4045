"""Arrays without their zeros: where the other values lie, as a bitmask or in compressed rows, and how many bytes that takes. NumPy alone."""

from math import prod

import numpy as np

WORTH, LEAST = 0.9, 4096  # a weight that shrinks by less than 10% or 4 KiB is not worth the work of filling zeros in
ROW = 255  # values of a flat row: counts and places fit in a byte
Shape = tuple[int, ...]


def worth(sparse: int, dense: int) -> bool:
    return sparse < WORTH * dense and dense - sparse >= LEAST


# --- a list of values without the most frequent one ---


def most_frequent(values: np.ndarray) -> np.generic:
    """0 of floats, the most frequent one of 8- and 16-bit codes."""
    if values.dtype.kind == "f":
        return values.dtype.type(0)
    unsigned = f"u{values.itemsize}"
    return np.array(np.bincount(values.ravel().view(unsigned)).argmax(), unsigned).view(values.dtype)[()]


def without(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The most frequent value and after it all others, [1 + stored], and bool [n]: where those lie."""
    common, flat = most_frequent(values), values.ravel()
    kept = flat != common
    return np.concatenate([np.array([common], values.dtype), flat[kept]]), kept


def filled(values: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """[n], the inverse. ValueError where they do not fit together."""
    found = np.full(kept.size, values[0])
    found[kept] = values[1:]
    return found


def mask_bytes(count: int) -> int:
    return -(-count // 8)


def to_mask(kept: np.ndarray) -> np.ndarray:
    """uint8 [ceil(n / 8)], low bits first."""
    return np.packbits(kept, bitorder="little")


def from_mask(mask: np.ndarray, count: int) -> np.ndarray:
    """bool [count]. ValueError for a mask of another length."""
    if mask.size != mask_bytes(count):
        raise ValueError(f"a mask of {count} values has {mask_bytes(count)} bytes, not {mask.size}")
    return np.unpackbits(mask, count=count, bitorder="little").astype(bool)


def row_count(count: int) -> int:
    return -(-count // ROW)


def to_rows(kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [rows] and [stored]: how many values each row of 255 keeps, and their places in it."""
    places = np.flatnonzero(kept)
    return np.bincount(places // ROW, minlength=row_count(kept.size)).astype(np.uint8), (places % ROW).astype(np.uint8)


def from_rows(counts: np.ndarray, places: np.ndarray, count: int) -> np.ndarray:
    """bool [count]. ValueError or IndexError where they do not fit together."""
    kept = np.zeros(count, bool)
    kept[np.repeat(np.arange(len(counts)) * ROW, counts) + places] = True
    return kept


# --- compressed rows along one axis of a tensor, as LiteRT has them ---


def index_type(largest: int) -> np.dtype:
    return np.dtype(np.uint8 if largest < 1 << 8 else np.uint16 if largest < 1 << 16 else np.int32)


def rows_bytes(shape: Shape, axis: int, stored: int) -> int:
    rows = prod(shape) // shape[axis]
    return stored * index_type(shape[axis] - 1).itemsize + (rows + 1) * index_type(stored).itemsize


def best_axis(shape: Shape, stored: int) -> int:
    """Along which the places of `stored` values take the fewest bytes."""
    return min(range(len(shape)), key=lambda axis: rows_bytes(shape, axis, stored))
