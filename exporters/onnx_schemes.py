"""Which kernel of ONNX Runtime computes with a weight, decided from the plan alone: nothing is imported here."""

from dataclasses import dataclass
from math import gcd, prod
from typing import Literal

from compress.artifact import Placement
from compress.errors import Refused
from compress.formats import (
    CodebookFormat,
    DynamicActivations,
    FloatFormat,
    Format,
    Granularity,
    IntFormat,
    PerAxis,
    PerBlock,
    PerGroup,
    PerTensor,
    StaticActivations,
)
from compress.plan import Decision

Kernel = Literal["decode", "integer", "qlinear_conv", "blocks", "bnb4", "gather", "gather_levels", "gather_blocks"]
"""decode         expanded to float32 by constant folding when the file is loaded
integer        MatMulIntegerToFloat: uint8 activations times 8-bit weights
qlinear_conv   DequantizeLinear around Conv, which ONNX Runtime fuses to QLinearConv
blocks         MatMulNBits: 2, 4 or 8 bit blocks along the inputs
bnb4           MatMulBnb4: NF4 and FP4 in flat blocks
gather         rows of codes are gathered, then decoded
gather_levels  rows of packed codes are gathered, then decoded from a codebook
gather_blocks  GatherBlockQuantized: the same for 2 and 4 bits and for groups
"""

FOLDED: tuple[Kernel, ...] = ("decode", "integer", "qlinear_conv")
"""Before these, ONNX Runtime folds whatever makes the codes when a file is loaded; the other kernels read codes as they lie in the file."""

MATRICES = ("linear", "attention")
LARGEST_BLOCK = 256  # of MatMulNBits for 2 bits, and of MatMulBnb4; larger ones bring nothing for 4 and 8
BNB4 = {"fp4_bnb": 0, "nf4": 1}
"""MatMulBnb4's quant_type of the codebooks that it knows."""


@dataclass(frozen=True)
class Scheme:
    kernel: Kernel
    placement: Placement
    reason: str = ""


AT_LOAD = "expanded to float32 when the file is loaded"
IN_BLOCKS = "activations are quantized by MatMulNBits, each block of inputs on its own"


def scheme(kind: str, shape: tuple[int, ...], fmt: Format, activations) -> Scheme:
    """How ONNX Runtime's CPU provider stores and computes a weight of this kind. Refused where it cannot."""
    if isinstance(activations, StaticActivations) and activations.bits == 16:
        raise Refused("ONNX Runtime's CPU provider has no kernels with int16 activations")
    if isinstance(fmt, FloatFormat):
        return Scheme("decode", "decoded", f"{fmt.dtype} {AT_LOAD}")
    if isinstance(activations, StaticActivations) and kind != "embedding":
        return static(kind, fmt)
    if isinstance(fmt, CodebookFormat):
        found = codebook(kind, shape, fmt)
    elif kind == "embedding":
        return embedding(shape, fmt)
    else:
        found = matrix(shape, fmt, activations) if kind in MATRICES else convolution(fmt, activations)
    in_float = activations is not None and kind != "embedding" and found.kernel in ("decode", "bnb4") and "activations" not in found.reason
    return Scheme(found.kernel, found.placement, "; ".join(filter(None, [found.reason, "activations stay float"]))) if in_float else found


def width(fmt: IntFormat) -> int:
    """Bits of the narrowest codes of MatMulNBits that hold the format's."""
    return next(bits for bits in (2, 4, 8, 16) if bits >= fmt.bits)


def widened(fmt: IntFormat, bits: int, what: str) -> str:
    return "" if fmt.bits == bits else f"{name(fmt)} codes become {what} when the file is loaded"


def name(fmt: IntFormat, bits: int | None = None) -> str:
    return f"{'' if fmt.signed else 'u'}int{bits or fmt.bits}"


