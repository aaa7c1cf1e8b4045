"""Scales and zero points of integer formats: one function per rule, on values laid out as [scales, values per scale]."""

import numpy as np

from compress.formats import Arithmetic, CodebookFormat, Division, IntFormat, SmallScale
from compress.numerics.ranges import best_scale, best_zero_points, ends, magnitudes, tails
from compress.numerics.rounding import round_to

TINY = np.finfo(np.float32).tiny
SMALLEST_SCALE = {"normal": TINY, "eps": np.finfo(np.float32).eps}
REPLACED = {"one": 1.0, "typical": 2.0**-12, "litert": 2.0**-12, "converter": 2.0**-12}  # what becomes of scales below the normal range
LEAST_MAGNITUDE = {"litert": np.float32(1e-9), "converter": np.float32(5e-7)}  # that a range has, unless it is of zeros
HQQ_RANGE, HQQ_SCALE = np.float32(1e-4), np.float32(5e-5)
E4M3_LARGEST, E4M3_SMALLEST, E4M3_NORMAL, E4M3_EPS = 448.0, 2.0**-9, np.float32(2.0**-6), 2.0**-3


def to_bfloat16_bits(values: np.ndarray) -> np.ndarray:
    """uint16 bit patterns of float32 values rounded half to even to bfloat16; NaN stays NaN."""
    bits = np.asarray(values, np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def from_bfloat16_bits(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def to_e4m3(values: np.ndarray) -> np.ndarray:
    """Positive float32 values rounded half to even to E4M3 (finite, largest 448), as float32."""
    values = np.minimum(np.asarray(values, np.float32), np.float32(E4M3_LARGEST))
    step = np.exp2(np.maximum(np.floor(np.log2(np.maximum(values, E4M3_SMALLEST))), -6) - 3).astype(np.float32)
    return np.rint(values / step) * step


def power_of_two_above(values: np.ndarray) -> np.ndarray:
    """The smallest powers of two that are not below positive float32 values, within E8M0's 2^-127 to 2^127."""
    mantissa, exponent = np.frexp(values)
    return np.ldexp(np.float32(1), np.clip(exponent - (mantissa == 0.5), -126, 127)).astype(np.float32)


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """float32 values as the storage dtype holds them, infinite where they are too large for it."""
    if dtype == "float16":
        with np.errstate(over="ignore"):
            return np.asarray(values, np.float16).astype(np.float32)
    if dtype == "bfloat16":
        return from_bfloat16_bits(to_bfloat16_bits(values))
    if dtype == "float8_e4m3":
        return np.copysign(to_e4m3(np.abs(values)), values)
    return power_of_two_above(values) if dtype == "float8_e8m0" else np.asarray(values, np.float32)


def stored(scale: np.ndarray, dtype: str, small: SmallScale = "one") -> np.ndarray:
    """float32 scales as the storage dtype holds them. `one` and `typical`: those below the dtype's range become its smallest normal value."""
    if small not in REPLACED:
        return rounded(raised(scale, small), dtype)
    smallest = {"float16": np.finfo(np.float16).smallest_normal, "float8_e4m3": E4M3_SMALLEST}.get(dtype, TINY)
    kept = rounded(scale, dtype)
    if small == "litert" and dtype == "bfloat16":
        kept = rounded(kept, "float16")
        return np.where(kept == 0, np.float32(REPLACED[small]), kept)
    kept = np.where(np.abs(kept) < smallest, np.float32(smallest), kept)
    return np.where(np.abs(scale) < TINY, np.float32(max(REPLACED[small], smallest)), kept).astype(np.float32)


def raised(scale: np.ndarray, small: SmallScale) -> np.ndarray:
    """float32 scales by one of the rules that do not replace small ones."""
    if small in ("keep", "hqq"):
        return np.where(scale == 0, np.float32(1), scale)
    return np.where(scale < 0, np.minimum(scale, -SMALLEST_SCALE[small]), np.maximum(scale, SMALLEST_SCALE[small]))


def fit(rows: np.ndarray, fmt: IntFormat) -> tuple[np.ndarray, np.ndarray | None]:
    """Scales float32 [n] and zero points [n] (int32 or float32; None where symmetric) of values float32 [n, m]. A row of zeros gets what `small_scale` says."""
    if fmt.fit == "mse":
        return least_squares(rows, fmt)
    if fmt.fit == "minmax":
        return fit_ends(rows, rows.min(1), rows.max(1), fmt)
    if fmt.symmetric:
        amax = magnitudes(rows, fmt)
        return fit_ends(np.clip(rows, -amax[:, None], amax[:, None]), *ends(rows, amax), fmt)
    return asymmetric(*tails(rows, fmt), fmt)


def fit_ends(rows: np.ndarray, bottom: np.ndarray, top: np.ndarray, fmt: IntFormat) -> tuple[np.ndarray, np.ndarray | None]:
    """`fit` for the ranges [bottom, top], float32 [n]; the rows only tell which of two equal extremes comes first."""
    if fmt.symmetric:
        return stored(rounded(symmetric_scale(rows, bottom, top, fmt), fmt.arithmetic), fmt.working_dtype, fmt.small_scale), None
    return asymmetric(bottom, top, fmt)


def least_squares(rows: np.ndarray, fmt: IntFormat) -> tuple[np.ndarray, np.ndarray | None]:
    low, high = fmt.code_range
    if fmt.symmetric:
        scale = signed_best(rows, low, high) if fmt.negative_scales else best_scale(rows, low, high)
        return stored(scale, fmt.working_dtype, fmt.small_scale), None
    scale, zero = best_zero_points(rows, fmt, with_integer_zero(rows.min(1), rows.max(1), fmt)[1])
    return stored(scale, fmt.working_dtype, fmt.small_scale), zero.astype(np.int32)


def symmetric_scale(rows: np.ndarray, bottom: np.ndarray, top: np.ndarray, fmt: IntFormat) -> np.ndarray:
    low, high = fmt.code_range
    if fmt.rule == "noclip":
        return np.maximum(-bottom / np.float32(-low), top / np.float32(high))
    amax = np.maximum(-bottom, top) if fmt.signed else np.maximum(top, 0)
    if fmt.small_scale in LEAST_MAGNITUDE:
        least = LEAST_MAGNITUDE[fmt.small_scale]
        amax[(amax > 0) & (amax < least)] = least
    if fmt.rule == "half":
        return amax / np.float32(high + 0.5)
    if fmt.negative_scales:
        negative = -bottom >= top if fmt.rule == "signed" else bottom_first(rows, bottom, top)
        return np.where(negative, bottom, top) / np.float32(low)
    return amax / np.float32(high)


def bottom_first(rows: np.ndarray, bottom: np.ndarray, top: np.ndarray) -> np.ndarray:
    """bool [n]: whether the value of largest magnitude is the smallest one; of two with the same magnitude the first counts."""
    found = -bottom > top
    ties = np.flatnonzero(-bottom == top)
    if ties.size:
        found[ties] = rows[ties].argmin(1) < rows[ties].argmax(1)
    return found


def signed_best(rows: np.ndarray, low: int, high: int) -> np.ndarray:
    """The better of the best positive and the best negative scale."""
    candidates = np.stack([best_scale(rows, low, high), -best_scale(-rows, low, high)])
    step = np.where(candidates == 0, 1, candidates)[..., None]
    error = np.square(np.clip(np.rint(rows / step), low, high) * step - rows).sum(-1, dtype=np.float64)
    return np.where(error[0] <= error[1], candidates[0], candidates[1])


def asymmetric(bottom: np.ndarray, top: np.ndarray, fmt: IntFormat) -> tuple[np.ndarray, np.ndarray]:
    low, high = fmt.code_range
    if fmt.zero_point == "integer":
        scale, zero = with_integer_zero(bottom, top, fmt)
        return scale, zero.astype(np.int32)
    exact = rounded(rounded(top - bottom, fmt.arithmetic) / np.float32(high - low), fmt.arithmetic)
    if fmt.small_scale == "hqq":
        exact = np.where(top - bottom <= HQQ_RANGE, np.float32(1), np.maximum(exact, HQQ_SCALE))
    scale = stored(exact, fmt.working_dtype, fmt.small_scale)
    if fmt.zero_point == "float":
        return scale, rounded(np.float32(low) - rounded(bottom / scale, fmt.arithmetic), fmt.working_dtype)
    exact = exact if fmt.small_scale in (*REPLACED, "keep") else raised(exact, fmt.small_scale)
    shift = rounded(bottom - rounded(np.float32(low) * exact, fmt.arithmetic), fmt.arithmetic)
    return scale, rounded(shift, fmt.working_dtype)  # as torchao has it: from the scale before it is rounded


def with_integer_zero(bottom: np.ndarray, top: np.ndarray, fmt: IntFormat) -> tuple[np.ndarray, np.ndarray]:
    """Scales and zero points of ranges [bottom, top] widened to hold 0; the zero point follows from the scale as stored."""
    low, high = fmt.code_range
    bottom, top = np.minimum(bottom, 0), np.maximum(top, 0)
    exact = rounded(rounded(top - bottom, fmt.arithmetic) / np.float32(high - low), fmt.arithmetic)
    scale = stored(exact, fmt.working_dtype, fmt.small_scale)
    place = rounded(np.float32(low) - rounded(bottom / scale, fmt.arithmetic), fmt.arithmetic)
    return scale, np.clip(round_to(place, fmt.rounding), low, high)


def dividing(fmt: IntFormat | CodebookFormat) -> Arithmetic:
    """The dtype of values over stored scales."""
    return fmt.arithmetic if fmt.scale_dtype in ("float32", fmt.arithmetic) else "float32"


def divided(values: np.ndarray, scale: np.ndarray, division: Division, arithmetic: Arithmetic = "float32") -> np.ndarray:
    """float32 [n, m] over [n]; the reciprocal of a subnormal scale may be infinite, and 0 times it is 0."""
    if division == "true":
        return rounded(values / scale[:, None], arithmetic)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        inverse = rounded(np.float32(1) / scale, arithmetic)
        found = rounded(values * inverse[:, None], arithmetic)
    return found if np.isfinite(inverse).all() else np.nan_to_num(found, nan=0.0, posinf=np.inf, neginf=-np.inf)


def quantize(rows: np.ndarray, scale: np.ndarray, zero: np.ndarray | None, fmt: IntFormat) -> np.ndarray:
    """Codes [n, m]: round(x / scale + zero), saturated to the format's range. int8 or int16, unsigned where the format is."""
    low, high = fmt.code_range
    if fmt.zero_point == "offset" and zero is not None:
        steps = divided(rounded(rows - lowest(scale, zero, fmt)[:, None], dividing(fmt)), scale, fmt.division, dividing(fmt))
        return (np.clip(round_to(steps, fmt.rounding), 0, high - low) + low).astype(code_dtype(fmt))
    scaled = divided(rows, scale, fmt.division, dividing(fmt))
    if zero is not None:
        scaled = rounded(scaled + zero[:, None].astype(np.float32), dividing(fmt))
    return np.clip(round_to(scaled, fmt.rounding), low, high).astype(code_dtype(fmt))


def lowest(scale: np.ndarray, offset: np.ndarray, fmt: IntFormat) -> np.ndarray:
    """float32 [n]: what the lowest code, 0 or a power of two, decodes to in the dtype of the scales."""
    return rounded(offset + np.float32(fmt.code_range[0]) * scale, fmt.working_dtype) if fmt.signed else offset


def code_dtype(fmt: IntFormat) -> np.dtype:
    return np.dtype(f"{'' if fmt.signed else 'u'}int{16 if fmt.bits == 16 else 8}")


def dequantize(codes: np.ndarray, scale: np.ndarray, zero: np.ndarray | None, fmt: IntFormat) -> np.ndarray:
    """float32 [n, m] of codes [n, m]."""
    values = codes.astype(np.float32)
    if zero is None:
        return values * scale[:, None]
    if fmt.zero_point == "offset":
        return values * scale[:, None] + zero[:, None]
    return (values - zero[:, None].astype(np.float32)) * scale[:, None]
