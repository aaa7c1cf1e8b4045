"""Scales of codebook formats, and scales that are codes themselves."""

from dataclasses import dataclass
from functools import cache

import numpy as np

from compress.errors import InputError
from compress.formats import CodebookFormat, DoubleQuantized
from compress.numerics.codebooks import MANTISSA_BITS, Levels, levels
from compress.numerics.scales import E4M3_EPS, E4M3_LARGEST, E4M3_NORMAL, E4M3_SMALLEST, TINY, divided, rounded, stored, to_e4m3

LARGEST = np.finfo(np.float32).max
SMALLEST = np.float32(1e-38)  # of bitsandbytes' divisors
GRID = 65535  # intervals of its CPU kernel's table over [-1, 1]


@dataclass(frozen=True, eq=False)
class ScaleCodes:
    """Positive scales as 8-bit codes: scale = level(code) * factor + offset.

    codes    uint8 [scales] into the dynamic map, or int8 [scales] linear ones
    factors  float32 [blocks of scales]
    offset   float32: the mean of all scales
    """

    codes: np.ndarray
    factors: np.ndarray
    offset: np.float32

    def decode(self, double: DoubleQuantized) -> np.ndarray:
        """float32 [scales]."""
        factors = np.repeat(self.factors, double.block)[: self.codes.size]
        table = levels("dynamic8").values[self.codes] if double.dynamic else self.codes.astype(np.float32)
        return table * factors + self.offset

    @property
    def nbytes(self) -> int:
        return self.codes.size + 4 * self.factors.size + 4


