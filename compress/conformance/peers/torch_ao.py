"""torchao: quantize_ on a Linear, NF4 tensors, tinygemm's 4-bit rule and the prototype MX and NVFP4 tensors."""

import numpy as np
import torch
from torchao.prototype.mx_formats.config import ScaleCalculationMode
from torchao.prototype.mx_formats.mx_tensor import to_dtype, to_mx
from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, per_tensor_amax_to_scale
from torchao.quantization import (
    Float8Tensor,
    Int8WeightOnlyConfig,
    IntxWeightOnlyConfig,
    MappingType,
    PerGroup,
    PerTensor,
    quant_primitives,
    quantize_,
    to_nf4,
)

from compress.conformance.matrix import CannotTake, Theirs
from compress.conformance.peers import Claim

PACKAGE = "torchao"


def quantized(config):
    def ask(values: np.ndarray) -> Theirs:
        model = torch.nn.Linear(values.shape[1], values.shape[0], bias=False)
        model.weight = torch.nn.Parameter(torch.from_numpy(values))
        with refusals():
            quantize_(model, config)
        return Theirs(model.weight.qdata.numpy(), model.weight.dequantize().detach().numpy())

    return ask


class refusals:
    """The library's own refusals as CannotTake."""

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if isinstance(error, AssertionError | ValueError | RuntimeError | NotImplementedError):
            raise CannotTake(str(error).splitlines()[0][:120] or kind.__name__) from error


def nf4(values: np.ndarray) -> Theirs:
    with refusals():
        found = to_nf4(torch.from_numpy(values))
    pairs = found.quantized_data.numpy()
    codes = np.stack([pairs >> 4, pairs & 15], 1).ravel()
    return Theirs(codes, found.get_original_weight().numpy(), found.quantized_scalers.numpy())


def tinygemm(values: np.ndarray) -> Theirs:
    """As `torch._weight_int4pack_mm` wants it: bfloat16 scales and zero points in groups of 32."""
    given, block = torch.from_numpy(values), (1, 32)
    low, high = 0, 15
    with refusals():
        scale, zero = quant_primitives._choose_qparams_affine_tinygemm(
            given, MappingType.ASYMMETRIC, block, torch.int32, low, high, scale_dtype=torch.bfloat16, zero_point_dtype=torch.bfloat16
        )
        codes = quant_primitives._quantize_affine_tinygemm(given, block, scale, zero, torch.int32, low, high)
    decoded = quant_primitives._dequantize_affine_tinygemm(codes, block, scale, zero, torch.int32, low, high, output_dtype=torch.float32)
    return Theirs(codes.numpy() - 8, decoded.numpy())  # our codes are signed: value = code * scale + zero


def mx(element, mode: str):
    def ask(values: np.ndarray) -> Theirs:
        with refusals():
            scale, data = to_mx(torch.from_numpy(values), element, 32, ScaleCalculationMode[mode])
        decoded = to_dtype(data, scale, element, 32, torch.float32).numpy()
        codes = data.view(torch.uint8).numpy()
        if element == torch.float4_e2m1fn_x2:
            codes = np.stack([codes & 15, codes >> 4], -1)
        return Theirs(codes.reshape(values.shape), decoded)

    return ask


def float8(kind: torch.dtype):
    def ask(values: np.ndarray) -> Theirs:
        found = Float8Tensor.from_hp(torch.from_numpy(values), kind, PerTensor())
        return Theirs(found.qdata.view(torch.uint8).numpy(), found.dequantize().numpy())

    return ask


def nvfp4(values: np.ndarray) -> Theirs:
    given = torch.from_numpy(values)
    with refusals():
        found = NVFP4Tensor.to_nvfp4(given, per_tensor_scale=per_tensor_amax_to_scale(given.abs().max()))
    codes = found.qdata.view(torch.uint8).numpy()
    return Theirs(np.stack([codes & 15, codes >> 4], -1).reshape(values.shape), found.dequantize(torch.float32).numpy())


def intx(bits: torch.dtype, mapping: MappingType):
    return quantized(IntxWeightOnlyConfig(weight_dtype=bits, granularity=PerGroup(32), mapping_type=mapping))


FP4 = torch.float4_e2m1fn_x2
ROUNDED_FIRST = "It adds the zero point after rounding, this project before"
RAISED = {"small_scale": "normal"}
HALF = {"arithmetic": "float16"}
HALF_SCALES = {"scale_dtype": "float16"}  # computed in float16, kept in float32: so is the rest
NO_SCALE = "Where it stores a scale of 2^-127 it divides by 1"
HALF_SCALE = "Where it stores a scale of 2^-127 it divides by 2^-126"
NAN_BLOCKS = "It divides 0 by 0 in blocks of zeros, whose NaN gets code 0, as here: they decode to less than 0. Of float16 it computes all in float16"
NO_ZEROS = "It divides 0 by 0 where all values of a scale are zero"
NO_ZERO_TENSOR = "It divides 0 by 0 in a tensor of zeros"
CLAIMS = (
    Claim("torchao.int8wo", "Int8WeightOnlyConfig", quantized(Int8WeightOnlyConfig(set_inductor_config=False)), half=HALF_SCALES),
    Claim("torchao.intx4.group32", "IntxWeightOnlyConfig, SYMMETRIC", intx(torch.int4, MappingType.SYMMETRIC), half=HALF),
    Claim("torchao.intx4.noclip", "IntxWeightOnlyConfig, SYMMETRIC_NO_CLIPPING_ERR", intx(torch.int4, MappingType.SYMMETRIC_NO_CLIPPING_ERR), half=HALF),
    Claim("torchao.intx4.asymmetric", "IntxWeightOnlyConfig, ASYMMETRIC", intx(torch.int4, MappingType.ASYMMETRIC), ROUNDED_FIRST, half=HALF),
    Claim("torchao.int4.group32", "choose_qparams_affine_tinygemm", tinygemm, half=HALF),
    Claim("torchao.nf4", "to_nf4", nf4, NAN_BLOCKS),
    Claim("fp8.e4m3", "Float8Tensor.from_hp, PerTensor", float8(torch.float8_e4m3fn), NO_ZEROS, half=HALF_SCALES),
    Claim("fp8.e5m2", "Float8Tensor.from_hp, PerTensor", float8(torch.float8_e5m2), NO_ZEROS, half=HALF_SCALES),
    Claim("mx.fp4", "to_mx FLOOR", mx(FP4, "FLOOR"), HALF_SCALE, changes=RAISED),
    Claim("mx.fp4.even", "to_mx EVEN", mx(FP4, "EVEN"), HALF_SCALE, changes=RAISED),
    Claim("mx.fp4.ceil", "to_mx CEIL", mx(FP4, "CEIL"), HALF_SCALE, changes=RAISED),
    Claim("mx.fp4.rceil", "to_mx RCEIL", mx(FP4, "RCEIL"), NO_SCALE, changes=RAISED),
    Claim("mx.fp6.e2m3", "to_mx FLOOR", mx("fp6_e2m3", "FLOOR"), HALF_SCALE, changes=RAISED),
    Claim("mx.fp6.e3m2", "to_mx FLOOR", mx("fp6_e3m2", "FLOOR"), HALF_SCALE, changes=RAISED),
    Claim("mx.fp8", "to_mx FLOOR", mx(torch.float8_e4m3fn, "FLOOR"), HALF_SCALE, changes=RAISED),
    Claim("nvfp4", "NVFP4Tensor.to_nvfp4", nvfp4, NO_ZERO_TENSOR, changes={"division": "reciprocal", "small_scale": "normal"}),
)
