"""One tensor in a number format."""

from dataclasses import dataclass
from math import prod

import numpy as np

from compress.errors import InputError
from compress.formats import FloatFormat, Format, IntFormat, PerAxis, PerGroup
from compress.numerics.packing import pack_low_first
from compress.numerics.scales import dequantize, fit, from_bfloat16_bits, quantize, to_bfloat16_bits

SCALE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, eq=False)
class Encoded:
    """Codes in the tensor's canonical shape with what decodes them.

    codes        int8 or int16 for integers; float16, or uint16 bit patterns of bfloat16, for floats
    scales       float32: shape () per tensor, [out] per axis, [out, groups] per group; None for floats
    zero_points  int32 like scales; None where the format is symmetric
    """

    format: Format
    codes: np.ndarray
    scales: np.ndarray | None = None
    zero_points: np.ndarray | None = None

    def decode(self) -> np.ndarray:
        """float32 values in the tensor's shape."""
        return decode(self)

    def packed(self) -> np.ndarray:
        """uint8: the codes as bytes, sub-byte codes packed low bits first."""
        if isinstance(self.format, IntFormat) and self.format.bits < 8:
            return pack_low_first(self.codes, self.format.bits)
        return np.ascontiguousarray(self.codes).view(np.uint8).ravel()

    @property
    def nbytes(self) -> int:
        """Exact stored size: packed codes, scales in their storage dtype, zero points in the format's own bits."""
        return predicted_bytes(self.codes.shape, self.format)


def scale_shape(shape: tuple[int, ...], fmt: IntFormat) -> tuple[int, ...]:
    if isinstance(fmt.granularity, PerGroup):
        return shape[0], prod(shape[1:]) // fmt.granularity.size
    return shape[:1] if isinstance(fmt.granularity, PerAxis) else ()


def parts(shape: tuple[int, ...], fmt: Format) -> tuple[int, int, int]:
    """Bytes of payload, scales and zero points that a tensor of this shape takes."""
    count = prod(shape)
    payload = -(-count * fmt.bits // 8)
    if isinstance(fmt, FloatFormat):
        return payload, 0, 0
    scales = prod(scale_shape(shape, fmt))
    zero_points = 0 if fmt.symmetric else -(-scales * fmt.bits // 8)
    return payload, scales * SCALE_BYTES[fmt.scale_dtype], zero_points


def predicted_bytes(shape: tuple[int, ...], fmt: Format) -> int:
    return sum(parts(shape, fmt))


def as_rows(values: np.ndarray, fmt: IntFormat) -> np.ndarray:
    """[scales, values per scale]: the reach of every scale as one row."""
    if isinstance(fmt.granularity, PerGroup):
        per_channel = values[0].size if values.ndim else 1
        if per_channel % fmt.granularity.size:
            raise InputError(f"{per_channel} values per output channel are not divisible by the group size {fmt.granularity.size}")
        return values.reshape(-1, fmt.granularity.size)
    return values.reshape(values.shape[0], -1) if isinstance(fmt.granularity, PerAxis) else values.reshape(1, -1)


def encode(values: np.ndarray, fmt: Format) -> Encoded:
    """`values` (any float dtype, canonical layout) in a format. InputError for an empty tensor, NaN or infinity."""
    values = np.asarray(values, np.float32)
    if not values.size:
        raise InputError("an empty tensor has no range to fit a scale to")
    broken = values.size - int(np.isfinite(values).sum())
    if broken:
        raise InputError(f"{broken} of {values.size} values are NaN or infinite; repair the model's weights first")
    if isinstance(fmt, FloatFormat):
        return Encoded(fmt, half(values) if fmt.dtype == "float16" else to_bfloat16_bits(values))
    rows = as_rows(values, fmt)
    scale, zero = fit(rows, fmt)
    codes = quantize(rows, scale, zero, fmt).reshape(values.shape)
    shape = scale_shape(values.shape, fmt)
    return Encoded(fmt, codes, scale.reshape(shape), None if zero is None else zero.reshape(shape))


def half(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="raise"):
        try:
            return values.astype(np.float16)
        except FloatingPointError as error:
            raise InputError(f"values up to {np.abs(values).max():.3g} do not fit float16 (largest 65504); use bfloat16") from error


def decode(encoded: Encoded) -> np.ndarray:
    """float32 values of an Encoded, in its shape."""
    fmt, codes = encoded.format, encoded.codes
    if isinstance(fmt, FloatFormat):
        return codes.astype(np.float32) if fmt.dtype == "float16" else from_bfloat16_bits(codes)
    rows = as_rows(codes, fmt)
    zero = None if encoded.zero_points is None else encoded.zero_points.reshape(-1)
    return dequantize(rows, encoded.scales.reshape(-1), zero).reshape(codes.shape)
