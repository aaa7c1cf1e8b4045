"""The compiled half of `kmeans`: importing this module needs numba."""

import numpy as np
from numba import get_num_threads, njit, prange

compiled = njit(cache=True, nogil=True, error_model="numpy")
threaded = njit(cache=True, nogil=True, error_model="numpy", parallel=True)

MOST_PARTS = 4  # of a long row, each with tables of its own: more threads would cost more memory than they save time


@compiled
def prefix_sums(values, weights, centre, middle):
    """[n + 1, 3] running sums of w, w (v - centre) and w (v - centre)^2, outwards from `middle`: a far outlier then cancels nothing near the centre."""
    count = len(values)
    sums = np.zeros((count + 1, 3))
    for i in range(middle, count):
        away = values[i] - centre
        sums[i + 1, 0] = sums[i, 0] + weights[i]
        sums[i + 1, 1] = sums[i, 1] + weights[i] * away
        sums[i + 1, 2] = sums[i, 2] + weights[i] * away * away
    for i in range(middle - 1, -1, -1):
        away = values[i] - centre
        sums[i, 0] = sums[i + 1, 0] - weights[i]
        sums[i, 1] = sums[i + 1, 1] - weights[i] * away
        sums[i, 2] = sums[i + 1, 2] - weights[i] * away * away
    return sums


@compiled
def spread(sums, a, b):
    """The weighted squared distances of points a to b (excluded) from their mean."""
    weight = sums[b, 0] - sums[a, 0]
    if weight <= 0:
        return 0.0
    first = sums[b, 1] - sums[a, 1]
    return max(sums[b, 2] - sums[a, 2] - first * first / weight, 0.0)


@compiled
def best_start(sums, previous, a, b, low, high):
    """The q in low..high that makes previous[q] + spread(a + q, b) least, and that sum."""
    least, at = np.inf, low
    for q in range(low, high + 1):
        total = previous[q] + spread(sums, a + q, b)
        if total < least:
            least, at = total, q
    return at, least


@compiled
def next_layer(sums, previous, current, starts, a, last):
    """One more cluster: current[p] = min over q <= p of previous[q] + spread(a + q, a + p + 1), starts[p] = its q.

    The best q rises with p, so the p of odd multiples of a step lie between the answers of their neighbours (divide and conquer).
    """
    starts[0], current[0] = best_start(sums, previous, a, a + 1, 0, 0)
    step = 1
    while step <= last:
        step *= 2
    while step:
        for p in range(step, last + 1, 2 * step):
            high = min(p, starts[p + step]) if p + step <= last else p
            starts[p], current[p] = best_start(sums, previous, a, a + p + 1, starts[p - step], high)
        step //= 2


@compiled
def first_layer(sums, layer, a, last, pinned):
    """Layer 0 of a side that begins with the cluster at zero, or layer 1 of one that doesn't."""
    for p in range(last + 1):
        layer[p] = sums[a + p, 2] - sums[a, 2] if pinned else spread(sums, a, a + p + 1)


@compiled
def boundaries(sums, clusters, pinned, out):
    """Writes where each cluster but the first starts; a pinned one at zero comes before the `clusters`.

    Only the boundary in the middle is tracked through the layers, then both halves are solved anew (Hirschberg): memory O(points), not O(points clusters).
    """
    count = len(sums) - 1
    previous, current = np.empty(count + 1), np.empty(count + 1)
    starts, middle, middles = np.empty(count + 1, np.int64), np.empty(count + 1, np.int64), np.empty(count + 1, np.int64)
    todo = [(0, count, clusters, 0 if pinned else 1, 0)]
    while len(todo):
        a, b, k, done, at = todo.pop()
        if k == done:
            continue
        half, last = k // 2, b - a - k
        first_layer(sums, previous, a, last, done == 0)
        for j in range(done + 1, k + 1):
            origin = a + j - 1
            if j == k:
                starts[last], current[last] = best_start(sums, previous, origin, b, 0, last)
            else:
                next_layer(sums, previous, current, starts, origin, last)
            if j > half:
                for p in range(last if j == k else 0, last + 1):
                    middles[p] = origin + starts[p] if j == half + 1 else middle[starts[p]]
                middle, middles = middles, middle
            previous, current = current, previous
        out[at + half - done] = middle[last]
        todo.append((a, middle[last], half, done, at))
        todo.append((middle[last], b, k - half, 1, at + half - done + 1))


@compiled
def side_costs(sums, clusters):
    """[clusters + 1] the least cost of a side of zero for each number of clusters beside the one at zero."""
    count = len(sums) - 1
    previous, current, starts = np.empty(count + 1), np.empty(count + 1), np.empty(count + 1, np.int64)
    costs = np.empty(clusters + 1)
    first_layer(sums, previous, 0, count, True)
    costs[0] = previous[count]
    for j in range(1, clusters + 1):
        next_layer(sums, previous, current, starts, j - 1, count - j)
        costs[j] = current[count - j]
        previous, current = current, previous
    return costs


