"""Encoding and decoding weights: this project beside bitsandbytes, torchao and HQQ on the same tensor, and beside a plain copy of memory."""

import tracemalloc

import numpy as np

import compress
from benchmarks.ratio import interleaved
from compress.numerics.layouts import LAYOUTS

SHAPE = (10_240, 1024)  # 10.5 million weights
ROUNDS = 7


def run():
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    weights = np.random.default_rng(0).standard_normal(SHAPE, np.float32)
    tensor, copy = torch.from_numpy(weights), np.empty_like(weights)
    theirs, state = quantize_4bit(tensor, blocksize=64, compress_statistics=True, quant_type="nf4")
    encoded = compress.encode(weights, "bnb.nf4.dq")
    packed = LAYOUTS["bitsandbytes"].pack(encoded.codes.reshape(-1), 4)
    different = int((packed.ravel() != theirs.numpy().ravel()).sum())
    yield "NF4 codes that differ from bitsandbytes'", different, "none", different == 0

    def nf4():
        compress.encode(weights, "bnb.nf4.dq")

    ratio = interleaved(nf4, lambda: quantize_4bit(tensor, blocksize=64, compress_statistics=True, quant_type="nf4"), ROUNDS)
    yield "NF4 with double quantization, encode: time / bitsandbytes", ratio, "at most 1/20 = 0.05", ratio.value <= 1 / 20
    ratio = interleaved(nf4, lambda: np.copyto(copy, weights), ROUNDS, 5)
    yield "NF4 with double quantization, encode: time / copying the weights", ratio, "at most 3", ratio.value <= 3
    ratio = interleaved(encoded.decode, lambda: dequantize_4bit(theirs, state), ROUNDS)
    yield "NF4 with double quantization, decode: time / bitsandbytes", ratio, "at most 1/2", ratio.value <= 1 / 2
    yield from int4(weights, tensor)
    share = extra_memory(weights, "bnb.nf4.dq")
    yield "peak memory of encoding beyond input and result / input", f"{share:.1%}", "under 25%", share < 0.25


def int4(weights, tensor):
    import torch
    from hqq.core.quantize import Quantizer
    from torchao.quantization.quant_primitives import MappingType, choose_qparams_affine, quantize_affine

    def torchao():
        scale, zero = choose_qparams_affine(tensor, MappingType.SYMMETRIC, (1, 32), torch.int8, -8, 7)
        quantize_affine(tensor, (1, 32), scale, zero, torch.int8, -8, 7)

    def ours():
        compress.encode(weights, "tflite.int4.block32")

    ratio = interleaved(ours, torchao, ROUNDS)
    yield "int4 in groups of 32, encode: time / torchao", ratio, "at most 1/5", ratio.value <= 1 / 5
    ratio = interleaved(ours, lambda: Quantizer.quantize(tensor, nbits=4, group_size=32, axis=1, optimize=False, device="cpu", bitpack=False), ROUNDS)
    yield "int4 in groups of 32, encode: time / HQQ without its optimizer", ratio, "at most 1/5", ratio.value <= 1 / 5


def extra_memory(weights: np.ndarray, name: str) -> float:
    """NumPy tells tracemalloc of all that it allocates; compiled loops allocate nothing else."""
    tracemalloc.start()
    try:
        encoded = compress.encode(weights, name)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept >= encoded.codes.nbytes
    return (peak - kept) / weights.nbytes
