"""Formats by the name of who uses them. Adding one is one line."""

from dataclasses import dataclass
from math import prod

import yaml

from compress.errors import UnknownName
from compress.formats import CodebookFormat, DoubleQuantized, Format, IntFormat, Learned, PerAxis, PerBlock, PerGroup, PerTensor
from compress.numerics import predicted_bytes
from compress.numerics.storing import FORMAT
from compress.registry import suggest


@dataclass(frozen=True)
class Preset:
    """A format, and who computes these very numbers."""

    format: Format
    users: str


def groups(size: int) -> PerGroup:
    return PerGroup(size, "short")


BNB = {"scaling": "amax", "division": "reciprocal"}
GGUF = {"division": "reciprocal", "codes_from": "exact"}
NBITS = {"rounding": "half_up", "division": "reciprocal", "small_scale": "keep"}
MX = {"scale_dtype": "float8_e8m0"}

PRESETS: dict[str, Preset] = {
    "bnb.nf4": Preset(CodebookFormat("nf4", PerBlock(64), **BNB), "bitsandbytes, QLoRA; ONNX Runtime MatMulBnb4"),
    "bnb.nf4.dq": Preset(
        CodebookFormat("nf4", PerBlock(64), **BNB, double=DoubleQuantized("dynamic_grid")), "bitsandbytes with compress_statistics on a CPU, QLoRA"
    ),
    "bnb.nf4.dq.nearest": Preset(
        CodebookFormat("nf4", PerBlock(64), **BNB, double=DoubleQuantized()), "bitsandbytes with compress_statistics, its PyTorch and CUDA code"
    ),
    "bnb.fp4": Preset(CodebookFormat("fp4_bnb", PerBlock(64), **BNB), "bitsandbytes FP4; ONNX Runtime MatMulBnb4"),
    "bnb.int8.row": Preset(IntFormat(8, PerAxis(), "narrow"), "bitsandbytes LLM.int8() weights"),
    "torchao.nf4": Preset(CodebookFormat("nf4_torchao", PerBlock(64), double=DoubleQuantized("linear")), "torchao to_nf4"),
    "torchao.int8wo": Preset(IntFormat(8, PerAxis(), "half", division="reciprocal", small_scale="eps"), "torchao int8 weight-only and dynamic"),
    "torchao.intx4.group32": Preset(IntFormat(4, groups(32), "half", division="reciprocal", small_scale="normal"), "torchao IntxWeightOnlyConfig, SYMMETRIC"),
    "torchao.intx4.noclip": Preset(
        IntFormat(4, groups(32), "noclip", division="reciprocal", small_scale="normal"), "torchao IntxWeightOnlyConfig, SYMMETRIC_NO_CLIPPING_ERR"
    ),
    "torchao.intx4.asymmetric": Preset(
        IntFormat(4, groups(32), "asymmetric", division="reciprocal", small_scale="normal"), "torchao IntxWeightOnlyConfig, ASYMMETRIC"
    ),
    "torchao.int4.group32": Preset(
        IntFormat(4, PerGroup(32), "asymmetric", scale_dtype="bfloat16", zero_point="offset", small_scale="normal"), "torchao int4, ATen's tinygemm layout"
    ),
    "tflite.int8.weight": Preset(IntFormat(8, PerAxis(), "narrow", small_scale="litert"), "LiteRT: litert-quantizer, the converter"),
    "tflite.int4.channel": Preset(IntFormat(4, PerAxis(), "qmax", small_scale="litert"), "LiteRT: litert-quantizer"),
    "tflite.int4.block32": Preset(
        IntFormat(4, PerGroup(32), "qmax", scale_dtype="bfloat16", small_scale="litert"), "LiteRT: litert-quantizer's blockwise weights"
    ),
    "ort.matmulnbits.int4": Preset(IntFormat(4, groups(32), "signed", **NBITS), "ONNX Runtime's MatMulNBits quantizer, symmetric"),
    "ort.matmulnbits.uint4": Preset(IntFormat(4, groups(32), "asymmetric", signed=False, **NBITS), "ONNX Runtime's MatMulNBits quantizer, asymmetric"),
    "ort.matmulnbits.int8": Preset(IntFormat(8, groups(32), "signed", **NBITS), "ONNX Runtime's MatMulNBits quantizer, 8 bits, symmetric"),
    "onnx.qdq.int8": Preset(IntFormat(8, PerAxis(), "narrow"), "ONNX Runtime's static quantizer, weights"),
    "onnx.qdq.int4.block32": Preset(IntFormat(4, groups(32), "qmax"), "ONNX QuantizeLinear, blocked int4"),
    "onnx.dynamic.uint8": Preset(IntFormat(8, PerTensor(), "asymmetric", signed=False, small_scale="keep"), "ONNX DynamicQuantizeLinear"),
    "torch.fakequant.int8": Preset(IntFormat(8, PerTensor(), "half", division="reciprocal", small_scale="eps"), "PyTorch's default_weight_fake_quant"),
    "torch.fakequant.int8.channel": Preset(
        IntFormat(8, PerAxis(), "half", division="reciprocal", small_scale="eps"), "PyTorch's default_per_channel_weight_fake_quant"
    ),
    "torch.fakequant.uint8": Preset(
        IntFormat(8, PerTensor(), "asymmetric", signed=False, division="reciprocal", small_scale="eps"), "PyTorch's FakeQuantize, quint8"
    ),
    "torch.fakequant.uint7": Preset(
        IntFormat(7, PerTensor(), "asymmetric", signed=False, division="reciprocal", small_scale="eps"), "PyTorch's default_fake_quant"
    ),
    "gguf.q8_0": Preset(IntFormat(8, PerGroup(32), "qmax", "half_away", "float16", **GGUF), "llama.cpp Q8_0"),
    "gguf.q4_0": Preset(IntFormat(4, PerGroup(32), "signed_first", "half_up", "float16", **GGUF), "llama.cpp Q4_0"),
    "gguf.q4_1": Preset(IntFormat(4, PerGroup(32), "asymmetric", "half_up", "float16", signed=False, zero_point="offset", **GGUF), "llama.cpp Q4_1"),
    "hqq.int4.group64": Preset(
        IntFormat(4, PerBlock(64), "asymmetric", signed=False, zero_point="float", division="reciprocal", small_scale="hqq"), "HQQ without its optimizer"
    ),
    "ct.w4a16.group128": Preset(IntFormat(4, PerGroup(128), "half", small_scale="keep"), "compressed-tensors, vLLM W4A16"),
    "ct.w4a16.asym": Preset(IntFormat(4, PerGroup(128), "asymmetric", small_scale="keep"), "compressed-tensors, vLLM W4A16_ASYM"),
    "ct.fp8.channel": Preset(CodebookFormat("e4m3", PerAxis(), small_scale="keep"), "compressed-tensors, vLLM FP8_DYNAMIC"),
    "ct.w8a16.group128": Preset(IntFormat(8, PerGroup(128), "half", small_scale="keep"), "compressed-tensors, vLLM W8A16"),
    "ct.w8a16.channel": Preset(IntFormat(8, PerAxis(), "half", small_scale="keep"), "compressed-tensors, vLLM W8A8 and INT8 weights"),
    "quanto.int8": Preset(IntFormat(8, PerAxis(), "narrow", small_scale="keep"), "optimum-quanto qint8 with AbsmaxOptimizer"),
    "quanto.int4.group128": Preset(
        IntFormat(4, PerGroup(128), "asymmetric", signed=False, zero_point="offset", small_scale="keep"), "optimum-quanto qint4 with MaxOptimizer"
    ),
    "fp8.e4m3": Preset(CodebookFormat("e4m3", PerTensor(), small_scale="keep"), "FP8 inference on GPUs, per tensor"),
    "fp8.e5m2": Preset(CodebookFormat("e5m2", PerTensor(), small_scale="keep"), "FP8 gradients"),
    "mx.fp4": Preset(CodebookFormat("e2m1", groups(32), "mx_floor", **MX), "OCP MXFP4: torchao FLOOR, gpt-oss"),
    "mx.fp4.even": Preset(CodebookFormat("e2m1", groups(32), "mx_even", **MX), "MXFP4 of compressed-tensors, torchao EVEN"),
    "mx.fp4.ceil": Preset(CodebookFormat("e2m1", groups(32), "mx_ceil", **MX), "MXFP4 of torchao CEIL"),
    "mx.fp4.rceil": Preset(CodebookFormat("e2m1", groups(32), "mx_rceil", **MX), "MXFP4 of torchao RCEIL, cuBLAS"),
    "mx.fp6.e2m3": Preset(CodebookFormat("e2m3", groups(32), "mx_floor", **MX), "OCP MXFP6"),
    "mx.fp6.e3m2": Preset(CodebookFormat("e3m2", groups(32), "mx_floor", **MX), "OCP MXFP6"),
    "mx.fp8": Preset(CodebookFormat("e4m3", groups(32), "mx_floor", **MX), "OCP MXFP8"),
    "nvfp4": Preset(CodebookFormat("e2m1", groups(16), "nvfp4", scale_dtype="float8_e4m3", small_scale="eps"), "NVIDIA Blackwell, compressed-tensors"),
    "kmeans.16": Preset(CodebookFormat(Learned(16), PerTensor(), "none"), "optimal clusters for a whole tensor"),
    "kmeans.16.channel": Preset(CodebookFormat(Learned(16, entry_dtype="float16"), PerAxis(), "none"), "optimal clusters per output channel"),
    "kmeans.256": Preset(CodebookFormat(Learned(256), PerTensor(), "none"), "8-bit palettes"),
    **{f"nf{bits}.block64": Preset(CodebookFormat(f"nf{bits}", PerBlock(64), **BNB), "the NF family, generated") for bits in (2, 3, 5, 6, 7, 8)},
    **{f"log2.{bits}": Preset(CodebookFormat(f"log{bits}", PerAxis()), "powers of two: multiplication by shifts") for bits in (3, 4, 5)},
    **{f"apot.{bits}": Preset(CodebookFormat(f"apot{bits}", PerAxis()), "additive powers of two") for bits in (4, 6)},
}
ALIASES = {"ct.w4a16.g128": "ct.w4a16.group128"}


def preset(name: str) -> Preset:
    """UnknownName suggests the nearest name."""
    found = ALIASES.get(name, name)
    if found not in PRESETS:
        raise UnknownName(f"no format {name!r}: {suggest(name, [*PRESETS, *ALIASES])}`compresskit formats` lists all {len(PRESETS)}")
    return PRESETS[found]


def bits_per_weight(fmt: Format, shape: tuple[int, int] = (4096, 4096)) -> float:
    """All that is stored, of a layer of this size."""
    return 8 * predicted_bytes(shape, fmt) / prod(shape)


def as_yaml(name: str) -> str:
    """A preset as the `weights` of a recipe's step."""
    return yaml.safe_dump(FORMAT.dump_python(preset(name).format, mode="json"), sort_keys=False)