def double_quantized(scales: np.ndarray, double: DoubleQuantized) -> ScaleCodes:
    """float32 [scales] as codes. bitsandbytes' quantize_blockwise on the scales less their mean; or torchao's int8 (nf4tensor.double_quantize_scalers)."""
    offset = np.float32(scales.mean(dtype=np.float32))
    rest = scales - offset
    blocks = -(-rest.size // double.block)
    padded = np.zeros(blocks * double.block, np.float32)
    padded[: rest.size] = rest
    rows = padded.reshape(blocks, -1)
    amax = np.abs(rows).max(1)
    if double.dynamic:
        shares = rows * (np.float32(1) / np.maximum(amax, SMALLEST))[:, None]
        codes = grid_codes()[grid_steps(shares)] if double.kind == "dynamic_grid" else levels("dynamic8").nearest(shares)
        if double.kind == "dynamic_grid":
            codes[amax == 0] = 0
        return ScaleCodes(codes.ravel()[: rest.size], amax, offset)
    factor = np.where(amax == 0, np.float32(1), 2 * amax / np.float32(256))
    codes = np.clip(np.rint(divided(rows, factor, "reciprocal")), -128, 127).astype(np.int8)
    factor = np.where(factor * LARGEST < 1, np.float32(0), factor)  # torchao keeps the reciprocal, infinite then: every scale is the mean
    return ScaleCodes(codes.ravel()[: rest.size], factor.astype(np.float32), offset)


def grid_steps(shares: np.ndarray) -> np.ndarray:
    """int32 of float32 values in [-1, 1]: which of the kernel's 65536 steps each is looked up at, in its float32 arithmetic."""
    return ((shares + np.float32(1)) * np.float32(GRID / 2) + np.float32(0.5)).astype(np.int32)


@cache
def grid_codes() -> np.ndarray:
    """uint8 [65536]: the dynamic map's nearest level to each step of bitsandbytes' CPU table."""
    return levels("dynamic8").nearest(np.float32(-1) + np.arange(GRID + 1, dtype=np.float32) * np.float32(2 / GRID))


def amax_scale(rows: np.ndarray, fmt: CodebookFormat, table: Levels) -> np.ndarray:
    """float32 [n]: the largest magnitude meets the largest level."""
    return stored(rounded(np.abs(rows).max(1) / table.largest, fmt.arithmetic), fmt.scale_dtype, fmt.small_scale)


def without_zeros(codes: np.ndarray, scale: np.ndarray, table: Levels) -> np.ndarray:
    """`scale` [n] with 0 for rows of zeros, codes [n, m], where it was 1 so that nothing is divided by 0: the mean of all scales counts them so."""
    ones = np.flatnonzero(scale == 1)
    changed = scale.copy()
    changed[ones[~table.values[codes[ones]].any(1)]] = 0
    return changed


def mx_scale(rows: np.ndarray, fmt: CodebookFormat, table: Levels) -> np.ndarray:
    """float32 powers of two [n] by one of the four rules; a row of zeros gets the smallest."""
    amax = np.maximum(np.abs(rows).max(1), TINY)
    emax = int(np.floor(np.log2(table.largest)))
    exponent = exponent_of(amax)
    if fmt.scaling == "mx_ceil":
        exponent = exponent + (amax > np.ldexp(np.float32(1), exponent))
    elif fmt.scaling == "mx_even":
        bits = MANTISSA_BITS[str(fmt.codebook)]
        exponent = exponent_of((amax.view(np.uint32) + np.uint32(1 << (23 - bits - 1))).view(np.float32))
    elif fmt.scaling == "mx_rceil":
        ratio = (amax / table.largest).astype(np.float32)
        exponent = exponent_of(ratio)
        exponent = exponent + (ratio > np.ldexp(np.float32(1), exponent)) + emax
    return np.ldexp(np.float32(1), np.clip(exponent - emax, -127, 127)).astype(np.float32)


def under_global(values: np.ndarray, scale: np.ndarray, whole: np.float32, fmt: CodebookFormat) -> np.ndarray:
    """float32 [n, m] over scales [n] and the tensor's own; the reciprocal of a subnormal one is infinite."""
    if fmt.division == "true":
        return divided(values, scale * whole, "true")
    with np.errstate(over="ignore", invalid="ignore"):
        return np.nan_to_num(values * (np.float32(1) / whole / scale)[:, None], nan=0.0, posinf=np.inf, neginf=-np.inf)


def divisor(scale: np.ndarray, fmt: CodebookFormat) -> np.ndarray:
    """What values are divided by, float32 [n]: for the scale 2^-127 torchao takes 2^-126, by RCEIL 1."""
    if fmt.small_scale != "normal":
        return scale
    return np.where(scale < TINY, np.float32(1) if fmt.scaling == "mx_rceil" else TINY, scale)


def exponent_of(values: np.ndarray) -> np.ndarray:
    """int32: floor(log2) of positive float32 values, exactly."""
    return np.frexp(values)[1] - 1


def nvfp4_scales(rows: np.ndarray, largest: np.float32, fmt: CodebookFormat, table: Levels) -> tuple[np.ndarray, np.float32]:
    """E4M3 scales float32 [n] and the float32 scale of the tensor whose largest magnitude is given: value = level * scale * global."""
    reach = np.float32(E4M3_LARGEST * float(table.largest))
    whole = np.float32(largest) / reach
    if whole == 0 or (whole < TINY and fmt.small_scale != "normal"):
        whole = np.float32(1)
    elif fmt.arithmetic != "float32":  # compressed-tensors rounds its reciprocal
        whole = np.float32(1) / rounded(np.asarray(reach / np.float32(largest)), fmt.arithmetic)[()]
    local = to_e4m3(rounded(np.abs(rows).max(1) / table.largest, fmt.arithmetic) / whole)
    if fmt.small_scale == "normal":
        return np.maximum(local, E4M3_NORMAL), whole
    return np.where(local == 0, np.float32(E4M3_EPS if fmt.small_scale == "eps" else E4M3_SMALLEST), local), whole


def check_levels(fmt: CodebookFormat) -> Levels:
    if fmt.scaling.startswith("mx") and str(fmt.codebook) not in MANTISSA_BITS:
        raise InputError(f"scaling {fmt.scaling} needs a small float's levels ({', '.join(MANTISSA_BITS)}), not {fmt.codebook}")
    return levels(fmt.codebook)
