"""The arrays of an encoded weight as torch tensors, in the bytes that they are stored in, and the weight expanded from them."""

from collections.abc import Mapping
from functools import cache
from math import prod

import numpy as np
import torch

from compress.backends.torch_numerics import TorchEncoded, decode_on_device, decoded_scales
from compress.formats import CodebookFormat, FloatFormat, Format, IntFormat, PerBlock
from compress.numerics import Encoded, reach
from compress.numerics.codebooks import levels
from compress.numerics.encoded import code_type
from compress.numerics.file_size import arrays_of
from compress.numerics.layouts import swap_nibbles
from compress.numerics.scaling import ScaleCodes
from compress.numerics.storing import FORMAT, from_arrays, to_arrays

BITSANDBYTES = {"nf4": "nf4", "fp4_bnb": "fp4"}
SCALES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float8_e4m3": torch.float8_e4m3fn, "float8_e8m0": torch.float8_e8m0fnu}


def for_bitsandbytes(fmt: Format) -> bool:
    """Whether its kernels know the format: the first of two codes lies in the high half of a byte then."""
    return isinstance(fmt, CodebookFormat) and fmt.codebook in BITSANDBYTES and isinstance(fmt.granularity, PerBlock) and fmt.scaling == "amax"


def tensors(encoded: Encoded) -> dict[str, torch.Tensor]:
    """What `Encoded.save` writes; bfloat16 scales as such."""
    arrays = to_arrays(encoded)
    if for_bitsandbytes(encoded.format):
        arrays["codes"] = swap_nibbles(arrays["codes"])
    found = {name: torch.tensor(array) for name, array in arrays.items()}
    return {name: tensor.view(torch.bfloat16) if tensor.dtype == torch.uint16 else tensor for name, tensor in found.items()}


def without_data(weight: torch.Tensor, fmt: Format) -> dict[str, torch.Tensor]:
    """Tensors of the sizes of `tensors`, empty as the weight is: on its device, in its FakeTensorMode."""
    reach.check(tuple(weight.shape), fmt.granularity) if not isinstance(fmt, FloatFormat) else None
    types = {name: (torch.bfloat16 if dtype == "uint16" else getattr(torch, dtype), shape) for name, (dtype, shape) in arrays_of(weight.shape, fmt).items()}
    return {name: weight.new_empty(shape, dtype=dtype) for name, (dtype, shape) in types.items()}


def encoded(arrays: Mapping[str, torch.Tensor], fmt: Format, shape: tuple[int, ...]) -> Encoded:
    """The inverse of `tensors`."""
    found = {name: (array.view(torch.uint16) if array.dtype == torch.bfloat16 else array).cpu().numpy() for name, array in arrays.items()}
    if for_bitsandbytes(fmt):
        found["codes"] = swap_nibbles(found["codes"])
    return from_arrays(found, fmt, shape)


@torch.library.custom_op("compresskit::expand", mutates_args=())
def expand(arrays: list[torch.Tensor], names: str, fmt: str, shape: list[int], dtype: torch.dtype) -> torch.Tensor:
    """The weight of this shape, float32 as `Encoded.decode` has it, rounded to dtype.

    names  of the arrays, by commas
    fmt    the format's JSON
    """
    return expanded(dict(zip(names.split(","), arrays, strict=True)), parsed(fmt), tuple(shape), dtype)


@expand.register_fake
def _(arrays: list[torch.Tensor], names: str, fmt: str, shape: list[int], dtype: torch.dtype) -> torch.Tensor:
    return arrays[0].new_empty(shape, dtype=dtype)


parsed = cache(FORMAT.validate_json)
Arrays = Mapping[str, torch.Tensor]


