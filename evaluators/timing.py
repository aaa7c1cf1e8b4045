"""The clock loops that run inside a measuring process."""

import gc
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

WINDOW = 5  # runs whose medians are compared for stability
STABLE = 0.02  # relative change between two windows that counts as steady

Once = Callable[[Any], int]
"""Runs one input and says how many nanoseconds that took, by the clock of whatever did the work."""


@dataclass(frozen=True)
class WarmUp:
    first_ns: int
    runs: int  # untimed runs, the first included
    estimate_ns: int  # median of the last runs
    steady: bool  # False where the time limit ended it


def clocked(run: Callable[[Any], Any]) -> Once:
    """`run`, which returns when its results are there, timed by this process's clock."""
    clock = time.perf_counter_ns

    def once(batch: Any) -> int:
        begin = clock()
        run(batch)
        return clock() - begin

    return once


def warm_up(once: Once, inputs: Sequence[Any], seconds: float, limit: float = 10.0) -> WarmUp:
    """Runs at least 10 times and `seconds`, until the median of 5 runs lies within 2% of the 5 before; `limit` seconds at most.

    What was loaded by then is left out of garbage collections from here on, so that blocks need not wait for one that finds nothing.
    """
    gc.collect()
    gc.freeze()
    times: list[int] = []
    started = time.perf_counter()
    while True:
        times.append(once(inputs[len(times) % len(inputs)]))
        spent = time.perf_counter() - started
        steady = len(times) >= 2 * WINDOW and spent >= seconds and within(times)
        if steady or (spent > limit and len(times) >= WINDOW):
            return WarmUp(times[0], len(times), int(median(times[-WINDOW:])), steady)


def within(times: list[int]) -> bool:
    last, before = median(times[-WINDOW:]), median(times[-2 * WINDOW : -WINDOW])
    return abs(last - before) <= STABLE * before


def timed_block(once: Once, inputs: Sequence[Any], runs: int) -> np.ndarray:
    """int64 nanoseconds of `runs` runs, after one untimed run that brings the model back into the caches. Every block starts with the same input."""
    times = np.empty(runs, np.int64)
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        once(inputs[0])
        for index in range(runs):
            times[index] = once(inputs[index % len(inputs)])
    finally:
        if collecting:
            gc.enable()
    return times


def pin(threads: int) -> list[int]:
    """The cores on which all threads of this process stay from now on: the last `threads` of those allowed. Core 0 serves most interrupts."""
    allowed = sorted(os.sched_getaffinity(0))
    chosen = allowed[-threads:]
    for thread in os.listdir("/proc/self/task"):
        os.sched_setaffinity(int(thread), chosen)
    return chosen
