"""Ratios of two things timed side by side in one run, since these machines are too noisy for anything else."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ratio:
    """Time of ours / time of the peer, with a 95% bootstrap interval over paired rounds."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def interleaved(ours: Callable[[], object], peer: Callable[[], object], rounds: int, repeats: int = 1) -> Ratio:
    """Both run `repeats` times in every round, in alternating order; the ratio of each round's medians, and their median."""
    took = {ours: [], peer: []}
    for turn in range(rounds):
        for work in (ours, peer) if turn % 2 else (peer, ours):
            took[work].append(statistics.median(timed(work) for _ in range(repeats)))
    return of_pairs(took[ours], took[peer])


def of_pairs(ours: Sequence[float], peer: Sequence[float]) -> Ratio:
    """The median of the ratios of times that were taken side by side."""
    ratios = np.asarray(ours) / np.asarray(peer)
    draws = np.random.default_rng(0).choice(ratios, (4000, len(ratios)))
    low, high = np.percentile(np.median(draws, 1), [2.5, 97.5])
    return Ratio(float(np.median(ratios)), float(low), float(high))