def expanded(arrays: Arrays, fmt: Format, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    codes = arrays["codes"]
    if isinstance(fmt, FloatFormat):
        return codes.view(SCALES[fmt.dtype]).view(shape).to(dtype)
    scales, zeros = stored_scales(arrays, fmt, shape), zero_points(arrays, fmt, shape)
    if codes.device.type == "cuda" and for_bitsandbytes(fmt):
        import bitsandbytes  # noqa: F401  it registers the operator

        return torch.ops.bitsandbytes.dequantize_4bit(codes.view(-1, 1), scales, fmt.granularity.size, BITSANDBYTES[fmt.codebook], shape, dtype)
    table = pair_table(arrays, fmt, shape) if fmt.bits == 4 and zeros is None else None
    if table is not None:
        return from_pairs(codes, table, scales, shape, dtype)
    book = learned(arrays) if isinstance(fmt, CodebookFormat) and fmt.learned else None
    return decode_on_device(TorchEncoded(fmt, unpacked(codes, fmt, prod(shape)).view(shape), scales, zeros, book)).to(dtype)


def from_pairs(codes: torch.Tensor, table: torch.Tensor, scales: torch.Tensor | None, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Two values for each byte are looked up at once, as 64 bits: three times as fast on a CPU as one by one, and twice as fast as bitsandbytes' loop for AVX2."""
    values = table.index_select(0, codes.int()).view(torch.float32)
    if scales is None:
        return values.view(shape).to(dtype)
    rows = values.view(scales.numel(), -1)
    return torch.mul(rows, scales.view(-1, 1), out=rows if dtype == torch.float32 else torch.empty_like(rows, dtype=dtype)).view(shape)


def pair_table(arrays: Arrays, fmt: IntFormat | CodebookFormat, shape: tuple[int, ...]) -> torch.Tensor | None:
    """int64 [256]: the bits of two float32 values for each byte. None where values and scales are not one rectangle, or rows have codebooks of their own."""
    count, scales = prod(shape), prod(reach.scale_shape(shape, fmt.granularity))
    if count % 2 or count != scales * getattr(fmt.granularity, "size", count // scales):
        return None
    if isinstance(fmt, CodebookFormat) and fmt.learned:
        return pairs(learned(arrays).view(-1), first_high=False) if scales == 1 else None
    return known_pairs(fmt, arrays["codes"].device)


@cache
def known_pairs(fmt: IntFormat | CodebookFormat, device: torch.device) -> torch.Tensor:
    values = levels(fmt.codebook).values if isinstance(fmt, CodebookFormat) else (np.arange(16) ^ 8 * fmt.signed) - 8 * fmt.signed
    return pairs(torch.tensor(values, dtype=torch.float32, device=device), for_bitsandbytes(fmt))


def pairs(values: torch.Tensor, first_high: bool) -> torch.Tensor:
    padded = torch.nn.functional.pad(values, (0, 16 - values.numel()))
    high, low = padded.repeat_interleave(16), padded.repeat(16)
    return torch.stack([high, low] if first_high else [low, high], 1).view(torch.int64).view(-1)


def unpacked(packed: torch.Tensor, fmt: IntFormat | CodebookFormat, count: int) -> torch.Tensor:
    """Codes [count] as `Encoded` has them."""
    signed = isinstance(fmt, IntFormat) and fmt.signed
    if fmt.bits >= 8:
        return packed.view(getattr(torch, code_type(fmt).name))
    return unpacked_low_first(packed << 4 | packed >> 4 if for_bitsandbytes(fmt) else packed, fmt.bits, count, signed)


def unpacked_low_first(packed: torch.Tensor, bits: int, count: int, signed: bool) -> torch.Tensor:
    """int8 (uint8 where not signed) [count]: compress.numerics.packing on any device."""
    step = bits if 8 % bits == 0 else 1
    parts = (packed[:, None] >> torch.arange(0, 8, step, dtype=torch.uint8, device=packed.device) & (1 << step) - 1).view(-1)
    if step != bits:
        parts = (parts[: count * bits].view(count, bits) << torch.arange(bits, dtype=torch.uint8, device=packed.device)).sum(1, dtype=torch.uint8)
    codes, sign = parts[:count], 1 << bits - 1
    return (codes.view(torch.int8) ^ sign) - sign if signed else codes


def stored_scales(arrays: Arrays, fmt: IntFormat | CodebookFormat, shape: tuple[int, ...]) -> torch.Tensor | None:
    """float32 in the shape of scales, under a global scale where there is one."""
    of_scales = reach.scale_shape(shape, fmt.granularity)
    if "scale_codes" in arrays:
        return decoded_scales(ScaleCodes(arrays["scale_codes"], arrays["scale_factors"], arrays["scale_offset"]), fmt).view(of_scales)
    if "scales" not in arrays:
        return None
    scales = from_bytes(arrays["scales"], fmt.scale_dtype).view(of_scales)
    return scales * arrays["global_scale"] if "global_scale" in arrays else scales


def zero_points(arrays: Arrays, fmt: IntFormat | CodebookFormat, shape: tuple[int, ...]) -> torch.Tensor | None:
    if "zero_points" not in arrays:
        return None
    zeros, of_scales = arrays["zero_points"], reach.scale_shape(shape, fmt.granularity)
    if fmt.zero_point != "integer":
        return from_bytes(zeros, fmt.scale_dtype).view(of_scales)
    return (unpacked_low_first(zeros, fmt.bits, prod(of_scales), fmt.signed) if fmt.bits < 8 else zeros).int().view(of_scales)


def learned(arrays: Arrays) -> torch.Tensor:
    book = arrays["codebook"].float()
    return book * arrays["codebook_scales"] if "codebook_scales" in arrays else book


def from_bytes(stored: torch.Tensor, dtype: str) -> torch.Tensor:
    return (stored if stored.is_floating_point() else stored.view(SCALES[dtype])).float()
