"""compressed-tensors, whose checkpoints vLLM reads: the parameters of its own preset schemes, then its quantize and dequantize."""

import numpy as np
import torch
from compressed_tensors.quantization.lifecycle.forward import dequantize, quantize
from compressed_tensors.quantization.quant_scheme import PRESET_SCHEMES
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam, strategy_cdiv

from compress.conformance.matrix import CannotTake, Theirs
from compress.conformance.peers import Claim

PACKAGE = "compressed-tensors"


def scheme(name: str):
    args = PRESET_SCHEMES[name]["weights"]

    def ask(values: np.ndarray) -> Theirs:
        given = torch.from_numpy(values)
        size = args.group_size or values.shape[1]
        try:
            strategy_cdiv(values.shape[1], size, args.strategy, strict=True)
        except ValueError as error:
            raise CannotTake(str(error).split(". ")[0]) from error
        groups = given.unflatten(-1, (-1, size))
        whole = generate_gparam(given.min(), given.max()) if args.strategy == "tensor_group" else None
        scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), args, global_scale=whole)
        codes = quantize(given, scale, zero, args, global_scale=whole)
        return Theirs(patterns(codes.float().numpy(), args), dequantize(codes, scale, zero, args, dtype=given.dtype, global_scale=whole).numpy())

    return ask


def patterns(values: np.ndarray, args) -> np.ndarray:
    """Codes as integers: of floats the sign, then the index of the magnitude, as pack_fp4_to_uint8 has it."""
    if args.type == "int":
        return values
    if args.num_bits == 8:
        return torch.from_numpy(values).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    return (np.signbit(values) << 3) | np.searchsorted([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.abs(values))


HALF = {"arithmetic": "float16"}
CLAIMS = (
    Claim("ct.w4a16.g128", "W4A16", scheme("W4A16"), half=HALF),
    Claim("ct.w4a16.asym", "W4A16_ASYM", scheme("W4A16_ASYM"), half=HALF),
    Claim("ct.w8a16.group128", "W8A16", scheme("W8A16"), half=HALF),
    Claim("ct.w8a16.channel", "INT8", scheme("INT8"), half=HALF),
    Claim("ct.fp8.channel", "FP8_DYNAMIC", scheme("FP8_DYNAMIC"), half=HALF),
    Claim("mx.fp4.even", "MXFP4", scheme("MXFP4")),
    Claim("nvfp4", "NVFP4", scheme("NVFP4"), half=HALF),
)
