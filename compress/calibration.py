"""Activation ranges from samples, in memory that does not grow with their number."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from compress.errors import InputError
from compress.formats import StaticActivations

BINS = 4096  # of the histograms; even, so that doubling the reach merges pairs of bins


@dataclass(frozen=True)
class Range:
    """Real values that an activation format must reach, both included. Zero is always inside."""

    low: float
    high: float

    def __post_init__(self):
        object.__setattr__(self, "low", min(float(self.low), 0.0))
        object.__setattr__(self, "high", max(float(self.high), 0.0))


class Observer(Protocol):
    def update(self, values: np.ndarray) -> None:
        """Takes in the values of one batch, any shape."""
        ...

    def range(self) -> Range: ...


class MinMax:
    """The extremes of everything seen."""

    def __init__(self):
        self.low, self.high = np.inf, -np.inf

    def update(self, values: np.ndarray) -> None:
        if values.size:
            self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))

    def range(self) -> Range:
        return Range(self.low, self.high)


class Histogram:
    """Counts over [-reach, reach] in BINS equal bins; the reach doubles when a value lies outside, merging pairs of bins."""

    def __init__(self):
        self.extremes = MinMax()
        self.reach = 0.0
        self.counts = np.zeros(BINS, np.int64)

    def update(self, values: np.ndarray) -> None:
        flat = np.asarray(values, np.float32).ravel()
        self.extremes.update(flat)
        largest = float(np.abs(flat).max(initial=0.0))
        if largest > self.reach:
            self.grow(2.0 ** np.ceil(np.log2(largest)))
        if self.reach:
            self.counts += np.histogram(flat, BINS, (-self.reach, self.reach))[0]
        else:
            self.counts[BINS // 2] += flat.size

    def grow(self, reach: float) -> None:
        if self.reach:
            for _ in range(round(np.log2(reach / self.reach))):
                merged = self.counts.reshape(-1, 2).sum(1)
                self.counts = np.pad(merged, BINS // 4)
        self.reach = reach

    @property
    def centres(self) -> np.ndarray:
        return (np.arange(BINS) + 0.5) * (2 * self.reach / BINS) - self.reach

    def clipped(self, low: float, high: float) -> Range:
        """[low, high] cut to what was really seen."""
        return Range(max(low, self.extremes.low), min(high, self.extremes.high))


class Percentile(Histogram):
    """The range that keeps a share of the values, the rest cut equally from both ends."""

    def __init__(self, percentile: float):
        super().__init__()
        self.percentile = percentile

    def range(self) -> Range:
        share = np.cumsum(self.counts) / self.counts.sum()
        tail = (1 - self.percentile / 100) / 2
        width = 2 * self.reach / BINS
        low = np.searchsorted(share, tail, side="right") * width - self.reach
        high = (np.searchsorted(share, 1 - tail) + 1) * width - self.reach
        return self.clipped(low, high)


class LeastSquares(Histogram):
    """The shrunk range with the least expected squared error: clipping, counted, plus rounding, step^2 / 12 (Choukroun et al. 2019)."""

    def __init__(self, bits: int):
        super().__init__()
        self.steps = 2**bits - 1

    def range(self) -> Range:
        centres, full = self.centres, self.extremes.range()
        best, best_error = full, np.inf
        for shrink in np.linspace(1.0, 0.1, 181):
            low, high = full.low * shrink, full.high * shrink
            outside = centres - np.clip(centres, low, high)
            rounding = ((high - low) / self.steps) ** 2 / 12
            error = float((self.counts * np.where(outside == 0, rounding, outside**2)).sum())
            if error < best_error:
                best, best_error = Range(low, high), error
        return best


class Entropy(Histogram):
    """The range [-t, t] whose quantized distribution of magnitudes has the least KL divergence from the real one (TensorRT's method).

    Exact zeros, half of a ReLU's output, do not count: every format holds them exactly.
    With more levels than histogram bins (16 bits) nothing is clipped: the result is min-max.
    """

    def __init__(self, bits: int):
        super().__init__()
        self.levels = 2 ** (bits - 1)

    def update(self, values: np.ndarray) -> None:
        super().update(values[values != 0])

    def range(self) -> Range:
        magnitudes = self.counts[BINS // 2 :] + self.counts[: BINS // 2][::-1]
        bins = len(magnitudes)
        best, least = bins, np.inf
        for kept in range(self.levels, bins + 1, max(1, self.levels // 8)):
            divergence = self.divergence(magnitudes, kept)
            if divergence < least:
                best, least = kept, divergence
        threshold = best * self.reach / bins if least < np.inf else self.reach
        return self.clipped(-threshold, threshold)

    def divergence(self, counts: np.ndarray, kept: int) -> float:
        real = counts[:kept].astype(np.float64)
        target = real.copy()
        target[-1] += counts[kept:].sum()
        level = np.arange(kept) * self.levels // kept
        filled = real > 0
        if not filled.any():
            return np.inf
        shared = np.bincount(level, real, self.levels) / np.maximum(np.bincount(level, filled, self.levels), 1)
        model = np.where(filled, shared[level], 0)
        if np.any((target > 0) & (model == 0)):
            return np.inf
        p, q = target / target.sum(), model / model.sum()
        live = p > 0
        return float((p[live] * np.log(p[live] / q[live])).sum())


def observer(activations: StaticActivations) -> Observer:
    """A fresh observer for one tensor."""
    return {
        "minmax": MinMax,
        "percentile": lambda: Percentile(activations.percentile),
        "mse": lambda: LeastSquares(activations.bits),
        "entropy": lambda: Entropy(activations.bits),
    }[activations.method]()


def observe(batches: Iterable[Mapping[str, np.ndarray]], activations: StaticActivations) -> dict[str, Range]:
    """The range of every named float tensor over all batches. InputError for no batches, and for NaN or infinity in one."""
    seen: dict[str, Observer] = {}
    for batch in batches:
        for name, values in batch.items():
            if not np.all(np.isfinite(values)):
                raise InputError(f"calibration: {name} holds NaN or infinity; look at the inputs and the model")
            seen.setdefault(name, observer(activations)).update(values)
    if not seen:
        raise InputError("calibration data is empty: give some 100 typical inputs")
    return {name: found.range() for name, found in seen.items()}
