"""Rounding to integers."""

import numpy as np

from compress.formats import Rounding


def round_to(values: np.ndarray, rounding: Rounding) -> np.ndarray:
    """Nearest integers as floats; ties go to the even one, or away from zero."""
    if rounding == "half_even":
        return np.rint(values)
    whole = np.trunc(values)
    return whole + np.copysign(np.abs(values - whole) >= 0.5, values)
