"""What times arms in place of `evaluators.metrics.latency` where one of them is made slower by waiting."""

import time
from functools import partial
from typing import Any

import numpy as np

from evaluators import timing
from evaluators.metrics import latency
from evaluators.metrics.latency import HELD, warm_up  # noqa: F401  (warm_up is asked for by name)


def load(*arguments: Any) -> dict[str, Any]:
    """`evaluators.metrics.latency:load` of a session whose runs last `arguments[-1]` times as long."""
    *own, longer = arguments
    found = latency.load(*own)
    HELD.session.timed = partial(prolonged, timing.clocked(HELD.session.run), longer)
    return found


def prolonged(once: timing.Once, longer: float, batch: Any) -> int:
    """A run, and then waiting at work until it has lasted `longer` times as long."""
    begin = time.perf_counter_ns()
    end = begin + longer * once(batch)
    while time.perf_counter_ns() < end:
        pass
    return time.perf_counter_ns() - begin


def block(runs: int) -> np.ndarray:
    return timing.timed_block(latency.once(), HELD.inputs, runs)


def energy() -> dict[str, Any]:
    return {}
