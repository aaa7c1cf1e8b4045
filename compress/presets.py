"""Formats by the name of who uses them. Adding one is one line."""

from dataclasses import dataclass

from compress.errors import UnknownName
from compress.formats import CodebookFormat, DoubleQuantized, Format, IntFormat, Learned, PerAxis, PerBlock, PerGroup, PerTensor
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
MX = {"scale_dtype": "float8_e8m0"}

PRESETS: dict[str, Preset] = {
    "bnb.nf4": Preset(CodebookFormat("nf4", PerBlock(64), **BNB), "bitsandbytes, QLoRA; ONNX Runtime MatMulBnb4"),
    "bnb.nf4.dq": Preset(CodebookFormat("nf4", PerBlock(64), **BNB, double=DoubleQuantized()), "bitsandbytes with compress_statistics, QLoRA"),
    "bnb.fp4": Preset(CodebookFormat("fp4_bnb", PerBlock(64), **BNB), "bitsandbytes FP4; ONNX Runtime MatMulBnb4"),
    "bnb.int8.row": Preset(IntFormat(8, PerAxis(), "narrow"), "bitsandbytes LLM.int8() weights"),
    "torchao.nf4": Preset(CodebookFormat("nf4", PerBlock(64), **BNB, double=DoubleQuantized("linear")), "torchao to_nf4"),
    "torchao.int8wo": Preset(IntFormat(8, PerAxis(), "half", division="reciprocal"), "torchao int8 weight-only and dynamic"),
    "torchao.int4.group32": Preset(
        IntFormat(4, PerGroup(32), "asymmetric", scale_dtype="bfloat16", zero_point="offset", division="reciprocal"), "torchao int4, ATen's tinygemm layout"
    ),
    "tflite.int8.weight": Preset(IntFormat(8, PerAxis(), "narrow"), "LiteRT: litert-quantizer, the converter"),
    "tflite.int4.channel": Preset(IntFormat(4, PerAxis(), "qmax"), "LiteRT: litert-quantizer"),
    "tflite.int4.block32": Preset(IntFormat(4, PerGroup(32), "qmax", scale_dtype="bfloat16"), "LiteRT: litert-quantizer's blockwise weights"),
    "ort.matmulnbits.int4": Preset(IntFormat(4, groups(32), "signed"), "ONNX Runtime's MatMulNBits quantizer, symmetric"),
    "ort.matmulnbits.uint4": Preset(IntFormat(4, groups(32), "asymmetric", signed=False), "ONNX Runtime's MatMulNBits quantizer, asymmetric"),
    "onnx.qdq.int8": Preset(IntFormat(8, PerAxis(), "narrow"), "ONNX Runtime's static quantizer, weights"),
    "onnx.dynamic.uint8": Preset(IntFormat(8, PerTensor(), "asymmetric", signed=False), "ONNX DynamicQuantizeLinear"),
    "torch.fakequant.int8": Preset(IntFormat(8, PerTensor(), "narrow", division="reciprocal"), "PyTorch's fake_quantize_per_tensor_affine"),
    "gguf.q8_0": Preset(IntFormat(8, PerGroup(32), "qmax", "half_away", "float16", **GGUF), "llama.cpp Q8_0"),
    "gguf.q4_0": Preset(IntFormat(4, PerGroup(32), "signed", "half_up", "float16", **GGUF), "llama.cpp Q4_0"),
    "gguf.q4_1": Preset(IntFormat(4, PerGroup(32), "asymmetric", "half_up", "float16", signed=False, zero_point="offset", **GGUF), "llama.cpp Q4_1"),
    "hqq.int4.group64": Preset(IntFormat(4, PerBlock(64), "asymmetric", signed=False, zero_point="float", division="reciprocal"), "HQQ without its optimizer"),
    "ct.w4a16.group128": Preset(IntFormat(4, PerGroup(128), "half"), "compressed-tensors, vLLM W4A16"),
    "ct.w8a16.channel": Preset(IntFormat(8, PerAxis(), "half"), "compressed-tensors, vLLM W8A16"),
    "quanto.int8": Preset(IntFormat(8, PerAxis(), "narrow"), "optimum-quanto qint8 with AbsmaxOptimizer"),
    "fp8.e4m3": Preset(CodebookFormat("e4m3", PerTensor()), "FP8 inference on GPUs, per tensor"),
    "fp8.e5m2": Preset(CodebookFormat("e5m2", PerTensor()), "FP8 gradients"),
    "mx.fp4": Preset(CodebookFormat("e2m1", groups(32), "mx_floor", **MX), "OCP MXFP4: torchao FLOOR, gpt-oss"),
    "mx.fp4.even": Preset(CodebookFormat("e2m1", groups(32), "mx_even", **MX), "MXFP4 of compressed-tensors, torchao EVEN"),
    "mx.fp6.e2m3": Preset(CodebookFormat("e2m3", groups(32), "mx_floor", **MX), "OCP MXFP6"),
    "mx.fp6.e3m2": Preset(CodebookFormat("e3m2", groups(32), "mx_floor", **MX), "OCP MXFP6"),
    "mx.fp8": Preset(CodebookFormat("e4m3", groups(32), "mx_floor", **MX), "OCP MXFP8"),
    "nvfp4": Preset(CodebookFormat("e2m1", groups(16), "nvfp4", scale_dtype="float8_e4m3"), "NVIDIA Blackwell, compressed-tensors"),
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
