"""Which arithmetic a PyTorch file gives a tensor, decided from the plan alone."""

from dataclasses import dataclass
from typing import Literal

from compress.errors import Refused
from compress.formats import FloatFormat, IntFormat, PerGroup
from compress.plan import Decision, Placement
from exporters import refuse_exotic

Way = Literal["decode", "weight_only", "dynamic", "static", "int4"]
"""decode       expanded to float32 before the operator that reads it
weight_only  float product with the codes, scaled afterwards
dynamic      int8 product with activations quantized per token at run time
static       int8 product with activations quantized by calibrated ranges
int4         groups of 4-bit codes by aten._weight_int4pack_mm_for_cpu
"""

LINEAR = ("linear", "attention")
STATIC_CONVOLUTIONS = ("conv1d", "conv2d", "depthwise_conv1d", "depthwise_conv2d")
INT4_GROUPS = (32, 64, 128, 256)
INT4_ROWS = 16  # the kernel wants a multiple of this many outputs


@dataclass(frozen=True)
class Choice:
    way: Way
    placement: Placement
    reason: str = ""


def choose(decision: Decision) -> Choice:
    """The arithmetic for a tensor with a format. Refused where no file can hold it."""
    fmt, activations = decision.format, decision.activations
    if activations is not None and activations.type == "static" and activations.bits == 16:
        raise Refused("PyTorch has no kernels for 16-bit integer activations")
    refuse_exotic(fmt, "PyTorch")
    if isinstance(fmt, IntFormat) and fmt.bits not in (2, 4, 8, 16):
        raise Refused(f"PyTorch has no operators that unpack {fmt.bits}-bit codes (2, 4, 8 and 16 bits can be stored)")
    if isinstance(fmt, FloatFormat):
        return Choice("decode", "decoded", f"stored in {fmt.dtype}, computed in float32{unquantized(activations)}")
    if fmt.bits == 4 and isinstance(fmt.granularity, PerGroup):
        return int4(decision, fmt)
    plain = fmt.bits == 8 and fmt.symmetric and not isinstance(fmt.granularity, PerGroup)
    if activations is None or not plain:
        return without_activations(decision, fmt, plain)
    if activations.type == "dynamic":
        if decision.kind in LINEAR:
            return Choice("dynamic", "native")
        return Choice("decode", "decoded", f"PyTorch has no dynamic int8 kernel for layers of kind {decision.kind}; their activations stay in float")
    if decision.kind in (*LINEAR, *STATIC_CONVOLUTIONS) and fmt.rule != "signed":
        return Choice("static", "native")
    what = "negative scales" if fmt.rule == "signed" else f"layers of kind {decision.kind}"
    return Choice("decode", "decoded", f"PyTorch has no static int8 kernel for {what}; their activations stay in float")


def unquantized(activations) -> str:
    return "" if activations is None else "; its activations stay in float"


def int4(decision: Decision, fmt: IntFormat) -> Choice:
    problem = next((text for wrong, text in int4_limits(decision, fmt) if wrong), None)
    if problem is None:
        return Choice("int4", "native", f"the kernel computes in bfloat16{unquantized(decision.activations)}")
    return Choice("decode", "decoded", f"no int4 kernel: {problem}{unquantized(decision.activations)}")


def int4_limits(decision: Decision, fmt: IntFormat):
    yield decision.kind not in LINEAR, f"it multiplies linear layers only, this is a {decision.kind}"
    yield fmt.granularity.size not in INT4_GROUPS, f"its groups hold {', '.join(map(str, INT4_GROUPS))} values, not {fmt.granularity.size}"
    yield not fmt.symmetric, "it has no integer zero points"
    yield fmt.scale_dtype != "bfloat16", f"its scales are bfloat16, the recipe's {fmt.scale_dtype}"
    yield decision.shape[0] % INT4_ROWS != 0, f"it wants a multiple of {INT4_ROWS} outputs, not {decision.shape[0]}"


def without_activations(decision: Decision, fmt: IntFormat, plain: bool) -> Choice:
    if plain and decision.kind in LINEAR:
        return Choice("weight_only", "decoded", "codes are cast to float32 and the product is scaled: ATen's int8 weight-only kernel is fast in bfloat16 only")
    if decision.kind == "embedding" and plain:
        return Choice("decode", "decoded", "only the rows that are looked up are expanded to float32")
    return Choice("decode", "decoded", f"PyTorch's CPU kernels do not compute with {fmt} in layers of kind {decision.kind}{unquantized(decision.activations)}")
