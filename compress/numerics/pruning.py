"""Which weights become zero: saliencies, masks of exact counts for every pattern, and SparseGPT.

Weights and scores are canonical, [out, in, *kernel]; n:m groups and blocks see them as [out, in * kernel]. A mask is True where a weight is kept.
Of equal scores the first (in row-major order) go first, so a mask follows from the scores alone.
"""

from collections.abc import Mapping

import numpy as np

from compress.errors import InputError
from compress.formats import PerGroup
from compress.numerics import reach
from compress.numerics.encoded import checked
from compress.sparsity import Blocks, NofM, Pattern, Saliency, Unstructured


def saliency(values: np.ndarray, kind: Saliency, second_moment: np.ndarray | None = None) -> np.ndarray:
    """float32 in the values' shape: how much each weight matters, by magnitude or (wanda) magnitude times the root mean square of its input.

    second_moment  of the layer's inputs, [in * kernel, in * kernel] or its diagonal [in * kernel]; a common factor changes nothing
    """
    if kind == "magnitude":
        return np.abs(values, dtype=np.float32)
    if kind != "wanda":
        raise InputError(f"saliency {kind} moves the kept weights too, so it has no scores of its own: call sparsegpt")
    moment = checked_moment(second_moment, values, "wanda", dimensions=(1, 2))
    power = moment if moment.ndim == 1 else np.diagonal(moment)
    rows = np.abs(values, dtype=np.float32).reshape(len(values), -1)
    return (rows * np.sqrt(power).astype(np.float32)).reshape(values.shape)


def channel_scores(values: np.ndarray, kind: Saliency = "magnitude") -> np.ndarray:
    """float32 [out]: the L2 norm of each output channel's weights."""
    if kind != "magnitude":
        raise InputError(f"channels are ranked by magnitude (the norm of their weights), not by {kind}")
    return np.sqrt(np.square(values.reshape(len(values), -1), dtype=np.float64).sum(1)).astype(np.float32)


def mask(scores: np.ndarray, pattern: Pattern, sparsity: float | None = None) -> np.ndarray:
    """bool in the scores' shape: what a layer keeps.

    unstructured  all but exactly round(sparsity * size) weights
    n:m           exactly n of every m; `sparsity` may be left out, or lie below the pattern's own while it grows: then m - round(sparsity * m).
                  A shorter group of l weights at the end of a channel keeps ceil(n * l / m)
    blocks        all but exactly round(sparsity * tiles) tiles, by the sum of their scores; tiles at the edges may be smaller

    InputError for a sparsity outside [0, 1), NaN scores, and patterns that one layer alone cannot meet.
    """
    reject_nan(scores)
    if isinstance(pattern, NofM):
        pieces = reach.split(scores, grouped(pattern))
        return reach.join([~lowest(rows, rows.shape[1] - kept_of(pattern, rows.shape[1], sparsity)) for rows in pieces], scores.shape)
    reject_other_patterns(pattern)
    if isinstance(pattern, Blocks):
        tiles = tile_sums(scores, pattern)
        kept = ~lowest(tiles.reshape(1, -1), count_of(sparsity, tiles.size)).reshape(tiles.shape)
        return untiled(kept, pattern, scores.shape)
    return ~lowest(scores.reshape(1, -1), count_of(sparsity, scores.size)).reshape(scores.shape)


def global_masks(scores: Mapping[str, np.ndarray], sparsity: float) -> dict[str, np.ndarray]:
    """bool masks by name: all but exactly round(sparsity * weights) of the weights of all tensors together, under one threshold."""
    if not scores:
        return {}
    together = np.concatenate([np.ravel(score) for score in scores.values()])
    reject_nan(together)
    kept = ~lowest(together.reshape(1, -1), count_of(sparsity, together.size))[0]
    ends = np.cumsum([score.size for score in scores.values()])
    return {name: part.reshape(score.shape) for (name, score), part in zip(scores.items(), np.split(kept, ends[:-1]), strict=True)}


