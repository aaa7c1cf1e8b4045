"""One tensor in a number format."""

import os
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from compress.errors import InputError
from compress.formats import CodebookFormat, FloatFormat, Format, IntFormat, Learned
from compress.numerics import reach
from compress.numerics.codebooks import levels
from compress.numerics.fast import fast
from compress.numerics.scales import code_dtype, dequantize, divided, dividing, fit, from_bfloat16_bits, quantize, rounded, to_bfloat16_bits
from compress.numerics.scaling import ScaleCodes, amax_scale, check_levels, divisor, double_quantized, mx_scale, nvfp4_scales, under_global, without_zeros

if TYPE_CHECKING:
    from compress.numerics.ledger import TensorLedger

SCALE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3": 1, "float8_e8m0": 1}
ENTRY_BYTES = {"float32": 4, "float16": 2, "int8": 1}


@dataclass(frozen=True, eq=False)
class Encoded:
    """Codes in the tensor's canonical shape with what decodes them.

    codes         int8 or int16 for integers (unsigned where the format is); uint8 indices of a codebook; float16, or uint16 bit patterns of bfloat16
    scales        float32: shape () per tensor, [out] per axis, [out, groups] per group, [blocks] per block; None for floats and learned codebooks
    zero_points   int32 or float32 like scales; None where the format is symmetric
    codebook      float32 [..., entries] of a learned codebook, shaped like scales before it; None elsewhere
    scale_codes   the scales as they are stored, where those are codes themselves
    global_scale  float32 over all scales (NVFP4); None elsewhere
    """

    format: Format
    codes: np.ndarray
    scales: np.ndarray | None = None
    zero_points: np.ndarray | None = None
    codebook: np.ndarray | None = None
    scale_codes: ScaleCodes | None = None
    global_scale: np.float32 | None = None

    def decode(self) -> np.ndarray:
        """float32 values in the tensor's shape."""
        return decode(self)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape

    def save(self, path: str | os.PathLike, entropy: bool = False) -> None:
        """Writes a safetensors file that describes itself; it appears whole or not at all.

        The most frequent code, 0 in a pruned tensor, is left out where that is smaller: `ledger.file_bytes` says the size before.
        entropy: codes are Zstandard frames. How small is not known before; `ledger.shannon_bytes` is a bound where codes do not depend on their neighbours.
        """
        from compress.numerics.storing import save

        save(self, path, entropy)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Encoded":
        """An Encoded from `save`. BrokenFile for a file that is truncated, altered or of another kind."""
        from compress.numerics.storing import load

        return load(path)

    @property
    def ledger(self) -> "TensorLedger":
        """Where the bytes go, and how few could do."""
        from compress.numerics.ledger import ledger

        return ledger(self)

    def packed(self) -> np.ndarray:
        """uint8: the codes as bytes, sub-byte codes packed low bits first."""
        from compress.numerics.coding import packed

        return packed(self.codes, self.format.bits)

    @property
    def nbytes(self) -> int:
        """Exact stored size: packed codes, scales in their storage dtype, zero points in the format's own bits, codebooks that are not known by name."""
        return predicted_bytes(self.codes.shape, self.format)


@dataclass(frozen=True)
class Parts:
    """Bytes that a tensor takes."""

    payload: int
    scales: int = 0
    zero_points: int = 0
    codebook: int = 0

    @property
    def total(self) -> int:
        return self.payload + self.scales + self.zero_points + self.codebook


def code_type(fmt: Format) -> np.dtype:
    """Of `Encoded.codes`."""
    if isinstance(fmt, IntFormat):
        return code_dtype(fmt)
    return np.dtype(np.uint8) if isinstance(fmt, CodebookFormat) else np.dtype(np.float16 if fmt.dtype == "float16" else np.uint16)


