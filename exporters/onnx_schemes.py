"""Which kernel of ONNX Runtime computes with a weight, decided from the plan alone: nothing is imported here."""

from dataclasses import dataclass
from math import prod
from typing import Literal

from compress.errors import Refused
from compress.formats import DynamicActivations, FloatFormat, IntFormat, PerGroup, StaticActivations
from compress.plan import Decision, Placement
from exporters import refuse_exotic

Kernel = Literal["decode", "integer", "qlinear_conv", "blocks", "gather", "gather_blocks"]
"""decode         expanded to float32 by constant folding when the file is loaded
integer        MatMulIntegerToFloat: uint8 activations times int8 weights
qlinear_conv   DequantizeLinear around Conv, which ONNX Runtime fuses to QLinearConv
blocks         MatMulNBits: 2, 4 or 8 bit blocks along the inputs
gather         rows of codes are gathered, then decoded
gather_blocks  GatherBlockQuantized: the same for 2 and 4 bits and for groups
"""

MATRICES = ("linear", "attention")
LARGEST_BLOCK = 256  # of MatMulNBits for 2 bits; larger ones bring nothing for 4 and 8


@dataclass(frozen=True)
class Scheme:
    kernel: Kernel
    placement: Placement
    reason: str = ""


AT_LOAD = "expanded to float32 when the file is loaded"


def scheme(kind: str, shape: tuple[int, ...], fmt: IntFormat | FloatFormat, activations) -> Scheme:
    """How ONNX Runtime's CPU provider stores and computes a weight of this kind. Refused where it cannot."""
    if isinstance(activations, StaticActivations) and activations.bits == 16:
        raise Refused("ONNX Runtime's CPU provider has no kernels with int16 activations")
    if isinstance(fmt, FloatFormat):
        return Scheme("decode", "decoded", f"{fmt.dtype} {AT_LOAD}")
    refuse_exotic(fmt, "ONNX Runtime")
    if fmt.bits not in (2, 4, 8, 16):
        raise Refused(f"ONNX has no {fmt.bits}-bit integers that ONNX Runtime computes with; it has 2, 4, 8 and 16")
    if kind == "embedding":
        return embedding(shape, fmt)
    if kind in MATRICES:
        return matrix(shape, fmt, activations)
    return convolution(kind, fmt, activations)


def embedding(shape: tuple[int, ...], fmt: IntFormat) -> Scheme:
    if fmt.bits >= 8 and not isinstance(fmt.granularity, PerGroup):
        return Scheme("gather", "decoded", "rows are gathered as integers and expanded to float32 one by one")
    if fmt.bits == 16:
        raise Refused("GatherBlockQuantized takes 2, 4 and 8 bits, not groups of 16-bit integers")
    block_of(shape, fmt)
    if prod(shape[1:]) * fmt.bits % 8:
        raise Refused(f"rows of {prod(shape[1:])} values of {fmt.bits} bits do not fill whole bytes")
    return Scheme("gather_blocks", "native")


def matrix(shape: tuple[int, ...], fmt: IntFormat, activations) -> Scheme:
    grouped = isinstance(fmt.granularity, PerGroup)
    if isinstance(activations, StaticActivations):
        if grouped or fmt.bits == 2 or fmt.bits == 16:
            raise Refused(f"ONNX Runtime has no kernel with static int8 activations and {fmt.bits}-bit {fmt.granularity} weights")
        return integer(fmt)
    if isinstance(activations, DynamicActivations) and not grouped and fmt.bits in (4, 8):
        return integer(fmt) if fmt.bits == 8 else blocks(shape, fmt, "activations are quantized by MatMulNBits, each block of inputs on its own")
    if isinstance(activations, DynamicActivations) and fmt.bits <= 8:
        return blocks(shape, fmt, "activations are quantized by MatMulNBits, each block of inputs on its own")
    if fmt.bits >= 8:
        why = "ONNX Runtime's kernels for them quantize the activations too, or are slower than float"
        return Scheme("decode", "decoded", f"int{fmt.bits} weights are {AT_LOAD}: {why}")
    return blocks(shape, fmt, "")


def integer(fmt: IntFormat) -> Scheme:
    return Scheme("integer", "native", "" if fmt.bits == 8 else f"int{fmt.bits} codes become int8 when the file is loaded")


def blocks(shape: tuple[int, ...], fmt: IntFormat, reason: str) -> Scheme:
    block_of(shape, fmt)
    return Scheme("blocks", "native", reason)


def block_of(shape: tuple[int, ...], fmt: IntFormat) -> int:
    """Block size, a power of two from 16, that divides the reach of a scale; a whole row that none divides is padded to one. Refused without one."""
    inputs = prod(shape[1:])
    grouped = isinstance(fmt.granularity, PerGroup)
    reach = fmt.granularity.size if grouped else inputs
    size = min(reach & -reach, LARGEST_BLOCK)
    if size >= 16:
        return size
    if grouped:
        raise Refused(f"MatMulNBits takes blocks of 16, 32, 64, ... inputs; no such block divides groups of {reach}")
    size = max(16, 1 << (inputs - 1).bit_length())
    if fmt.bits == 2 and size > LARGEST_BLOCK:
        raise Refused(f"MatMulNBits takes 2-bit blocks of at most {LARGEST_BLOCK} inputs, and none of 16 or more divides {inputs}")
    return size


def convolution(kind: str, fmt: IntFormat, activations) -> Scheme:
    if fmt.bits == 2:
        raise Refused("MatMulNBits, ONNX Runtime's only kernel for 2-bit integers, takes linear layers")
    if activations is None or kind == "recurrent":
        return Scheme("decode", "decoded", f"int{fmt.bits} weights are {AT_LOAD}" + (", activations stay float" if activations else ""))
    if isinstance(activations, DynamicActivations):
        why = "ConvInteger has one scale for all channels and is slower than a float convolution"
        return Scheme("decode", "decoded", f"{AT_LOAD}, activations stay float: {why}")
    if "transpose" in kind:
        return Scheme("decode", "decoded", f"{AT_LOAD}, activations stay float: ONNX Runtime has no integer ConvTranspose")
    if isinstance(fmt.granularity, PerGroup) or fmt.bits == 16:
        raise Refused(f"QLinearConv takes one scale for each output channel and at most 8 bits, not {fmt.bits}-bit {fmt.granularity}")
    if not fmt.symmetric:
        raise Refused("QLinearConv takes one zero point for all channels; choose a symmetric rule")
    return Scheme("qlinear_conv", "native", "" if fmt.bits == 8 else f"int{fmt.bits} codes become int8 when the file is loaded")


def scheme_of(decision: Decision) -> Scheme:
    return scheme(decision.kind, decision.shape, decision.format, decision.activations)
