"""When the fused kernels take over from the NumPy oracle, whose bits are the same."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import numpy as np

LARGE = 1 << 20  # values from which loading numba pays: half a second, and some seconds for compiling the first time
LOADED = 1 << 16  # values from which compiled loops pay once it is loaded
oracle = ContextVar("oracle", default=False)


def fast(values: np.ndarray) -> ModuleType | None:
    """compress.numerics.kernels for a large array where numba is installed, else None."""
    return loops(values.size, LARGE)


def loops(count: int, loading: int) -> ModuleType | None:
    """The same for this many values; numba is loaded for `loading` of them or more."""
    if count < (LOADED if "numba" in sys.modules else loading) or oracle.get() or find_spec("numba") is None:
        return None
    return import_module("compress.numerics.kernels")


@contextmanager
def oracle_only() -> Iterator[None]:
    """Arrays of any size go through NumPy inside."""
    token = oracle.set(True)
    try:
        yield
    finally:
        oracle.reset(token)