def holds(values: np.ndarray, pattern: Pattern, sparsity: float | None = None) -> str | None:
    """Why values do not have the zeros that `mask` with these arguments would have left, or None; more zeros are never wrong."""
    used = values != 0
    if isinstance(pattern, NofM):
        for rows in reach.split(used, grouped(pattern)):
            most = kept_of(pattern, rows.shape[1], sparsity)
            full = int((np.count_nonzero(rows, axis=1) > most).sum())
            if full:
                return f"{full} of {len(rows)} groups of {rows.shape[1]} weights hold more than {most} that are not 0"
        return None
    reject_other_patterns(pattern)
    what, empty = ("tiles", tile_sums(used, pattern) == 0) if isinstance(pattern, Blocks) else ("weights", ~used)
    found, wanted = int(np.count_nonzero(empty)), count_of(sparsity, empty.size)
    return f"{found} of {empty.size} {what} are 0, fewer than {wanted}" if found < wanted else None


def lowest(rows: np.ndarray, count: int) -> np.ndarray:
    """bool [n, m]: exactly the `count` smallest of each row; of equal ones the first."""
    if count == 0:
        return np.zeros(rows.shape, bool)
    edge = np.partition(rows, count - 1, axis=1)[:, count - 1 : count]
    found, ties = rows < edge, rows == edge
    rest = count - np.count_nonzero(found, axis=1, keepdims=True)
    found |= ties & (np.cumsum(ties, axis=1) <= rest)
    return found


def count_of(sparsity: float | None, size: int) -> int:
    """How many of `size` are zero."""
    if sparsity is None or not 0 <= sparsity < 1:
        raise InputError(f"sparsity: a share of zeros, at least 0 and below 1, not {sparsity}")
    return round(sparsity * size)


def grouped(pattern: NofM) -> PerGroup:
    return PerGroup(pattern.m, ragged="short")


