"""Weights that share few values: centroids, and which of them each weight takes."""

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np

from compress.errors import InputError
from compress.formats import PerAxis, PerTensor
from compress.numerics import reach
from compress.numerics.encoded import checked, nearest_entries

Per = Literal["tensor", "axis"]
Initialization = Literal["optimal", "linear", "density", "kmeans++"]
"""Where centroids lie; each weight takes the nearest one (ties go down). Only optimal ones are the means of their weights: the others are meant to be trained.

optimal   the least sum of squared distances, exactly (compress.numerics.kmeans)
linear    even steps from the smallest weight to the largest
density   even steps of the cumulative distribution, at the nodes of a grid of 30: dense regions may get one centroid several times
kmeans++  weights drawn one by one by their squared distance to those before, the best of some draws each time (Arthur & Vassilvitskii 2007)

linear, density and kmeans++ are those of tensorflow-model-optimization 0.8 (clustering_centroids.py). Its density method says that it interpolates between
nodes, but its arithmetic gives back the node; so do we. With a mask it deals the other centroids out to the signs as their weights are; so do we.
"""

GRID = 30  # nodes of the cumulative distribution


def cluster(
    values: np.ndarray, clusters: int, per: Per, initialization: Initialization = "optimal", mask: np.ndarray | None = None, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """(uint8 codes in the values' shape, float32 centroids [clusters], or [out, clusters] per axis), centroids ascending.

    mask  bool in the values' shape, True where a weight is kept. Centroid 0 is then exactly 0 and belongs to the other weights alone, in every tensor or
          channel; kept weights share the `clusters` - 1 after it
    seed  of kmeans++

    Fewer distinct weights than clusters leave some of them without weights. InputError for fewer than 2 or more than 256 clusters, NaN or infinity.
    """
    if not 2 <= clusters <= 256:
        raise InputError(f"clusters: 2 to 256, not {clusters}")
    if per not in get_args(Per) or initialization not in get_args(Initialization):
        raise InputError(f"clusters are made per tensor or axis, initialization is one of {', '.join(get_args(Initialization))}, not {per}, {initialization}")
    if mask is not None and np.shape(mask) != np.shape(values):
        raise InputError(f"mask: {list(np.shape(values))} as the values, not {list(np.shape(mask))}")
    values = np.asarray(values, np.float32)
    checked(values)
    rows = rows_of(values, per)
    kept = None if mask is None else rows_of(np.asarray(mask, bool), per)
    count = clusters - (kept is not None)
    found = optimal(rows, count, kept) if initialization == "optimal" else initial(rows, count, initialization, kept, seed)
    codes = nearest_entries(np.ascontiguousarray(rows), found)
    if kept is not None:
        codes = np.where(kept, codes + np.uint8(1), np.uint8(0))
        found = np.concatenate([np.zeros((len(found), 1), np.float32), found], 1)
    return codes.reshape(values.shape), found if per == "axis" else found[0]


def values_of(codes: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """float32 in the codes' shape; centroids [clusters], or [out, clusters] for each output channel."""
    if centroids.ndim == 1:
        return centroids[codes]
    return np.take_along_axis(centroids, codes.reshape(len(codes), -1).astype(np.intp), 1).reshape(codes.shape)


def codes_of(values: np.ndarray, per: Per, mask: np.ndarray | None = None) -> np.ndarray:
    """uint8 codes of values that share few already, ascending within each tensor or channel; 0 where the mask prunes, and nowhere else."""
    rows = rows_of(values, per)
    kept = np.ones(rows.shape, bool) if mask is None else rows_of(np.asarray(mask, bool), per)
    found = np.zeros(rows.shape, np.uint8)
    for row, some, codes in zip(rows, kept, found, strict=True):
        codes[some] = np.unique(row[some], return_inverse=True)[1] + (mask is not None)
    return found.reshape(values.shape)


def distinct(values: np.ndarray, per: Per) -> int:
    """How many different values a tensor has, or the output channel that has most."""
    if not values.size:
        return 0
    rows = np.sort(rows_of(values, per), axis=1)
    return 1 + int(np.count_nonzero(rows[:, 1:] != rows[:, :-1], axis=1).max())


def rows_of(values: np.ndarray, per: Per) -> np.ndarray:
    """[n, m] with one row for each set of clusters."""
    return reach.split(values, PerAxis() if per == "axis" else PerTensor())[0]


def optimal(rows: np.ndarray, count: int, kept: np.ndarray | None) -> np.ndarray:
    """float32 [n, count]; rows that keep nothing get zeros."""
    from compress.numerics.kmeans import optimal_codebooks

    if kept is None:
        return optimal_codebooks(rows, count)
    if len(rows) == 1:
        some = rows[kept][None]
        return optimal_codebooks(some, count) if some.size else np.zeros((1, count), np.float32)
    found = optimal_codebooks(rows, count, kept.astype(np.float32))
    return np.where(kept.any(1)[:, None], found, np.float32(0))


def initial(rows: np.ndarray, count: int, initialization: Initialization, kept: np.ndarray | None, seed: int) -> np.ndarray:
    """float32 [n, count], ascending, by one of tensorflow-model-optimization's methods."""
    draw = np.random.default_rng(seed)
    place: Place = {"linear": linear, "density": density, "kmeans++": kmeans_plus_plus}[initialization]
    found = []
    for i, row in enumerate(rows):
        if kept is None:
            found.append(place(row, count, np.float32(0.01), draw))
        else:
            found.append(by_sign(row[kept[i]], count, place, draw))
    return np.sort(np.stack(found).astype(np.float32) + np.float32(0), 1)  # -0 becomes 0


Place = Callable[[np.ndarray, int, np.float32, np.random.Generator], np.ndarray]
"""(weights, how many, what the distribution's grid adds on both sides, randomness) -> centroids."""


def by_sign(row: np.ndarray, count: int, place: Place, draw: np.random.Generator) -> np.ndarray:
    """Centroids of the negative and of the positive weights, as many of each as they are; zeros where there are none."""
    sides = row[row < 0], row[row > 0]
    total = len(sides[0]) + len(sides[1])
    if not total:
        return np.zeros(count, np.float32)
    below = int(np.rint(count * (len(sides[0]) / total)))
    found = []
    for side, share in zip(sides, (below, count - below), strict=True):
        if share:
            gap = min(np.float32(0.01), np.abs(side).min() / 2)  # the grid does not reach the other sign
            found.append(place(side, share, gap, draw))
    return np.concatenate(found)


def linear(row: np.ndarray, count: int, gap: np.float32, draw: np.random.Generator) -> np.ndarray:
    return np.linspace(row.min(), row.max(), count, dtype=np.float32)


def density(row: np.ndarray, count: int, gap: np.float32, draw: np.random.Generator) -> np.ndarray:
    nodes = np.linspace(row.min() - gap, row.max() + gap, GRID, dtype=np.float32)
    below = np.searchsorted(np.sort(row), nodes, side="right").astype(np.float32) / np.float32(row.size)
    wanted = np.linspace(0.01, 1, count, dtype=np.float32)
    return nodes[np.minimum(np.searchsorted(below, wanted, side="right"), GRID - 1)]


def kmeans_plus_plus(row: np.ndarray, count: int, gap: np.float32, draw: np.random.Generator) -> np.ndarray:
    """Fewer distinct weights than `count`: the last repeated."""
    points, weight = np.unique(row, return_counts=True)
    points, tries = points.astype(np.float64), 3 + int(np.log(count))  # tensorflow's kmeans_plus_plus_initialization draws 2 + log(count) times more
    found = [draw.choice(points, p=weight / row.size)]
    distance = np.square(points - found[0])
    while len(found) < min(count, points.size):
        chances = np.cumsum(weight * distance)
        drawn = points[np.searchsorted(chances, draw.random(tries) * chances[-1], side="right").clip(max=points.size - 1)]
        after = [np.minimum(distance, np.square(points - point)) for point in drawn]
        best = int(np.argmin([weight @ left for left in after]))
        found.append(drawn[best])
        distance = after[best]
    return np.array(found + found[-1:] * (count - len(found)))
