"""Scales and zero points of integer formats: one function per rule, on values laid out as [scales, values per scale]."""

import numpy as np

from compress.formats import IntFormat
from compress.numerics.rounding import round_to

TINY = np.finfo(np.float32).tiny
MSE_GRID = np.linspace(0.2, 1.0, 81)  # shrink factors that the mse rules try


def to_bfloat16_bits(values: np.ndarray) -> np.ndarray:
    """uint16 bit patterns of float32 values rounded half to even to bfloat16; NaN stays NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def from_bfloat16_bits(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def stored(scale: np.ndarray, dtype: str) -> np.ndarray:
    """float32 scales rounded to what the storage dtype can hold; a scale of 0 or below the dtype's range becomes its smallest normal value."""
    if dtype == "float32":
        return np.where(np.abs(scale) < TINY, np.float32(1), scale).astype(np.float32)
    if dtype == "float16":
        kept, smallest = scale.astype(np.float16).astype(np.float32), np.finfo(np.float16).smallest_normal
    else:
        kept, smallest = from_bfloat16_bits(to_bfloat16_bits(scale)), TINY
    return np.where(np.abs(scale) < TINY, np.float32(1), np.where(np.abs(kept) < smallest, np.float32(smallest), kept)).astype(np.float32)


def fit(rows: np.ndarray, fmt: IntFormat) -> tuple[np.ndarray, np.ndarray | None]:
    """Scales float32 [n] and zero points int32 [n] (None where symmetric) of values float32 [n, m]. An all-zero row gets scale 1."""
    low, high = fmt.code_range
    if fmt.rule == "asymmetric":
        return asymmetric(rows.min(1), rows.max(1), fmt)
    if fmt.rule == "asymmetric_mse":
        bottom, top = rows.min(1), rows.max(1)
        return least_squares(rows, fmt, lambda shrink: asymmetric(bottom * shrink, top * shrink, fmt))
    amax = np.abs(rows).max(1)
    if fmt.rule == "mse":
        return least_squares(rows, fmt, lambda shrink: (stored(amax * np.float32(shrink) / np.float32(high), fmt.scale_dtype), None))
    if fmt.rule == "half":
        scale = amax / np.float32(high + 0.5)
    elif fmt.rule == "signed":
        extreme = np.take_along_axis(rows, np.abs(rows).argmax(1)[:, None], 1)[:, 0]
        scale = extreme / np.float32(low)
    elif fmt.rule == "noclip":
        scale = np.maximum(-rows.min(1) / np.float32(-low), rows.max(1) / np.float32(high))
    else:
        scale = amax / np.float32(high)
    return stored(scale, fmt.scale_dtype), None


def asymmetric(bottom: np.ndarray, top: np.ndarray, fmt: IntFormat) -> tuple[np.ndarray, np.ndarray]:
    """Scales and zero points of ranges [bottom, top] widened to hold 0; the zero point follows from the scale as stored."""
    low, high = fmt.code_range
    bottom, top = np.minimum(bottom, 0), np.maximum(top, 0)
    scale = stored((top - bottom) / np.float32(high - low), fmt.scale_dtype)
    zero = np.clip(round_to(low - bottom / scale, fmt.rounding), low, high)
    return scale, zero.astype(np.int32)


def least_squares(rows: np.ndarray, fmt: IntFormat, candidate) -> tuple[np.ndarray, np.ndarray | None]:
    """The scales and zero points of `candidate(shrink)` with the least squared error of each row, over MSE_GRID."""
    best_error = np.full(len(rows), np.inf)
    best_scale, best_zero = candidate(1.0)
    for shrink in MSE_GRID[::-1]:
        scale, zero = candidate(shrink)
        error = np.square(dequantize(quantize(rows, scale, zero, fmt), scale, zero) - rows).sum(1, dtype=np.float64)
        better = error < best_error
        best_error = np.where(better, error, best_error)
        best_scale = np.where(better, scale, best_scale)
        best_zero = None if zero is None else np.where(better, zero, best_zero)
    return best_scale, best_zero


def quantize(rows: np.ndarray, scale: np.ndarray, zero: np.ndarray | None, fmt: IntFormat) -> np.ndarray:
    """Codes int8 (int16 for 16 bits) [n, m]: round(x / scale + zero), saturated to the format's range."""
    low, high = fmt.code_range
    scaled = rows / scale[:, None]
    if zero is not None:
        scaled = scaled + zero[:, None].astype(np.float32)
    return np.clip(round_to(scaled, fmt.rounding), low, high).astype(np.int16 if fmt.bits == 16 else np.int8)


def dequantize(codes: np.ndarray, scale: np.ndarray, zero: np.ndarray | None) -> np.ndarray:
    """float32 [n, m]: (code - zero point) * scale."""
    centred = codes.astype(np.float32)
    if zero is not None:
        centred = centred - zero[:, None].astype(np.float32)
    return centred * scale[:, None]
