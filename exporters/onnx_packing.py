"""The core's numbers as the arrays of an ONNX file, and back. NumPy alone."""

from math import prod

import ml_dtypes
import numpy as np

from compress.formats import CodebookFormat, Format
from compress.numerics import Encoded, pack_low_first, unpack_low_first
from compress.numerics.storing import from_storage, to_storage
from exporters.onnx_schemes import columns, width

HALF = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
SCALES = HALF | {"float8_e4m3": ml_dtypes.float8_e4m3fn}
SMALL_FLOATS = {"e4m3": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2}
"""Codebooks whose codes are the bit patterns of an ONNX type."""
WHOLE = (4, 8, 16)  # bits of ONNX's own integers; codes of other widths lie densely in bytes


def is_signed(fmt: Format) -> bool:
    return not isinstance(fmt, CodebookFormat) and fmt.signed


def half_range(fmt: Format) -> int:
    """What makes codes unsigned."""
    return 1 << (fmt.bits - 1) if is_signed(fmt) else 0


def small_float(fmt: Format) -> np.dtype | None:
    """The ONNX type whose bit patterns the codes are."""
    named = isinstance(fmt, CodebookFormat) and isinstance(fmt.codebook, str)
    return SMALL_FLOATS.get(fmt.codebook) if named else None


def packed_codes(codes: np.ndarray, fmt: Format) -> np.ndarray:
    """Codes or integer zero points: in their shape as ONNX's 4, 8 or 16 bits; else uint8 [ceil(n * bits / 8)], made unsigned, low bits first."""
    if small_float(fmt) is not None:
        return codes.view(small_float(fmt))
    if fmt.bits == 4:
        return codes.astype(ml_dtypes.int4 if is_signed(fmt) else ml_dtypes.uint4)
    if fmt.bits in WHOLE:
        return codes.astype(f"{'' if is_signed(fmt) else 'u'}int{fmt.bits}")
    return pack_low_first((codes.astype(np.int16) + half_range(fmt)).astype(np.uint8), fmt.bits)


def unpacked_codes(stored: np.ndarray, fmt: Format, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse: int8 or int16, unsigned where the format is."""
    if small_float(fmt) is not None:
        return stored.view(np.uint8)
    if fmt.bits not in WHOLE:
        stored = unpack_low_first(stored, fmt.bits, prod(shape), signed=False).astype(np.int16) - half_range(fmt)
    return stored.astype(f"{'' if is_signed(fmt) else 'u'}int{16 if fmt.bits == 16 else 8}").reshape(shape)


def packed_scales(scales: np.ndarray, dtype: str) -> np.ndarray:
    """Scales in their dtype; E8M0, which this version of ONNX does not have, as its uint8 exponents."""
    return to_storage(scales, dtype) if dtype == "float8_e8m0" else scales.astype(SCALES.get(dtype, np.float32))


def unpacked_scales(stored: np.ndarray, dtype: str) -> np.ndarray:
    return from_storage(stored, dtype) if dtype == "float8_e8m0" else stored.astype(np.float32)


def packed_blocks(encoded: Encoded, block: int) -> np.ndarray:
    """uint8 [rows, blocks, bytes] of MatMulNBits: codes made unsigned, low bits first; rows are padded to whole blocks with what decodes to 0."""
    fmt = encoded.format
    rows = encoded.codes.reshape(len(encoded.codes), -1).astype(np.int16) + half_range(fmt)
    rows = np.pad(rows, ((0, 0), (0, -rows.shape[1] % block)), constant_values=half_range(fmt)).astype(np.uint8)
    return pack_low_first(rows, fmt.bits).reshape(len(rows), -1, block * fmt.bits // 8)


def unpacked_blocks(packed: np.ndarray, fmt: Format, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse, in canonical shape."""
    rows = unpack_low_first(packed, fmt.bits, packed.size * 8 // fmt.bits, signed=False).reshape(len(packed), -1)[:, : prod(shape[1:])]
    return (rows.astype(np.int16) - half_range(fmt)).astype(np.int8 if is_signed(fmt) else np.uint8).reshape(shape)


def block_reach(shape: tuple[int, ...], fmt: Format, block: int) -> int:
    """Blocks that share a scale."""
    return fmt.granularity.size // block if columns(shape, fmt.granularity) > 1 else -(-prod(shape[1:]) // block)


def packed_block_zero_points(encoded: Encoded, block: int) -> np.ndarray:
    """uint8 [rows, bytes]: one for each block, made unsigned, in the kernel's width, each row in whole bytes."""
    fmt, shape, bits = encoded.format, encoded.shape, width(encoded.format)
    count = columns(shape, fmt.granularity)
    zero = (encoded.zero_points + (1 << (bits - 1) if is_signed(fmt) else 0)).astype(np.uint8).reshape(-1, count)
    blocks = -(-prod(shape[1:]) // block)
    wide = np.broadcast_to(np.repeat(zero, block_reach(shape, fmt, block), axis=1)[:, :blocks], (shape[0], blocks))
    return pack_low_first(np.pad(wide, ((0, 0), (0, -blocks % (8 // bits)))), bits).reshape(len(wide), -1)


def unpacked_block_zero_points(packed: np.ndarray, fmt: Format, shape: tuple[int, ...], scale_shape: tuple[int, ...], block: int) -> np.ndarray:
    """The inverse: int32 in the shape of the scales."""
    bits = width(fmt)
    rows = unpack_low_first(packed, bits, packed.size * 8 // bits, signed=False).reshape(len(packed), -1).astype(np.int32)
    rows = rows - (1 << (bits - 1) if is_signed(fmt) else 0)
    blocks = -(-prod(shape[1:]) // block)
    return rows[:, : blocks : block_reach(shape, fmt, block)].reshape(scale_shape) if scale_shape else rows[0, 0]


def packed_rows(encoded: Encoded) -> np.ndarray:
    """uint8 [rows, bytes]: codes of 1, 2, 4 or 8 bits, low bits first, each row in whole bytes."""
    return pack_low_first(encoded.codes, encoded.format.bits).reshape(encoded.shape[0], -1)


def unpacked_rows(packed: np.ndarray, fmt: Format, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse, in canonical shape."""
    return unpack_low_first(packed.ravel(), fmt.bits, prod(shape), signed=False).reshape(shape)
