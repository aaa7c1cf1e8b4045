"""The arrays of an encoded weight as torch tensors, in the bytes that they are stored in, and the weight expanded from them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from types import ModuleType

import numpy as np
import torch

from compress.backends.torch_numerics import TorchEncoded, decode_on_device, decoded_scales
from compress.formats import CodebookFormat, FloatFormat, Format, IntFormat, PerBlock
from compress.numerics import Encoded, reach
from compress.numerics.codebooks import levels
from compress.numerics.encoded import code_type
from compress.numerics.fast import LOADED, loops
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


SCHEMA = "(Tensor[] arrays, str names, str fmt, SymInt[] shape, ScalarType dtype, bool again=False) -> Tensor"
torch.library.define("compresskit::expand", SCHEMA)


@torch.library.impl("compresskit::expand", "CompositeExplicitAutograd")
def expand(arrays: list[torch.Tensor], names: str, fmt: str, shape: list[int], dtype: torch.dtype, again: bool = False) -> torch.Tensor:
    """The weight of this shape, float32 as `Encoded.decode` has it, rounded to dtype.

    names  of the arrays, by commas
    fmt    the format's JSON
    again  in a backward pass: a compiler takes two equal calls for one, and would keep the weight from the first to the second
    """
    return expanded(dict(zip(names.split(","), arrays, strict=True)), parsed(fmt), tuple(shape), dtype)


@torch.library.register_fake("compresskit::expand")
def without_values(arrays: list[torch.Tensor], names: str, fmt: str, shape: list[int], dtype: torch.dtype, again: bool = False) -> torch.Tensor:
    return arrays[0].new_empty(shape, dtype=dtype)


@dataclass(frozen=True)
class Stored:
    """How a weight's arrays are to be read."""

    names: str  # of the arrays, by commas
    format: str  # JSON
    shape: tuple[int, int]

    def expanded(self, arrays: Sequence[torch.Tensor], dtype: torch.dtype, again: bool = False) -> torch.Tensor:
        """The weight, rounded to dtype from float32; `again` on the way back."""
        return torch.ops.compresskit.expand.default(list(arrays), self.names, self.format, list(self.shape), dtype, again)


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
    values = sixteen(arrays, fmt, shape) if zeros is None else None
    if values is not None:
        return from_nibbles(codes, values, scales, shape, for_bitsandbytes(fmt)).to(dtype)
    book = learned(arrays) if isinstance(fmt, CodebookFormat) and fmt.learned else None
    return decode_on_device(TorchEncoded(fmt, unpacked(codes, fmt, prod(shape)).view(shape), scales, zeros, book)).to(dtype)


def kernels_for(shape: tuple[int, ...], device: torch.device) -> ModuleType | None:
    """The core's loops for a weight: a model's many layers pay for loading numba, which one of them alone may not."""
    return loops(prod(shape), LOADED) if device.type == "cpu" else None


def sixteen(arrays: Arrays, fmt: IntFormat | CodebookFormat, shape: tuple[int, ...]) -> torch.Tensor | None:
    """float32 [16]: the values of all 4-bit codes. None where rows have codebooks of their own, or scales do not have the same number of bytes each."""
    scales, count = prod(reach.scale_shape(shape, fmt.granularity)), prod(shape)
    reached = getattr(fmt.granularity, "size", count // scales)
    if fmt.bits != 4 or reached % 2 or count != scales * reached:
        return None
    if isinstance(fmt, CodebookFormat) and fmt.learned:
        return padded(learned(arrays).view(-1)) if scales == 1 else None
    return known_values(fmt, arrays["codes"].device)


@cache
def known_values(fmt: IntFormat | CodebookFormat, device: torch.device) -> torch.Tensor:
    values = levels(fmt.codebook).values if isinstance(fmt, CodebookFormat) else (np.arange(16) ^ 8 * fmt.signed) - 8 * fmt.signed
    return padded(torch.tensor(values, dtype=torch.float32, device=device))


def padded(values: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(values, (0, 16 - values.numel()))


def from_nibbles(codes: torch.Tensor, values: torch.Tensor, scales: torch.Tensor | None, shape: tuple[int, ...], high_first: bool) -> torch.Tensor:
    """float32 values times scales. Without numba, both values of a byte are looked up at once, as 64 bits: three times as fast as one by one."""
    scales = torch.ones(1, device=codes.device) if scales is None else scales.view(-1)
    kernels = kernels_for(shape, codes.device)
    if kernels:
        out = torch.empty(shape)
        kernels.nibble_kernel(high_first)(codes.numpy(), values.numpy(), scales.numpy(), out.view(-1).numpy())
        return out
    high, low = values.repeat_interleave(16), values.repeat(16)
    pairs = torch.stack([high, low] if high_first else [low, high], 1).view(torch.int64).view(-1)
    return pairs.index_select(0, codes.int()).view(torch.float32).view(scales.numel(), -1).mul_(scales[:, None]).view(shape)


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
        kernels = kernels_for(shape, arrays["codes"].device) if fmt.double.dynamic else None
        if kernels:
            return scales_in_loops(kernels, arrays, fmt.double.block).view(of_scales)
        return decoded_scales(ScaleCodes(arrays["scale_codes"], arrays["scale_factors"], arrays["scale_offset"]), fmt).view(of_scales)
    if "scales" not in arrays:
        return None
    scales = from_bytes(arrays["scales"], fmt.scale_dtype).view(of_scales)
    return scales * arrays["global_scale"] if "global_scale" in arrays else scales


def scales_in_loops(kernels: ModuleType, arrays: Arrays, block: int) -> torch.Tensor:
    codes, factors, offset = (arrays[name].numpy() for name in ("scale_codes", "scale_factors", "scale_offset"))
    out = torch.empty(codes.size)
    kernels.double_scales(codes, levels("dynamic8").values, factors, block, offset[0], out.numpy())
    return out


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