@compiled
def partition_around_zero(values, weights, clusters):
    count = len(values)
    negative = np.searchsorted(values, 0.0)
    positive = count - np.searchsorted(values, 0.0, side="right")
    left = prefix_sums(-values[:negative][::-1], weights[:negative][::-1].copy(), 0.0, 0)
    right = prefix_sums(values[count - positive :].copy(), weights[count - positive :].copy(), 0.0, 0)
    free = min(clusters - 1, negative + positive)
    below, above = side_costs(left, min(free, negative)), side_costs(right, min(free, positive))
    least, lower = np.inf, 0
    for j in range(max(0, free - positive), min(free, negative) + 1):
        if below[j] + above[free - j] < least:
            least, lower = below[j] + above[free - j], j
    found = np.zeros(free + 2, np.int64)
    boundaries(left, lower, True, found[1:])
    found[1 : lower + 1] = negative - found[1 : lower + 1][::-1].copy()
    boundaries(right, free - lower, True, found[lower + 1 :])
    found[lower + 1 :] += count - positive
    found[free + 1] = count
    return found, lower


@compiled
def partition(values, weights, clusters, exact_zero):
    """Where the clusters of ascending points start, ended by their number, and which cluster is held at zero (-1: none)."""
    if exact_zero:
        return partition_around_zero(values, weights, clusters)
    count = len(values)
    found = np.zeros(min(clusters, count) + 1, np.int64)
    boundaries(prefix_sums(values, weights, values[count // 2], count // 2), len(found) - 1, False, found[1:])
    found[-1] = count
    return found, -1


@compiled
def write_means(values, weights, starts, zero, out):
    for j in range(len(starts) - 1):
        if j == zero:  # may be empty
            out[j] = 0.0
            continue
        total, weight = 0.0, 0.0
        centre = values[starts[j]]
        for i in range(starts[j], starts[j + 1]):
            total += weights[i] * (values[i] - centre)
            weight += weights[i]
        out[j] = centre + total / weight


@compiled
def distinct_points(row, weights):
    """The different values of a row ascending, and the weight of each; those without weight are left out unless none has any."""
    weighted = len(weights) > 0 and weights.max() > 0
    order = np.argsort(row) if weighted else np.empty(0, np.int64)
    ascending = row[order] if weighted else np.sort(row)
    values, mass, count = np.empty(len(row)), np.empty(len(row)), 0
    for i in range(len(row)):
        weight = np.float64(weights[order[i]]) if weighted else 1.0
        if weight == 0:
            continue
        if count and values[count - 1] == ascending[i]:
            mass[count - 1] += weight
        else:
            values[count], mass[count] = ascending[i], weight
            count += 1
    return values[:count], mass[:count]


@threaded
def codebooks(rows, weights, clusters, exact_zero):
    """float64 [n, clusters] the optimal entries of each row in any order, unused ones infinite; weights [n, m] or [n, 0]."""
    entries = np.full((len(rows), clusters), np.inf)
    for i in prange(len(rows)):
        values, mass = distinct_points(rows[i], weights[i])
        starts, zero = partition(values, mass, clusters, exact_zero)
        write_means(values, mass, starts, zero, entries[i])
    return entries


@compiled
def ordered_key(bits):
    """uint32 that ascends with the float32 of these bits."""
    return bits ^ np.uint32(0xFFFFFFFF) if bits >> np.uint32(31) else bits ^ np.uint32(0x80000000)


@threaded
def cell_counts_in(parts, bits):
    counts = np.zeros((parts, 65536), np.int64)
    for part in prange(parts):
        for i in range(len(bits) * part // parts, len(bits) * (part + 1) // parts):
            counts[part, ordered_key(bits[i]) >> np.uint32(16)] += 1
    return counts.sum(0)


def cell_counts(bits):
    """int64 [65536] how many float32 values (as uint32 bits) have each upper half of the ordered key."""
    return cell_counts_in(min(get_num_threads(), MOST_PARTS), bits)


@compiled
def bin_of(key, edges, low, size):
    """The last of `size` bins from `low` that begins at or before the key."""
    while size > 1:
        half = size >> 1
        low = low + half if edges[low + half] <= key else low
        size -= half
    return low


@threaded
def bin_sums_in(parts, bits, values, weights, edges, first, cut):
    sums = np.zeros((parts, len(edges), 2))
    for part in prange(parts):
        for i in range(len(bits) * part // parts, len(bits) * (part + 1) // parts):
            key = ordered_key(bits[i])
            cell = key >> np.uint32(16)
            if cut[cell] == 0:
                continue
            place, size = first[cell], first[cell + 1] - first[cell]
            if cut[cell] == 1:
                place += ((np.int64(key & np.uint32(0xFFFF)) + 1) * size - 1) >> 16
            else:
                place = bin_of(key, edges, place, size)
            weight = np.float64(weights[i]) if len(weights) else 1.0
            sums[part, place, 0] += weight
            sums[part, place, 1] += weight * values[i]
    return sums.sum(0)


def bin_sums(bits, values, weights, edges, first, cut):
    """[bins, 2] weight and first moment of the values between ascending uint32 `edges`.

    first  int64 [65537] the bin with which each cell (upper half of the key) begins
    cut    uint8 [65536] how a cell is cut: 0 not wanted, its sums stay 0; 1 into equal parts; 2 in any way
    """
    return bin_sums_in(min(get_num_threads(), MOST_PARTS), bits, values, weights, edges, first, cut)
