"""Globally optimal one-dimensional k-means.

In one dimension the clusters of an optimum are intervals of the sorted values, so dynamic programming over their boundaries finds it; the best boundary
rises with the end of the interval, which makes each layer O(m log m) (Wu 1991; Gronlund et al. 2017, "Fast exact k-means in 1D").
A zero that is held exactly splits the row in two: each side begins with the values that go to zero, and only the number of entries of each side is shared.

Rows too long to sort in little memory are summed into bins first. The dynamic programme then finds the best boundaries among the bins' edges; the bins
around them are split until each holds one value, and the programme runs again. Only the global choice rests on the first bins, which cost about
(entries / bins)^2 of the distortion: see benchmarks/codebook.py for what is left of it.
"""

from dataclasses import dataclass
from types import ModuleType

import numpy as np

from compress.numerics import kmeans_numpy

SORTED_UP_TO = 2**16  # values in a row: longer ones are summed into bins
BINS = 2**15
FEW = 2**12  # bins: so few are all split, four times as many are all tried anew
ROUNDS = 20  # at most, of splitting bins and trying again: three or four are enough for ordinary weights


def optimal_codebooks(rows: np.ndarray, entries: int, sensitivity: np.ndarray | None = None, exact_zero: bool = False) -> np.ndarray:
    """float32 [n, entries], ascending: for each row of float32 [n, m] the codebook with the least (weighted) sum of squared distances.

    sensitivity  float32 [n, m] >= 0, the weight of each squared distance; a row without any weight counts as evenly weighted
    exact_zero   one entry is exactly 0, the others are optimal given that

    Fewer distinct values than entries: the last entry repeated. Distortions below 1e-15 of a row's variance are not told apart (float64 sums).
    ValueError for NaN, infinity, negative sensitivities or empty rows.
    """
    rows = np.ascontiguousarray(rows, np.float32)
    weights = np.empty((len(rows), 0), np.float32) if sensitivity is None else np.ascontiguousarray(sensitivity, np.float32)
    check(rows, sensitivity, weights, entries)
    if not len(rows):
        return np.empty((0, entries), np.float32)
    how = implementation()
    if rows.shape[1] <= SORTED_UP_TO:
        found = how.codebooks(rows, weights, entries, exact_zero)
    else:
        found = np.concatenate([binned(row, weight, entries, exact_zero, how) for row, weight in zip(rows, weights, strict=True)])
    return ascending(found)


def check(rows: np.ndarray, sensitivity: np.ndarray | None, weights: np.ndarray, entries: int) -> None:
    if entries < 1:
        raise ValueError(f"entries: at least 1, not {entries}")
    if rows.ndim != 2 or not rows.shape[1]:
        raise ValueError(f"rows: [n, m] with m > 0, not {list(rows.shape)}")
    if sensitivity is not None and weights.shape != rows.shape:
        raise ValueError(f"sensitivity: as the rows {list(rows.shape)}, not {list(weights.shape)}")
    # NaN passes through minimum and maximum; isfinite would take a quarter of the rows' memory
    if rows.size and not np.isfinite([rows.min(), rows.max()]).all():
        raise ValueError("rows: NaN or infinity")
    if weights.size and not 0 <= weights.min() <= weights.max() < np.inf:
        raise ValueError("sensitivity: negative, NaN or infinite")


def implementation() -> ModuleType:
    """The numba kernels, or the same in NumPy (slower) where numba is not installed."""
    try:
        from compress.numerics import kmeans_kernels
    except ModuleNotFoundError as error:
        if error.name != "numba":
            raise
        return kmeans_numpy
    return kmeans_kernels


def ascending(found: np.ndarray) -> np.ndarray:
    """Entries [n, entries] (unused ones infinite) as float32, each once, then the last repeated."""
    found = np.sort(found.astype(np.float32) + np.float32(0), 1)
    again = np.zeros(found.shape, bool)
    again[:, 1:] = found[:, 1:] == found[:, :-1]
    found[again] = np.inf
    found.sort(1)
    last = np.max(found, 1, where=np.isfinite(found), initial=-np.inf, keepdims=True)
    return np.where(np.isfinite(found), found, last)


