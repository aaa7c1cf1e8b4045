"""Encoding and decoding of large tensors in compiled loops on all of numba's threads, bit-equal to the NumPy oracle.

What is small, one number per scale, is left to the oracle's own functions. Loops over values are written for LLVM's vectorizer: magnitudes and ends are
compared as integers, because it does not vectorize float maxima; up to 16 levels are found by 4 comparisons with selected thresholds, which are plain names
because it makes branches of nested conditions, and more by 8 with thresholds from memory;
and loops run over slices from 0, because numba checks every index for its sign that starts elsewhere.
"""

from functools import cache

import numpy as np
from numba import njit, prange

from compress.formats import CodebookFormat, Format, IntFormat
from compress.numerics import reach
from compress.numerics.codebooks import Levels, levels
from compress.numerics.encoded import Encoded, checked, code_type, stored_integers, stored_levels
from compress.numerics.scales import TINY, fit_ends, lowest, stored

F32, I32, U8 = np.float32, np.int32, np.uint8
PARALLEL = {"parallel": True, "nogil": True, "cache": True, "error_model": "numpy"}
PIECE = 1 << 14  # values that one thread takes of a long row at a time
MAGNITUDE = I32(0x7FFFFFFF)
ROUNDING = {"half_even": 0, "half_away": 1, "half_up": 2}


def encode(values: np.ndarray, fmt: Format) -> Encoded | None:
    """The Encoded of contiguous float32 values, or None where scales need more than the ends of each range, or half precision."""
    if not isinstance(fmt, IntFormat | CodebookFormat) or fmt.arithmetic != "float32":
        return None
    if isinstance(fmt, IntFormat) and fmt.fit == "minmax":
        return encode_integers(values, fmt)
    if isinstance(fmt, CodebookFormat) and fmt.scaling == "amax" and fmt.scale_dtype == "float32":
        return encode_levels(values, fmt)
    return None


def encode_integers(values: np.ndarray, fmt: IntFormat) -> Encoded | None:
    pieces, found = reach.split(values, fmt.granularity), []
    for rows in pieces:
        bottom, top = ends(rows)
        if not (np.isfinite(bottom).all() and np.isfinite(top).all()):
            checked(values)
        scale, zero = fit_ends(rows, bottom, top, fmt)
        if overflows(scale, fmt):
            return None
        found.append((quantize(rows, scale, zero, fmt), scale, zero))
    return stored_integers(values.shape, fmt, found)


def overflows(scale: np.ndarray, fmt: IntFormat | CodebookFormat) -> bool:
    """Whether some scale is so small that its reciprocal may be infinite: the loops do not ask for that."""
    return fmt.small_scale == "keep" and fmt.division == "reciprocal" and bool((np.abs(scale) < TINY).any())


def encode_levels(values: np.ndarray, fmt: CodebookFormat) -> Encoded | None:
    table, pieces = levels(fmt.codebook), reach.split(values, fmt.granularity)
    found = [codes_and_scales(rows, table, fmt) for rows in pieces]
    if any(overflows(scale, fmt) for _, scale in found):
        return None
    if not all(np.isfinite(scale).all() for _, scale in found):
        checked(values)
    return stored_levels(values.shape, fmt, found)


def codes_and_scales(rows: np.ndarray, table: Levels, fmt: CodebookFormat) -> tuple[np.ndarray, np.ndarray]:
    codes, reciprocal, few = np.empty(rows.shape, U8), fmt.division == "reciprocal", len(table.thresholds) < 16
    bottom, top = ends(rows)
    scale = np.maximum(-bottom, top) / F32(table.largest)
    scale = stored(scale, "float32", fmt.small_scale)
    if few:
        few_levels(rows, chunks(rows), padded(table), scale, reciprocal, codes)
    else:
        many_levels(rows, chunks(rows), np.array(padded(table, 255)), table.order.astype(U8), scale, reciprocal, codes)
    if few and np.any(np.diff(table.order) != 1):
        renumber(codes.reshape(-1), np.pad(table.order.astype(U8), (0, 16 - len(table.order))))
    return codes, scale


def padded(table: Levels, count: int = 15) -> tuple:
    """`count` thresholds; those that are not there are never passed."""
    return tuple(np.concatenate([table.thresholds, np.full(count - len(table.thresholds), np.inf, F32)]))


