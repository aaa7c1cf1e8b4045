"""What goes into a LiteRT interpreter and comes out of it, where a file's inputs and outputs are codes. A detail is the interpreter's own of a tensor."""

from collections.abc import Mapping
from typing import Any

import numpy as np


def encoded(array: np.ndarray, detail: Mapping[str, Any]) -> np.ndarray:
    """As the file wants it: cast, or the codes of a float array where an input is codes."""
    (scale, zero_point), dtype = detail["quantization"], detail["dtype"]
    if scale and array.dtype.kind == "f" and np.issubdtype(dtype, np.integer):
        limits = np.iinfo(dtype)
        array = np.clip(np.rint(array / np.float32(scale)) + zero_point, limits.min, limits.max)
    return np.ascontiguousarray(array, dtype)


def decoded(array: np.ndarray, detail: Mapping[str, Any]) -> np.ndarray:
    """Numbers, where an output is codes."""
    scale, zero_point = detail["quantization"]
    codes = scale and array.dtype.kind in "iu"
    return (array.astype(np.float32) - np.float32(zero_point)) * np.float32(scale) if codes else array
