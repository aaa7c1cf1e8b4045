"""Which range of values a scale is made for: minmax, percentile, entropy, OCTAV, and the exact scale of least squared error."""

import numpy as np

from compress.calibration import Entropy
from compress.formats import IntFormat

NEWTON_STEPS = 30
CHUNK = 1 << 22  # breakpoints that are sorted at a time
ZERO_POINTS = 16  # that the asymmetric search tries around that of the whole range, for formats of more than 4 bits


def magnitudes(rows: np.ndarray, fmt: IntFormat) -> np.ndarray:
    """float32 [n]: the largest magnitude of float32 [n, m] that a symmetric format shall reach, by percentile, octav or entropy."""
    if fmt.fit == "percentile":
        return np.quantile(np.abs(rows), fmt.percentile / 100, axis=1, method="higher").astype(np.float32)
    if fmt.fit == "octav":
        return octav(np.abs(rows), fmt.bits)
    return np.array([entropy(row, fmt.bits) for row in rows], np.float32)


def ends(rows: np.ndarray, amax: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 [n] twice: smallest and largest value within [-amax, amax]."""
    return np.maximum(rows.min(1), -amax), np.minimum(rows.max(1), amax)


def tails(rows: np.ndarray, fmt: IntFormat) -> tuple[np.ndarray, np.ndarray]:
    """float32 [n] twice: the range that leaves out half of a percentile's share at each end."""
    tail = (1 - fmt.percentile / 100) / 2
    return tuple(np.quantile(rows, q, axis=1, method=m).astype(np.float32) for q, m in ((tail, "lower"), (1 - tail, "higher")))


def octav(sizes: np.ndarray, bits: int) -> np.ndarray:
    """The clip of least expected squared error (Sakr et al. 2022, equation 6): Newton's iteration from the mean magnitude."""
    sizes = sizes.astype(np.float64)
    clip = sizes.mean(1)
    for _ in range(NEWTON_STEPS):
        outside = sizes > clip[:, None]
        inside = (sizes > 0) & ~outside
        denominator = 4.0**-bits / 3 * inside.sum(1) + outside.sum(1)
        clip = np.divide((sizes * outside).sum(1), denominator, out=sizes.max(1), where=outside.any(1))
    return np.minimum(clip, sizes.max(1)).astype(np.float32)


def entropy(row: np.ndarray, bits: int) -> float:
    observer = Entropy(bits)
    observer.update(row)
    found = observer.range()
    return max(-found.low, found.high)


def best_scale(rows: np.ndarray, low: int, high: int) -> np.ndarray:
    """float32 [n]: the positive scale with the least squared error of round(x / s) clamped to [low, high] (low <= 0 <= high).

    Exact: for fixed codes the best scale is sum(x q) / sum(q q), and leaves sum(x x) - sum(x q)^2 / sum(q q). As s falls, one code after another moves by
    1, at s = |x| / (k - 1/2); a running sum over these breakpoints, sorted, meets every set of codes that rounding can give. 0 for a row of zeros.
    """
    steps = np.arange(1, max(-low, high) + 1)
    best = np.zeros(len(rows), np.float32)
    each = max(1, CHUNK // (rows.shape[1] * len(steps)))
    for start in range(0, len(rows), each):
        best[start : start + each] = best_scale_of_some(rows[start : start + each].astype(np.float64), low, high, steps)
    return best


def best_scale_of_some(rows: np.ndarray, low: int, high: int, steps: np.ndarray) -> np.ndarray:
    sizes = np.abs(rows)
    reach = np.where(rows < 0, -low, high)
    with np.errstate(divide="ignore"):
        when = np.where((steps <= reach[..., None]) & (sizes[..., None] > 0), (steps - 0.5) / sizes[..., None], np.inf).reshape(len(rows), -1)
    products = np.broadcast_to(sizes[..., None], (*sizes.shape, len(steps))).reshape(len(rows), -1)
    squares = np.broadcast_to(2 * steps - 1, (*sizes.shape, len(steps))).reshape(len(rows), -1)
    order = np.argsort(when, axis=1, kind="stable")
    moved = np.isfinite(np.take_along_axis(when, order, 1))
    xq = np.cumsum(np.take_along_axis(products, order, 1) * moved, axis=1)
    qq = np.cumsum(np.take_along_axis(squares, order, 1) * moved, axis=1)
    gain = np.divide(xq**2, qq, out=np.zeros_like(xq), where=qq > 0)
    at = gain.argmax(1)[:, None]
    xq, qq = np.take_along_axis(xq, at, 1)[:, 0], np.take_along_axis(qq, at, 1)[:, 0]
    return np.divide(xq, qq, out=np.zeros_like(xq), where=qq > 0).astype(np.float32)


def best_zero_points(rows: np.ndarray, fmt: IntFormat, usual: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scales float32 [n] and integer zero points [n] with the least squared error; `usual` are those of the whole range.

    Exact for up to 4 bits, where every zero point is tried; of wider formats those within ZERO_POINTS of the usual one.
    """
    low, high = fmt.code_range
    candidates = range(low, high + 1) if fmt.bits <= 4 else range(-ZERO_POINTS, ZERO_POINTS + 1)
    best_error = np.full(len(rows), np.inf)
    scales, zeros = np.zeros(len(rows), np.float32), np.array(usual)
    for candidate in candidates:
        tried = np.full(len(rows), candidate) if fmt.bits <= 4 else np.clip(usual + candidate, low, high)
        for zero in np.unique(tried):
            at = np.flatnonzero(tried == zero)
            scale = best_scale(rows[at], low - int(zero), high - int(zero))
            error = squared_error(rows[at], scale, low - int(zero), high - int(zero))
            better = at[error < best_error[at]]
            best_error[at] = np.minimum(best_error[at], error)
            scales[better], zeros[better] = scale[np.isin(at, better)], zero
    return scales, zeros


def squared_error(rows: np.ndarray, scale: np.ndarray, low: int, high: int) -> np.ndarray:
    step = np.where(scale == 0, 1, scale)[:, None]
    return np.square(np.clip(np.rint(rows / step), low, high) * step - rows).sum(1, dtype=np.float64)