def parts(shape: tuple[int, ...], fmt: Format) -> Parts:
    payload = -(-prod(shape) * fmt.bits // 8)
    if isinstance(fmt, FloatFormat):
        return Parts(payload)
    count = prod(reach.scale_shape(shape, fmt.granularity))
    if isinstance(fmt, IntFormat):
        zero_bytes = 0 if fmt.symmetric else -(-count * fmt.bits // 8) if fmt.zero_point == "integer" else count * SCALE_BYTES[fmt.scale_dtype]
        return Parts(payload, count * SCALE_BYTES[fmt.scale_dtype], zero_bytes)
    return Parts(payload, scale_bytes(count, fmt), codebook=codebook_bytes(count, fmt))


def scale_bytes(count: int, fmt: CodebookFormat) -> int:
    if fmt.scaling == "none":
        return 0
    if fmt.double:
        return count + 4 * -(-count // fmt.double.block) + 4
    return count * SCALE_BYTES[fmt.scale_dtype] + (4 if fmt.scaling == "nvfp4" else 0)


def codebook_bytes(count: int, fmt: CodebookFormat) -> int:
    """Of learned and user's codebooks; a reader knows the named ones."""
    if isinstance(fmt.codebook, str):
        return 0
    if not fmt.learned:
        return 4 * fmt.entries
    return count * (fmt.entries * ENTRY_BYTES[fmt.codebook.entry_dtype] + (4 if fmt.codebook.entry_dtype == "int8" else 0))


def predicted_bytes(shape: tuple[int, ...], fmt: Format) -> int:
    return parts(shape, fmt).total


def encode(values: np.ndarray, fmt: Format, sensitivity: np.ndarray | None = None) -> Encoded:
    """`values` (any float dtype, canonical layout) in a format.

    sensitivity  float32 in the values' shape, learned codebooks only: what an error of each value costs (squared gradient, or second moment of its input)
    InputError for an empty tensor, NaN or infinity (with the first index), groups that do not fit.
    """
    values = np.asarray(values, np.float32)
    if sensitivity is not None and not (isinstance(fmt, CodebookFormat) and fmt.learned):
        raise InputError(f"sensitivity weighs the errors of learned codebooks only, not of {fmt}")
    if isinstance(fmt, FloatFormat):
        checked(values)
        return Encoded(fmt, half(values) if fmt.dtype == "float16" else to_bfloat16_bits(values))
    reach.check(values.shape, fmt.granularity)
    kernels = fast(values)
    found = kernels.encode(np.ascontiguousarray(values), fmt) if kernels else None
    if found is not None:
        return found
    checked(values)
    if isinstance(fmt, IntFormat):
        return encode_integers(values, fmt)
    return encode_learned(values, fmt, sensitivity) if fmt.learned else encode_levels(values, fmt)


def checked(values: np.ndarray) -> None:
    """InputError for an empty tensor, NaN or infinity."""
    if not values.size:
        raise InputError("an empty tensor has no range to fit a scale to")
    if not np.isfinite(values.sum()):  # an overflowing sum of finite values is looked at more closely
        broken = ~np.isfinite(values)
        if broken.any():
            first = [int(i) for i in np.unravel_index(broken.argmax(), values.shape)]
            raise InputError(f"{int(broken.sum())} of {values.size} values are NaN or infinite, the first at {first}; repair the model's weights first")


def half(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="raise"):
        try:
            return values.astype(np.float16)
        except FloatingPointError as error:
            raise InputError(f"values up to {np.abs(values).max():.3g} do not fit float16 (largest 65504); use bfloat16") from error


def encode_integers(values: np.ndarray, fmt: IntFormat) -> Encoded:
    pieces = reach.split(values, fmt.granularity)
    fitted = [fit(rows, fmt) for rows in pieces]
    return stored_integers(values.shape, fmt, [(quantize(rows, scale, zero, fmt), scale, zero) for rows, (scale, zero) in zip(pieces, fitted, strict=True)])


def stored_integers(shape: tuple[int, ...], fmt: IntFormat, found: list[tuple]) -> Encoded:
    """The Encoded of (codes, scales, zero points) of each piece."""
    codes, scales, zeros = zip(*found, strict=True)
    of_scales = reach.scale_shape(shape, fmt.granularity)
    kept = reach.join_scales(scales, of_scales)
    if fmt.codes_from == "exact":
        kept = rounded(kept, fmt.scale_dtype)  # as it is, subnormal or 0 too: another scale would not fit the codes
    zero = None if fmt.symmetric else reach.join_scales(zeros, of_scales)
    if zero is not None and fmt.zero_point != "integer":
        zero = rounded(zero, fmt.scale_dtype)
        within(zero, fmt.scale_dtype)
    within(kept, fmt.scale_dtype)
    return Encoded(fmt, reach.join(codes, shape), kept, zero)


def within(scales: np.ndarray, dtype: str) -> None:
    """InputError for scales, or offsets, that their storage holds as infinity."""
    if not np.isfinite(scales).all():
        raise beyond(dtype)


def beyond(dtype: str) -> InputError:
    return InputError(f"values so large that scales are beyond the largest {dtype} number: scale the weights down, or take a format with wider scales")


def encode_levels(values: np.ndarray, fmt: CodebookFormat) -> Encoded:
    table, pieces = check_levels(fmt), reach.split(values, fmt.granularity)
    if fmt.scaling == "none":
        return Encoded(fmt, table.nearest(values))
    whole = None
    if fmt.scaling == "nvfp4":
        largest = np.abs(values).max()
        found = [nvfp4_scales(rows, largest, fmt, table) for rows in pieces]
        scales, whole = [scale for scale, _ in found], found[0][1]
    else:
        scales = [(amax_scale if fmt.scaling == "amax" else mx_scale)(rows, fmt, table) for rows in pieces]
    codes = [table.nearest(in_levels(rows, scale, whole, fmt)) for rows, scale in zip(pieces, scales, strict=True)]
    return stored_levels(values.shape, fmt, list(zip(codes, scales, strict=True)), whole)


def in_levels(rows: np.ndarray, scale: np.ndarray, whole: np.float32 | None, fmt: CodebookFormat) -> np.ndarray:
    """Values in the codebook's own units."""
    return divided(rows, divisor(scale, fmt), fmt.division, dividing(fmt)) if whole is None else under_global(rows, scale, whole, fmt)


def stored_levels(shape: tuple[int, ...], fmt: CodebookFormat, found: list[tuple], global_scale: np.float32 | None = None) -> Encoded:
    """The Encoded of (codes, scales) of each piece; scales are quantized again where the format says so."""
    codes, scales = zip(*found, strict=True)
    if fmt.double:
        scales = [without_zeros(rows, scale, levels(fmt.codebook)) for rows, scale in found]
        if fmt.double.kind == "linear":
            for rows, scale in zip(codes, scales, strict=True):
                rows[scale == 0] = 0  # torchao divides by 0 here, and finds the first level nearest to NaN
    of_scales = reach.scale_shape(shape, fmt.granularity)
    joined, scale_codes = reach.join_scales(scales, of_scales), None
    within(joined, fmt.scale_dtype)
    if fmt.double:
        within(joined.mean(dtype=np.float32), "float32")
        scale_codes = double_quantized(joined.ravel(), fmt.double)
        joined = scale_codes.decode(fmt.double).reshape(of_scales)
    return Encoded(fmt, reach.join(codes, shape), joined, scale_codes=scale_codes, global_scale=global_scale)


def encode_learned(values: np.ndarray, fmt: CodebookFormat, sensitivity: np.ndarray | None) -> Encoded:
    from compress.numerics.kmeans import optimal_codebooks

    learned, pieces = fmt.codebook, reach.split(values, fmt.granularity)
    weights = [None] * len(pieces) if sensitivity is None else reach.split(np.asarray(sensitivity, np.float32), fmt.granularity)
    books = [stored_entries(optimal_codebooks(rows, learned.entries, w, learned.exact_zero), learned) for rows, w in zip(pieces, weights, strict=True)]
    codes = [nearest_entries(rows, book) for rows, book in zip(pieces, books, strict=True)]
    shape = reach.scale_shape(values.shape, fmt.granularity)
    return Encoded(fmt, reach.join(codes, values.shape), codebook=reach.join_scales(books, shape))


def stored_entries(books: np.ndarray, learned: Learned) -> np.ndarray:
    """float32 [n, entries] as their storage holds them."""
    if learned.entry_dtype == "float16":
        return half(books).astype(np.float32)
    if learned.entry_dtype == "int8":
        scale = entry_scales(books)
        return np.rint(books / scale) * scale
    return books


def entry_scales(books: np.ndarray) -> np.ndarray:
    """float32 [..., 1]: the scales of int8 entries."""
    scale = np.abs(books).max(-1, keepdims=True) / np.float32(127)
    return np.where(scale == 0, np.float32(1), scale)


def nearest_entries(rows: np.ndarray, books: np.ndarray) -> np.ndarray:
    """uint8 [n, m]: the nearest of each row's ascending entries; ties go down."""
    lower, upper = books[:, :-1], books[:, 1:]
    middle = (lower + upper) / 2
    middle = np.where(middle < upper, middle, lower)  # the midpoint of neighbouring floats may be rounded to the upper one, which would then go down
    kernels = fast(rows)
    if kernels:
        return kernels.nearest_entries(np.ascontiguousarray(rows), middle)
    return np.stack([np.searchsorted(t, row, side="left") for t, row in zip(middle, rows, strict=True)]).astype(np.uint8)


def decode(encoded: Encoded) -> np.ndarray:
    """float32 values of an Encoded, in its shape."""
    fmt, codes = encoded.format, encoded.codes
    kernels = fast(codes)
    found = kernels.decode(encoded) if kernels else None
    if found is not None:
        return found
    if isinstance(fmt, FloatFormat):
        return codes.astype(np.float32) if fmt.dtype == "float16" else from_bfloat16_bits(codes)
    pieces = reach.split(codes, fmt.granularity)
    if encoded.codebook is not None:
        books = reach.split_scales(encoded.codebook, pieces, further=1)
        return reach.join([np.take_along_axis(book, rows.astype(np.int64), 1) for rows, book in zip(pieces, books, strict=True)], codes.shape)
    if isinstance(fmt, CodebookFormat):
        table = levels(fmt.codebook).values[codes]
        if encoded.scales is None:
            return table
        whole = np.float32(1) if encoded.global_scale is None else encoded.global_scale
        pieces = reach.split(table, fmt.granularity)
        scales = reach.split_scales(encoded.scales, pieces)
        return reach.join([rows * (scale * whole)[:, None] for rows, scale in zip(pieces, scales, strict=True)], codes.shape)
    scales = reach.split_scales(encoded.scales, pieces)
    zeros = [None] * len(pieces) if encoded.zero_points is None else reach.split_scales(encoded.zero_points, pieces)
    return reach.join([dequantize(rows, scale, zero, fmt) for rows, scale, zero in zip(pieces, scales, zeros, strict=True)], codes.shape)