@dataclass(frozen=True)
class Bins:
    """The values of a long row: where each bin begins (ordered key), how many keys it holds, its weight and first moment [bins, 2]."""

    begin: np.ndarray
    width: np.ndarray
    sums: np.ndarray

    def __getitem__(self, some: np.ndarray) -> "Bins":
        return Bins(self.begin[some], self.width[some], self.sums[some])

    def inner(self, starts: np.ndarray) -> np.ndarray:
        """The boundaries with bins on both sides; a cluster held at zero may be empty."""
        return starts[(starts > 0) & (starts < len(self.begin))]

    def points(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Means and weights of the bins put together from each index in `at` to the next."""
        mass, moment = np.add.reduceat(self.sums, at).T
        return moment / mass, np.ascontiguousarray(mass)


def binned(row: np.ndarray, weights: np.ndarray, entries: int, exact_zero: bool, how: ModuleType) -> np.ndarray:
    """float64 [1, entries] the entries of one long row, unused ones infinite."""
    data = row.view(np.uint32), row, weights if weights.size and weights.max() > 0 else weights[:0]
    bins = first_bins(data, how)
    starts, zero = how.partition(*bins.points(np.arange(len(bins.begin))), entries, exact_zero)
    for _ in range(ROUNDS):
        before = bins.begin[bins.inner(starts)]
        cut = wide_bins(bins, bins.inner(starts))
        bins = split(bins, cut, data, how) if len(cut) else bins
        at = around(bins, np.searchsorted(bins.begin, before))
        starts, zero = how.partition(*bins.points(at), entries, exact_zero)
        starts = np.append(at, len(bins.begin))[starts]
        if not len(cut) and np.array_equal(before, bins.begin[bins.inner(starts)]):
            break
    values, mass = bins.points(np.arange(len(bins.begin)))
    found = np.full((1, entries), np.inf)
    found[:, : len(starts) - 1] = kmeans_numpy.means(values[None], mass[None], starts[None], np.array([zero]))
    return found


def first_bins(data: tuple[np.ndarray, np.ndarray, np.ndarray], how: ModuleType) -> Bins:
    """About BINS bins, narrow where values are dense.

    A boundary that is off by h costs density x h^2 x the distance of two entries, itself as density^(-1/3): widths as density^(-1/3) share that evenly.
    """
    counts = how.cell_counts(data[0])
    cells = np.flatnonzero(counts)
    upper = cells.astype(np.uint32) << 16
    width = from_keys(upper | 0xFFFF) - from_keys(upper)
    share, most = np.cbrt(width**2 * counts[cells]), np.minimum(counts[cells], 65536)
    parts, scale = share, BINS / share.sum()
    for _ in range(8):  # what the cells with few values do not need goes to the others
        parts = np.clip(share * scale, 1, most)
        scale *= BINS / parts.sum()
    begin, width = subdivided(upper, np.full(len(cells), 65536), parts.astype(np.int64))
    return summed(begin, width, data, (counts > 0).astype(np.uint8), how)


def summed(begin: np.ndarray, width: np.ndarray, data: tuple[np.ndarray, np.ndarray, np.ndarray], cut: np.ndarray, how: ModuleType) -> Bins:
    """The bins with the sums of the values in cells that are `cut`: none elsewhere."""
    first = np.searchsorted(begin, np.arange(65537, dtype=np.uint64) << 16)
    bins = Bins(begin, width, how.bin_sums(*data, begin, first, cut))
    return bins[(bins.sums[:, 0] > 0) | (cut[begin >> 16] == 0)]


def from_keys(keys: np.ndarray) -> np.ndarray:
    """The float32 values of ordered keys, as float64."""
    return np.where(keys >> 31, keys ^ np.uint32(0x80000000), ~keys).astype(np.uint32).view(np.float32).astype(np.float64)


def subdivided(begin: np.ndarray, width: np.ndarray, parts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Begins and widths once each interval is cut into so many parts, as equal as whole keys can be."""
    part = np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)
    width, parts = np.repeat(width, parts), np.repeat(parts_of := parts, parts_of)
    below, above = part * width // parts, (part + 1) * width // parts
    return (np.repeat(begin.astype(np.int64), parts_of) + below).astype(np.uint32), above - below


def wide_bins(bins: Bins, boundaries: np.ndarray) -> np.ndarray:
    """Indices of the two bins on either side of each boundary (of all bins, where they are few) that hold more than one key."""
    if len(bins.begin) <= FEW:
        return np.flatnonzero(bins.width > 1)
    near = np.unique(np.clip(np.add.outer(boundaries, np.arange(-2, 2)), 0, len(bins.begin) - 1))
    return near[bins.width[near] > 1]


def split(bins: Bins, cut: np.ndarray, data: tuple[np.ndarray, np.ndarray, np.ndarray], how: ModuleType) -> Bins:
    """The bins, with those of indices `cut` divided further; only values in their cells are summed anew."""
    parts = np.minimum(bins.width[cut], max(2, BINS // 2 // len(cut)))
    begin, width = subdivided(bins.begin[cut], bins.width[cut], parts)
    begin, width = np.concatenate([np.delete(bins.begin, cut), begin]), np.concatenate([np.delete(bins.width, cut), width])
    order = np.argsort(begin)
    touched = np.zeros(65536, np.uint8)
    touched[bins.begin[cut] >> 16] = 2
    finer = summed(begin[order], width[order], data, touched, how)
    finer.sums[touched[finer.begin >> 16] == 0] = bins.sums[touched[bins.begin >> 16] == 0]
    return finer


def around(bins: Bins, boundaries: np.ndarray) -> np.ndarray:
    """Indices that leave the bins near the boundaries alone and put those between together: after the first programme boundaries move little."""
    if len(bins.begin) <= 4 * FEW:
        return np.arange(len(bins.begin))
    reach = max(8, 2 * FEW // max(1, len(boundaries)))
    alone = np.zeros(len(bins.begin) + 2 * reach, bool)
    alone[np.add.outer(boundaries, np.arange(2 * reach + 1)).clip(0, len(alone) - 1)] = True
    alone = alone[reach : reach + len(bins.begin)]
    alone[1:] |= alone[:-1]
    alone[np.searchsorted(bins.begin, [0, 2**31, 2**31 + 1]).clip(0, len(alone) - 1)] = True  # zero stands between the signs
    return np.flatnonzero(alone)
