"""Rounding to integers."""

import numpy as np

from compress.formats import Rounding


def round_to(values: np.ndarray, rounding: Rounding) -> np.ndarray:
    """Nearest integers as floats; ties go to the even one, away from zero, or up."""
    if rounding == "half_even":
        return np.rint(values)
    if rounding == "half_up":
        return np.floor(values + np.float32(0.5))
    whole = np.trunc(values)
    return whole + np.copysign(np.abs(values - whole) >= 0.5, values)
