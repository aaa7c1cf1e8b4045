"""The constants of a .pt2 that hold one encoded weight: the arrays of compress.numerics.storing as tensors of the shapes and dtypes that operators want."""

from typing import Any

import numpy as np
import torch

from compress.formats import FloatFormat
from compress.numerics import Encoded
from compress.numerics.layouts import swap_nibbles
from compress.numerics.storing import to_arrays

PATTERNS = {"bfloat16": np.int16, "float8_e4m3": np.uint8, "float8_e8m0": np.uint8}  # dtypes that NumPy has not: how it holds their bits
TORCH_NAMES = {"float8_e4m3": "float8_e4m3fn", "float8_e8m0": "float8_e8m0fnu"}
SCALARS = ("scale_offset", "global_scale")


def constants(encoded: Encoded, high_first: bool = False) -> dict[str, torch.Tensor]:
    """Tensors by part: codes (packed in uint8 below 8 bits, else in canonical shape), scales in their dtype and shape, zero points, codebooks.

    high_first  4-bit codes as bitsandbytes has them: uint8 [bytes, 1], the first of two in the high nibble
    """
    found, fmt = to_arrays(encoded), encoded.format
    tensors = {part: torch.from_numpy(np.array(value)) for part, value in found.items()}
    if high_first:
        tensors["codes"] = torch.from_numpy(swap_nibbles(found["codes"])[:, None])
    elif isinstance(fmt, FloatFormat):
        tensors["codes"] = typed(encoded.codes, fmt.dtype)
    elif fmt.bits >= 8:
        tensors["codes"] = torch.from_numpy(np.array(encoded.codes))
    if "scales" in found:
        tensors["scales"] = typed(found["scales"], fmt.scale_dtype).reshape(encoded.scales.shape)
    if "zero_points" in found:
        zeros = tensors["zero_points"] if fmt.zero_point == "integer" else typed(found["zero_points"], fmt.scale_dtype)
        packed = fmt.zero_point == "integer" and fmt.bits < 8
        tensors["zero_points"] = zeros if packed else zeros.reshape(encoded.scales.shape)
    return tensors | {part: tensors[part].reshape(()) for part in SCALARS if part in tensors}


def typed(bits: np.ndarray, dtype: str) -> torch.Tensor:
    """A tensor of a dtype from what `to_storage` gives for it."""
    if dtype not in PATTERNS:
        return torch.from_numpy(np.array(bits))
    return torch.from_numpy(np.array(bits).view(PATTERNS[dtype])).view(torch_dtype(dtype))


def torch_dtype(dtype: str) -> Any:
    return getattr(torch, TORCH_NAMES.get(dtype, dtype))