def codebook(kind: str, shape: tuple[int, ...], fmt: CodebookFormat) -> Scheme:
    if kind == "embedding" and rows_alone(shape, fmt):
        return Scheme("gather_levels", "decoded", "rows are gathered as codes and expanded to float32 one by one")
    if fmt.codebook not in BNB4 or fmt.scaling == "none":
        return Scheme("decode", "decoded", f"{AT_LOAD}: ONNX Runtime has no kernel that computes with {fmt}")
    if kind not in MATRICES:
        return Scheme("decode", "decoded", f"{AT_LOAD}: MatMulBnb4, ONNX Runtime's only kernel for {fmt.codebook}, takes linear layers")
    if bnb4_block(shape, fmt.granularity) is None:
        return Scheme(
            "decode", "decoded", f"{AT_LOAD}: MatMulBnb4 takes flat blocks of 16, 32, 64, 128 or 256 values, into which {fmt.granularity} does not divide"
        )
    scales = "double-quantized scales become float32 when the file is loaded; " if fmt.double else ""
    return Scheme("bnb4", "native", f"{scales}MatMulBnb4 expands the codes again in every run, and is slower than float where inputs are few")


def rows_alone(shape: tuple[int, ...], fmt: CodebookFormat) -> bool:
    """Whether a row of a table has its own bytes and its own scales, in equal groups, so that it can be decoded by itself."""
    inputs = prod(shape[1:])
    even = isinstance(fmt.granularity, PerTensor | PerAxis) or inputs % fmt.granularity.size == 0
    return even and 8 % fmt.bits == 0 and inputs * fmt.bits % 8 == 0


def bnb4_block(shape: tuple[int, ...], granularity: Granularity) -> int | None:
    """Block size of MatMulBnb4, whose blocks run on through the whole tensor: the largest that divides the reach of a scale; None without one."""
    inputs = prod(shape[1:])
    if isinstance(granularity, PerTensor):
        return LARGEST_BLOCK
    if isinstance(granularity, PerGroup) and inputs % granularity.size:
        return None
    reach = inputs if isinstance(granularity, PerAxis) else granularity.size
    size = min(reach & -reach, LARGEST_BLOCK)
    return size if size >= 16 else None


def static(kind: str, fmt: Format) -> Scheme:
    """Weights that meet calibrated int8 activations."""
    if kind == "recurrent" or "transpose" in kind:
        return Scheme("decode", "decoded", f"{fmt} {AT_LOAD}, activations stay float: ONNX Runtime has no such integer layer")
    if isinstance(fmt, CodebookFormat) or not isinstance(fmt.granularity, PerTensor | PerAxis) or fmt.bits == 16 or fmt.zero_point != "integer":
        raise Refused(f"ONNX Runtime has no kernel with static int8 activations and {fmt} weights: they take integers of at most 8 bits by tensor or channel")
    if kind in MATRICES:
        return integer(fmt)
    if not fmt.symmetric:
        raise Refused("QLinearConv takes one zero point for all channels; choose a symmetric rule")
    return Scheme("qlinear_conv", "native", widened(fmt, 8, name(fmt, 8)))


def embedding(shape: tuple[int, ...], fmt: IntFormat) -> Scheme:
    by_row = isinstance(fmt.granularity, PerTensor | PerAxis)
    if fmt.bits in (8, 16) and by_row and fmt.zero_point == "integer":
        return Scheme("gather", "decoded", "rows are gathered as integers and expanded to float32 one by one")
    why = without_blocks(shape, fmt)
    if fmt.bits == 16:
        why = "GatherBlockQuantized takes 2, 4 and 8 bits"
    elif fmt.zero_point != "integer":
        why = f"GatherBlockQuantized takes no {fmt.zero_point} zero points"
    elif prod(shape[1:]) * width(fmt) % 8:
        why = f"rows of {prod(shape[1:])} values of {width(fmt)} bits do not fill whole bytes"
    if why:
        return Scheme("decode", "decoded", f"the whole table is {AT_LOAD}: {why}")
    return Scheme("gather_blocks", "native", widened(fmt, width(fmt), f"{width(fmt)}-bit blocks"))