def chunks(rows: np.ndarray) -> int:
    """Chunks of a row."""
    return -(-rows.shape[1] // PIECE)


def ends(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest value float32 [n] of float32 [n, m]; infinite or NaN where one of the values is."""
    per = chunks(rows)
    low, high = np.empty((len(rows), per), I32), np.empty((len(rows), per), I32)
    integer_ends(rows.view(I32), per, low.reshape(-1), high.reshape(-1))
    return (from_ordered(low[:, 0]), from_ordered(high[:, 0])) if per == 1 else (from_ordered(low.min(1)), from_ordered(high.max(1)))


def from_ordered(keys: np.ndarray) -> np.ndarray:
    """Floats of integers that compare as they do."""
    return (keys ^ ((keys >> 31) & MAGNITUDE)).view(F32)


@njit(**PARALLEL)
def integer_ends(bits, per, low, high):
    for c in prange(low.size):
        row = bits[c // per, (c % per) * PIECE : (c % per) * PIECE + PIECE]
        a, b = I32(MAGNITUDE), I32(-MAGNITUDE)
        for j in range(row.size):
            x = row[j]
            key = I32(x ^ I32(I32(x >> I32(31)) & MAGNITUDE))
            a = key if key < a else a
            b = key if key > b else b
        low[c], high[c] = a, b


@njit(**PARALLEL)
def few_levels(rows, per, thresholds, scale, reciprocal, codes):
    t0, t1, t2, t3, t4, t5, t6, t7, t8, t9, t10, t11, t12, t13, t14 = thresholds
    for c in prange(rows.shape[0] * per):
        i, start = c // per, (c % per) * PIECE
        row, out, s = rows[i, start : start + PIECE], codes[i, start : start + PIECE], scale[i]
        inverse = F32(1) / s
        for j in range(row.size):
            v = row[j] * inverse if reciprocal else row[j] / s
            half = v > t7
            fourth, a, b = t11 if half else t3, t9 if half else t1, t13 if half else t5
            quarter = v > fourth
            c0, c1, c2, c3 = t8 if half else t0, t10 if half else t2, t12 if half else t4, t14 if half else t6
            eighth, even, odd = b if quarter else a, c2 if quarter else c0, c3 if quarter else c1
            second = v > eighth
            last = odd if second else even
            first = v > last
            out[j] = U8((I32(8) if half else I32(0)) | (I32(4) if quarter else I32(0)) | (I32(2) if second else I32(0)) | (I32(1) if first else I32(0)))


@njit(**PARALLEL)
def many_levels(rows, per, thresholds, order, scale, reciprocal, codes):
    for c in prange(rows.shape[0] * per):
        i, start = c // per, (c % per) * PIECE
        row, out, s = rows[i, start : start + PIECE], codes[i, start : start + PIECE], scale[i]
        inverse = F32(1) / s
        for j in range(row.size):
            v = row[j] * inverse if reciprocal else row[j] / s
            below = 0
            for step in (128, 64, 32, 16, 8, 4, 2, 1):
                below += step * (v > thresholds[below + step - 1])
            out[j] = order[below]


def quantize(rows: np.ndarray, scale: np.ndarray, zero: np.ndarray | None, fmt: IntFormat) -> np.ndarray:
    codes, (low, high) = np.empty(rows.shape, code_type(fmt)), fmt.code_range
    shift, add = np.zeros(len(rows), F32), np.zeros(len(rows), F32)
    base = low if zero is not None and fmt.zero_point == "offset" else 0
    if zero is not None and fmt.zero_point == "offset":
        shift[:] = lowest(scale, zero, fmt)
    elif zero is not None:
        add[:] = zero
    kernel = uniform_kernel(ROUNDING[fmt.rounding], fmt.division == "reciprocal", zero is not None, base)
    kernel(rows, chunks(rows), scale, shift, add, F32(low - base), F32(high - base), codes)
    return codes


@cache
def uniform_kernel(rounding: int, reciprocal: bool, zeros: bool, base: int):
    """Codes less `base` are clipped to what is given."""

    @njit(**PARALLEL)
    def kernel(rows, per, scale, shift, add, low, high, codes):
        for c in prange(rows.shape[0] * per):
            i, start = c // per, (c % per) * PIECE
            row, out = rows[i, start : start + PIECE], codes[i, start : start + PIECE]
            s, before, after = scale[i], shift[i], add[i]
            inverse = F32(1) / s
            for j in range(row.size):
                x = row[j] - before if zeros else row[j]
                v = x * inverse if reciprocal else x / s
                v = v + after if zeros else v
                if rounding == 0:
                    v = np.rint(v)
                elif rounding == 2:
                    v = np.floor(v + F32(0.5))
                else:
                    whole = np.trunc(v)
                    v = whole + (np.copysign(F32(1), v) if abs(v - whole) >= F32(0.5) else F32(0))
                v = v if v > low else low
                v = v if v < high else high
                out[j] = I32(v) + I32(base)

    return kernel


def decode(encoded: Encoded) -> np.ndarray | None:
    """float32 values of contiguous codes, or None where the oracle has to do it."""
    fmt = encoded.format
    if encoded.scales is None or encoded.global_scale is not None or encoded.codes.dtype.itemsize > 2:
        return None
    pieces = reach.split(encoded.codes, fmt.granularity)
    scales = reach.split_scales(encoded.scales, pieces)
    zeros = [np.zeros(1, F32)] * len(pieces) if encoded.zero_points is None else reach.split_scales(encoded.zero_points.astype(F32), pieces)
    table = levels(fmt.codebook).values if isinstance(fmt, CodebookFormat) else np.zeros(1, F32)
    kind = 0 if isinstance(fmt, CodebookFormat) else 1 if encoded.zero_points is None else 2 if fmt.zero_point != "offset" else 3
    found = []
    for rows, scale, zero in zip(pieces, scales, zeros, strict=True):
        out, scale = np.empty(rows.shape, F32), np.ascontiguousarray(scale)
        decoding_kernel(kind)(rows, chunks(rows), scale, np.ascontiguousarray(zero), table, out)
        found.append(out)
    return reach.join(found, encoded.codes.shape)


@cache
def decoding_kernel(kind: int):
    """kind 0: levels; 1: codes; 2: codes less a zero point; 3: codes and an offset. All times the scale."""

    @njit(**PARALLEL)
    def kernel(codes, per, scale, zero, table, out):
        for c in prange(codes.shape[0] * per):
            i, start = c // per, (c % per) * PIECE
            row, values, s = codes[i, start : start + PIECE], out[i, start : start + PIECE], scale[i]
            z = zero[i] if kind > 1 else F32(0)
            for j in range(row.size):
                if kind == 0:
                    values[j] = table[row[j]] * s
                elif kind == 1:
                    values[j] = F32(row[j]) * s
                elif kind == 2:
                    values[j] = (F32(row[j]) - z) * s
                else:
                    values[j] = F32(row[j]) * s + z

    return kernel


@cache
def nibble_kernel(high_first: bool):
    """(packed 4-bit codes uint8 [n], values float32 [16], scales float32 [m], out float32 [2 n]): values times scales, each over 2 n / m of them.

    On the calling thread alone, which PyTorch's threads, waiting for work at that time, do not hinder."""

    @njit(nogil=True, cache=True, error_model="numpy")
    def kernel(codes, values, scales, out):
        per = codes.size // scales.size
        for i in range(scales.size):
            packed, pair, s = codes[i * per : i * per + per], out[2 * i * per : 2 * (i * per + per)], scales[i]
            for j in range(packed.size):
                low, high = values[packed[j] & 15] * s, values[packed[j] >> 4] * s
                pair[2 * j] = high if high_first else low
                pair[2 * j + 1] = low if high_first else high

    return kernel


@njit(nogil=True, cache=True, error_model="numpy")
def double_scales(codes, values, factors, per, offset, out):
    """Scales float32 [n] of codes uint8 [n] into values [256], a factor for each `per` of them."""
    for k in range(factors.size):
        block, scales, factor = codes[k * per : k * per + per], out[k * per : k * per + per], factors[k]
        for j in range(block.size):
            scales[j] = values[block[j]] * factor + offset


@njit(**PARALLEL)
def renumber(codes, order):
    for c in prange(-(-codes.size // PIECE)):
        part = codes[c * PIECE : c * PIECE + PIECE]
        for j in range(part.size):
            part[j] = order[part[j]]


def nearest(x: np.ndarray, table: Levels) -> np.ndarray:
    """uint8 codes of float32 values of any shape."""
    rows = np.ascontiguousarray(x, F32).reshape(1, -1)
    codes = np.empty(rows.shape, U8)
    many_levels(rows, chunks(rows), np.array(padded(table, 255)), table.order.astype(U8), np.ones(1, F32), False, codes)
    return codes.reshape(x.shape)


def nearest_entries(rows: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """uint8 [n, m]: how many of each row's ascending thresholds float32 [n, entries - 1] lie below each value."""
    codes = np.empty(rows.shape, U8)
    row_levels(rows, chunks(rows), np.ascontiguousarray(thresholds), codes)
    return codes


@njit(**PARALLEL)
def row_levels(rows, per, thresholds, codes):
    for c in prange(rows.shape[0] * per):
        i, start = c // per, (c % per) * PIECE
        row, out, limits = rows[i, start : start + PIECE], codes[i, start : start + PIECE], thresholds[i]
        for j in range(row.size):
            v, low, size = row[j], 0, limits.size
            while size > 0:
                half = size // 2
                above = v > limits[low + half]
                low = low + half + 1 if above else low
                size = size - half - 1 if above else half
            out[j] = low
