"""When the fused kernels take over from the NumPy oracle, whose bits are the same."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import numpy as np

LARGE = 1 << 20  # values from which compiled loops pay: loading them takes half a second, compiling them the first time some seconds
oracle = ContextVar("oracle", default=False)


def fast(values: np.ndarray, large: int | None = None) -> ModuleType | None:
    """compress.numerics.kernels for an array of `large` values (LARGE where None) where numba is installed, else None."""
    if values.size < (LARGE if large is None else large) or oracle.get() or find_spec("numba") is None:
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