def kept_of(pattern: NofM, length: int, sparsity: float | None = None) -> int:
    """How many weights a group of `length` keeps: n of m, or more while the sparsity still grows."""
    if sparsity is not None and sparsity > pattern.sparsity + 1e-9:  # 1 - n/m may be off by a rounding
        raise InputError(f"sparsity: {pattern} has {pattern.sparsity:.4g} zeros, not {sparsity}")
    n = pattern.n if sparsity is None else pattern.m - count_of(sparsity, pattern.m)
    return -(-n * length // pattern.m)


def tile_sums(scores: np.ndarray, pattern: Blocks) -> np.ndarray:
    """float64 [tile rows, tile columns]"""
    rows = scores.reshape(len(scores), -1)
    down = np.add.reduceat(rows, np.arange(0, rows.shape[0], pattern.rows), axis=0, dtype=np.float64)
    return np.add.reduceat(down, np.arange(0, rows.shape[1], pattern.columns), axis=1)


def untiled(tiles: np.ndarray, pattern: Blocks, shape: tuple[int, ...]) -> np.ndarray:
    """What is true of each tile, for each of its weights."""
    tall = np.repeat(tiles, pattern.rows, axis=0)[: shape[0]]
    return np.repeat(tall, pattern.columns, axis=1)[:, : int(np.prod(shape[1:]))].reshape(shape)


def reject_nan(scores: np.ndarray) -> None:
    if scores.size and np.isnan(scores.min()):
        raise InputError(f"{int(np.isnan(scores).sum())} of {scores.size} scores are NaN; repair the model's weights first")


def reject_other_patterns(pattern: Pattern) -> None:
    if isinstance(pattern, Unstructured) and pattern.scope == "global":
        raise InputError("a global sparsity says something about all tensors together, not about each: see global_masks")
    if not isinstance(pattern, Unstructured | Blocks):
        raise InputError(f"pattern {pattern} takes weights out of the model; it leaves no zeros")


def checked_moment(moment: np.ndarray | None, values: np.ndarray, kind: str, dimensions: tuple[int, ...]) -> np.ndarray:
    """float64 second moment that fits the values."""
    inputs = int(np.prod(values.shape[1:]))
    if moment is None:
        raise InputError(f"{kind} needs calibration data: the second moment [{inputs}, {inputs}] of the layer's inputs")
    moment = np.asarray(moment, np.float64)
    if moment.ndim not in dimensions or moment.shape != (inputs,) * moment.ndim:
        raise InputError(f"{kind}: a weight {list(values.shape)} needs a second moment [{inputs}, {inputs}], not {list(moment.shape)}")
    power = moment if moment.ndim == 1 else np.diagonal(moment)
    if not np.isfinite(moment).all() or (power < 0).any():
        raise InputError(f"{kind}: the second moment holds NaN, infinity, or a negative power; check the calibration data")
    return moment


def sparsegpt(
    values: np.ndarray, second_moment: np.ndarray, pattern: Pattern, sparsity: float | None = None, block: int = 128, damping: float = 0.01
) -> tuple[np.ndarray, np.ndarray]:
    """(float32 values with zeros, bool mask): removed weights are made up for by the columns after them (Frantar & Alistarh 2023).

    Columns go from left to right; what a column's zeros cost in the layer's output is spread over the later ones by the inverse of the second moment.
    Unstructured zeros are chosen among all weights of `block` columns (exactly round(sparsity * size) in the end), n:m ones when their group is reached.

    damping  share of the mean power of the inputs that is added to each
    Inputs that were always 0 in the calibration data lose their weights first and change nothing else; those that are kept stay as they are.
    """
    if isinstance(pattern, Blocks):
        raise InputError(f"sparsegpt knows unstructured and n:m patterns, not {pattern}")
    if not isinstance(pattern, NofM):
        reject_other_patterns(pattern)
    checked(values)
    factor, alive = inverse_factor(checked_moment(second_moment, values, "sparsegpt", dimensions=(2,)), damping)
    rows = values.reshape(len(values), -1).astype(np.float64)
    kept = np.ones(rows.shape, bool)
    width = max(1, block // pattern.m) * pattern.m if isinstance(pattern, NofM) else block
    for start in range(0, rows.shape[1], width):
        stop = min(start + width, rows.shape[1])
        part = slice(start, stop)
        drop = None if isinstance(pattern, NofM) else count_of(sparsity, len(rows) * stop) - count_of(sparsity, len(rows) * start)
        rows[:, part], kept[:, part], errors = pruned_block(rows[:, part], factor[part, part], alive[part], pattern, drop)
        rows[:, stop:] -= errors @ factor[part, stop:]
    return np.where(kept, rows, 0).astype(np.float32).reshape(values.shape), kept.reshape(values.shape)


def pruned_block(rows: np.ndarray, factor: np.ndarray, alive: np.ndarray, pattern: Pattern, drop: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rows, mask, errors over the factor's diagonal) of [out, columns], whose zeros are made up for within the block."""
    rows = np.asfortranarray(rows)  # it goes by columns
    kept, errors, diagonal = np.ones(rows.shape, bool), np.zeros_like(rows), np.diagonal(factor)
    step = pattern.m if isinstance(pattern, NofM) else rows.shape[1]
    for i in range(rows.shape[1]):
        if i % step == 0:
            group = slice(i, i + step)
            scores = np.square(rows[:, group] / diagonal[group]) * alive[group]
            kept[:, group] = mask(scores, pattern) if drop is None else ~lowest(scores.reshape(1, -1), drop).reshape(scores.shape)
        errors[:, i] = np.where(kept[:, i], 0, rows[:, i]) / diagonal[i]
        rows[:, i + 1 :] -= np.outer(errors[:, i], factor[i, i + 1 :])
    return rows, kept, errors


def inverse_factor(moment: np.ndarray, damping: float) -> tuple[np.ndarray, np.ndarray]:
    """(upper triangular U with U^T U = inverse of the damped moment, which inputs were ever used).

    U[i, i]^2 is the first diagonal element of the inverse of moment[i:, i:]: of what is left when the columns before i are done.
    """
    from scipy.linalg import solve_triangular

    power = np.diagonal(moment)
    alive = power > 0
    mean = power[alive].mean() if alive.any() else 1.0
    damped = moment + np.diag(np.where(alive, damping * mean, mean))
    try:
        lower = np.linalg.cholesky(damped[::-1, ::-1])  # flipped, for damped = R R^T with R upper triangular: U is its inverse
    except np.linalg.LinAlgError as error:
        raise InputError("sparsegpt: the second moment is not positive definite even with damping; give more calibration data or raise `damping`") from error
    return solve_triangular(lower[::-1, ::-1], np.eye(len(moment)), lower=False), alive
