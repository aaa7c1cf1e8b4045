"""The plain half of `kmeans`: what `kmeans_kernels` does, in NumPy. It is the oracle of the kernels and their stand-in where numba is not installed."""

import numpy as np

CHUNK = 2**18  # values at a time, which bounds the temporary arrays


def prefix_sums(values: np.ndarray, weights: np.ndarray, centre: np.ndarray, middle: int) -> np.ndarray:
    """[n, m + 1, 3] running sums of w, w (v - centre) and w (v - centre)^2 of rows [n, m], outwards from `middle`."""
    away = values - centre
    terms = np.stack([weights, weights * away, weights * away**2], -1)
    right = np.cumsum(terms[:, middle:], 1)
    left = -np.cumsum(terms[:, :middle][:, ::-1], 1)[:, ::-1]
    return np.concatenate([left, np.zeros_like(terms[:, :1]), right], 1)


def spread(sums: np.ndarray, row: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The weighted squared distances of points a to b (excluded) of each row from their mean."""
    weight, first, second = np.moveaxis(sums[row, b] - sums[row, a], -1, 0)
    return np.maximum(second - np.divide(first**2, weight, out=np.zeros_like(first), where=weight > 0), 0)


def next_layer(sums: np.ndarray, previous: np.ndarray, origin: int) -> tuple[np.ndarray, np.ndarray]:
    """One more cluster for every row: current[p] = min over q <= p of previous[q] + spread(origin + q, origin + p + 1), and the q of each p.

    The best q rises with p, so the p of odd multiples of a step lie between the answers of their neighbours (divide and conquer).
    """
    rows, length = len(sums), sums.shape[1] - 1 - origin
    current, starts = np.empty((rows, length)), np.zeros((rows, length), np.int64)
    every = np.arange(rows)
    current[:, 0] = previous[:, 0] + spread(sums, every, np.full(rows, origin), np.full(rows, origin + 1))
    step = 2 ** (length - 1).bit_length()
    while step:
        p = np.arange(step, length, 2 * step)
        if len(p):
            after = np.minimum(p + step, length - 1)
            high = np.where(p + step < length, np.minimum(starts[:, after], p), p)
            current[:, p], starts[:, p] = best_starts(sums, previous, origin, p, starts[:, p - step], high)
        step //= 2
    return current, starts


def best_starts(sums, previous, origin: int, p: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The least previous[q] + spread(...) over low..high [rows, len(p)], and its q: all ranges laid end to end."""
    lengths = (high - low + 1).ravel()
    begins = np.cumsum(lengths) - lengths
    which = np.repeat(np.arange(lengths.size), lengths)
    row, column = np.divmod(which, len(p))
    q = np.arange(len(which)) - np.repeat(begins - low.ravel(), lengths)
    totals = previous[row, q] + spread(sums, row, origin + q, origin + p[column] + 1)
    least = np.minimum.reduceat(totals, begins)
    at = np.minimum.reduceat(np.where(totals == least[which], q, len(which) + q.max()), begins)
    return least.reshape(low.shape), at.reshape(low.shape)


def layers(sums: np.ndarray, clusters: int, pinned: bool) -> tuple[np.ndarray, list[np.ndarray]]:
    """Least costs [n, layers] of whole rows by number of clusters, and each layer's starts; pinned: layer 0 is a cluster held at zero."""
    rows, count = len(sums), sums.shape[1] - 1
    if pinned:
        current = sums[:, :, 2] - sums[:, :1, 2]
    else:
        row = np.repeat(np.arange(rows), count)
        current = spread(sums, row, np.zeros_like(row), np.tile(np.arange(1, count + 1), rows)).reshape(rows, count)
    costs, starts = [current[:, -1]], []
    for origin in range(0 if pinned else 1, clusters):
        current, found = next_layer(sums, current, origin)
        costs.append(current[:, -1])
        starts.append(found)
    return np.stack(costs, 1), starts


def boundaries(starts: list[np.ndarray], origin: int, count: int, used: np.ndarray) -> np.ndarray:
    """[n, layers] where the cluster of each layer starts, of rows that use the first `used` [n] layers; `count` for the others."""
    rows, position = np.arange(len(used)), np.full(len(used), count)
    found = np.full((len(used), len(starts)), count)
    for j in reversed(range(len(starts))):
        active = j < used
        begin = starts[j][rows, np.where(active, position - origin - j - 1, 0)] + origin + j
        position = np.where(active, begin, position)
        found[:, j] = position
    return found


def partition_rows(values: np.ndarray, weights: np.ndarray, clusters: int, exact_zero: bool) -> tuple[np.ndarray, np.ndarray]:
    """Where the clusters of ascending rows [n, m] start, ended by m: [n, clusters + 1]; and the cluster held at zero [n] (-1: none)."""
    rows, count = values.shape
    whole = np.zeros((rows, 1), np.int64), np.full((rows, 1), count)
    if exact_zero:
        inner, zero = around_zero(values, weights, min(clusters - 1, count))
    else:
        clusters, middle = min(clusters, count), count // 2
        _, starts = layers(prefix_sums(values, weights, values[:, [middle]], middle), clusters, False)
        inner, zero = boundaries(starts, 1, count, np.full(rows, clusters - 1)), np.full(rows, -1)
    return np.concatenate([whole[0], inner, whole[1]], 1), zero


def around_zero(values: np.ndarray, weights: np.ndarray, free: int) -> tuple[np.ndarray, np.ndarray]:
    """Boundaries [n, free] and the index of the zero cluster [n]. Values of the other sign stand at a side's zero without weight."""
    count = values.shape[1]
    negative, positive = values < 0, values > 0
    left = prefix_sums(np.where(negative, -values, 0)[:, ::-1], np.where(negative, weights, 0)[:, ::-1], 0.0, 0)
    right = prefix_sums(np.where(positive, values, 0), np.where(positive, weights, 0), 0.0, 0)
    (below, lefts), (above, rights) = layers(left, free, True), layers(right, free, True)
    lower = np.argmin(below + above[:, ::-1], 1)
    down = np.minimum(count - boundaries(lefts, 0, count, lower)[:, ::-1], negative.sum(1, keepdims=True))
    up = np.maximum(boundaries(rights, 0, count, free - lower), count - positive.sum(1, keepdims=True))
    return np.take_along_axis(np.concatenate([down, up], 1), (free - lower)[:, None] + np.arange(free), 1), lower


def partition(values: np.ndarray, weights: np.ndarray, clusters: int, exact_zero: bool) -> tuple[np.ndarray, int]:
    """`partition_rows` of one row."""
    starts, zero = partition_rows(values[None], weights[None], clusters, exact_zero)
    return starts[0], int(zero[0])


def means(values: np.ndarray, weights: np.ndarray, starts: np.ndarray, zero: np.ndarray) -> np.ndarray:
    """[n, clusters] the mean of each cluster of rows [n, m], 0 for the one held at zero, infinite where a cluster weighs nothing."""
    rows, clusters = len(starts), starts.shape[1] - 1
    label = np.repeat(np.arange(rows * clusters), np.diff(starts, axis=1).ravel())
    anchor = np.take_along_axis(values, np.minimum(starts[:, :-1], values.shape[1] - 1), 1).ravel()
    mass = np.bincount(label, weights.ravel(), rows * clusters)
    moment = np.bincount(label, weights.ravel() * (values.ravel() - anchor[label]), rows * clusters)
    found = np.where(mass > 0, anchor + moment / np.where(mass > 0, mass, 1), np.inf).reshape(rows, clusters)
    return np.where(np.arange(clusters) == zero[:, None], 0.0, found)


def codebooks(rows: np.ndarray, weights: np.ndarray, clusters: int, exact_zero: bool) -> np.ndarray:
    """float64 [n, clusters] the optimal entries of each row in any order, unused ones infinite; weights [n, m] or [n, 0]."""
    entries = np.full((len(rows), clusters), np.inf)
    chunk = max(1, CHUNK // (rows.shape[1] * clusters))
    for begin in range(0, len(rows), chunk):
        part = slice(begin, begin + chunk)
        order = np.argsort(rows[part], 1, kind="stable")
        values = np.take_along_axis(rows[part], order, 1).astype(np.float64)
        mass = np.take_along_axis(weights[part], order, 1).astype(np.float64) if weights.size else np.ones_like(values)
        mass[mass.max(1) == 0] = 1
        found = means(values, mass, *partition_rows(values, mass, clusters, exact_zero))
        entries[part, : found.shape[1]] = found
        for row, points, weight in zip(entries[part], values, mass, strict=True):
            few_points(row, points[weight > 0], exact_zero)
    return entries


def few_points(entries: np.ndarray, points: np.ndarray, exact_zero: bool) -> None:
    """Where there are no more different points than entries [clusters], they are the entries: sums could not tell close ones apart."""
    different = np.unique(np.append(points, 0.0) if exact_zero else points)
    if len(different) <= len(entries):
        entries[:] = np.inf
        entries[: len(different)] = different


def ordered_keys(bits: np.ndarray) -> np.ndarray:
    """uint32 that ascend with the float32 values of these bits."""
    return bits ^ np.where(bits >> 31, np.uint32(0xFFFFFFFF), np.uint32(0x80000000))


def cell_counts(bits: np.ndarray) -> np.ndarray:
    """int64 [65536] how many float32 values (as uint32 bits) have each upper half of the ordered key."""
    parts = (bits[begin : begin + CHUNK] for begin in range(0, len(bits), CHUNK))
    return sum(np.bincount(ordered_keys(part) >> 16, minlength=65536) for part in parts)


def bin_sums(bits: np.ndarray, values: np.ndarray, weights: np.ndarray, edges: np.ndarray, first: np.ndarray, cut: np.ndarray) -> np.ndarray:
    """[bins, 2] weight and first moment of the values between ascending uint32 `edges`, 0 in cells with cut 0. The kernel needs `first`."""
    sums = np.zeros((len(edges), 2))
    for begin in range(0, len(bits), CHUNK):
        keys = ordered_keys(bits[begin : begin + CHUNK])
        wanted = np.flatnonzero(cut[keys >> 16])
        place = np.searchsorted(edges, keys[wanted], side="right") - 1
        weight = weights[begin + wanted].astype(np.float64) if len(weights) else np.ones(len(place))
        sums[:, 0] += np.bincount(place, weight, len(edges))
        sums[:, 1] += np.bincount(place, weight * values[begin + wanted], len(edges))
    return sums