def matrix(shape: tuple[int, ...], fmt: IntFormat, activations) -> Scheme:
    by_row = isinstance(fmt.granularity, PerTensor | PerAxis)
    dynamic = isinstance(activations, DynamicActivations)
    if fmt.bits == 16 or width(fmt) == 8 and not dynamic:
        return Scheme(
            "decode", "decoded", f"{name(fmt)} weights are {AT_LOAD}: ONNX Runtime's kernels for them quantize the activations too, or are slower than float"
        )
    if dynamic and by_row and width(fmt) == 8 and fmt.zero_point == "integer":
        return integer(fmt)
    why = without_blocks(shape, fmt)
    if fmt.zero_point != "integer" and width(fmt) == 8:
        why = f"MatMulNBits takes no {fmt.zero_point} zero points for 8 bits"
    if why:
        return Scheme("decode", "decoded", f"{name(fmt)} weights are {AT_LOAD}: {why}")
    padded = -prod(shape[1:]) % block_of(shape, fmt)
    padding = padded and f"rows of {prod(shape[1:])} codes are padded with {padded} more to whole blocks"
    inexact = fmt.zero_point == "offset" and "offsets become float zero points, -offset / scale, when the file is loaded, which rounds them once more"
    moving = dynamic and (IN_BLOCKS if fmt.zero_point == "integer" else "activations stay float: MatMulNBits quantizes them only beside integer zero points")
    reasons = [widened(fmt, width(fmt), f"{width(fmt)}-bit blocks"), padding, inexact, moving]
    return Scheme("blocks", "native", "; ".join(filter(None, reasons)))


def integer(fmt: IntFormat) -> Scheme:
    return Scheme("integer", "native", widened(fmt, 8, name(fmt, 8)))


def columns(shape: tuple[int, ...], granularity: Granularity) -> int | None:
    """Scales of each output channel, 1 where it shares one; None where blocks do not end with the channels."""
    inputs = prod(shape[1:])
    if isinstance(granularity, PerTensor | PerAxis):
        return 1
    if isinstance(granularity, PerBlock) and inputs % granularity.size:
        return None
    return -(-inputs // granularity.size)


def without_blocks(shape: tuple[int, ...], fmt: IntFormat) -> str:
    """Why MatMulNBits and GatherBlockQuantized have no block for the format; empty where they have one."""
    inputs = prod(shape[1:])
    if columns(shape, fmt.granularity) is None:
        return f"blocks of {fmt.granularity.size} values run on from one channel of {inputs} inputs to the next"
    if block_of(shape, fmt) is None:
        reach = inputs if isinstance(fmt.granularity, PerTensor | PerAxis) else fmt.granularity.size
        return f"MatMulNBits takes blocks of 16, 32, 64, ... inputs, for 2 bits at most {LARGEST_BLOCK}; none of them divides {reach}"
    return ""


def block_of(shape: tuple[int, ...], fmt: IntFormat) -> int | None:
    """Block size, a power of two from 16, that divides the reach of a scale. Rows are padded where none divides them too. None without one."""
    inputs = prod(shape[1:])
    by_row = isinstance(fmt.granularity, PerTensor | PerAxis) or fmt.granularity.size >= inputs
    reach = inputs if by_row else fmt.granularity.size
    for divided in (gcd(reach, inputs), reach):
        size = min(divided & -divided, LARGEST_BLOCK)
        if size >= 16:
            return size
    size = max(16, 1 << (inputs - 1).bit_length())
    return size if by_row and (width(fmt) > 2 or size <= LARGEST_BLOCK) else None


def convolution(fmt: IntFormat, activations) -> Scheme:
    if activations is None:
        return Scheme("decode", "decoded", f"{name(fmt)} weights are {AT_LOAD}")
    why = "ConvInteger has one scale for all channels and is slower than a float convolution"
    return Scheme("decode", "decoded", f"{AT_LOAD}, activations stay float: {why}")


def scheme_of(decision: Decision) -> Scheme:
    return scheme(decision.kind, decision.shape, decision.format, decision.activations)
