"""bitsandbytes on the CPU: its native kernels, and the PyTorch rule that it states for devices without any."""

import numpy as np
import torch
from bitsandbytes import functional

from compress.conformance.matrix import Theirs
from compress.conformance.peers import Claim

PACKAGE = "bitsandbytes"


def four_bits(kind: str, double: bool = False):
    def ask(values: np.ndarray) -> Theirs:
        packed, state = functional.quantize_4bit(torch.from_numpy(values), blocksize=64, quant_type=kind, compress_statistics=double)
        decoded = functional.dequantize_4bit(packed, state).numpy()
        pairs = packed.numpy().ravel()
        codes = np.stack([pairs >> 4, pairs & 15], 1).ravel()[: values.size]
        return Theirs(codes, decoded, state.absmax.numpy() if double else None)

    return ask


def stated(values: np.ndarray) -> Theirs:
    """Double quantization by the code for devices without native kernels, in the steps of quantize_4bit."""
    flat = torch.from_numpy(values).float()
    operators, anywhere = torch.ops.bitsandbytes, torch._C.DispatchKeySet(torch._C.DispatchKey.CompositeExplicitAutograd)
    packed, amax = operators.quantize_4bit.default.redispatch(anywhere, flat, 64, "nf4", torch.uint8)
    dynamic, offset = functional.create_dynamic_map(), amax.mean()
    codes, factors = operators.quantize_blockwise.default.redispatch(anywhere, amax - offset, dynamic, 256)
    scales = operators.dequantize_blockwise.default.redispatch(anywhere, codes, factors, dynamic, 256, torch.float32) + offset
    decoded = operators.dequantize_4bit.default.redispatch(anywhere, packed, scales, 64, "nf4", list(values.shape), torch.float32)
    pairs = packed.numpy().ravel()
    return Theirs(np.stack([pairs >> 4, pairs & 15], 1).ravel()[: values.size], decoded.numpy(), codes.numpy())


def rows(values: np.ndarray) -> Theirs:
    codes, amax, _ = functional.int8_vectorwise_quant(torch.from_numpy(values))
    return Theirs(codes.numpy(), functional.int8_vectorwise_dequant(codes, amax).numpy())


CLAIMS = (
    Claim("bnb.nf4", "quantize_4bit", four_bits("nf4")),
    Claim("bnb.nf4.dq", "quantize_4bit, compress_statistics", four_bits("nf4", double=True)),
    Claim("bnb.nf4.dq.nearest", "backends.default", stated),
    Claim("bnb.fp4", "quantize_4bit", four_bits("fp4")),
    Claim("bnb.int8.row", "int8_vectorwise_quant", rows, "It multiplies by 127 / amax, this project divides by amax / 127"),
)
