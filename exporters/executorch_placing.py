"""Which arithmetic an ExecuTorch file gives a tensor, decided from the plan alone."""

from dataclasses import dataclass, field
from typing import Literal

from compress.errors import Refused
from compress.formats import CodebookFormat, FloatFormat, IntFormat, PerAxis, PerGroup, PerTensor, StaticActivations
from compress.plan import Decision
from exporters import Placed

Way = Literal["decode", "dynamic", "static"]
"""decode   expanded to float32 by ExecuTorch's portable kernels at each run, before the operator that reads it; convolutions become products of matrices
dynamic  XNNPACK's product of int8 or int4 weights with activations quantized per token at run time
static   XNNPACK's int8 product with activations quantized by calibrated ranges
"""

LINEAR = ("linear", "attention")
PRODUCTS = ("conv1d", "conv2d", "depthwise_conv1d", "depthwise_conv2d")  # see exporters.executorch_products
CONVOLUTIONS = (*PRODUCTS, "conv_transpose2d")
GROUP = 32  # XNNPACK's int4 groups hold a multiple of this many inputs
QUANTIZES = "XNNPACK's int4 kernel quantizes activations to int8 at run time"


@dataclass(frozen=True)
class Choice(Placed):
    way: Way = field(kw_only=True)
    at_load = False  # ExecuTorch computes nothing when it loads a file


def place(decision: Decision, framework: str) -> Choice:
    """The arithmetic for a tensor with a format. Refused where no file can hold it, or its expansion at every run would cost more than the layer."""
    fmt, activations = decision.format, decision.activations
    if isinstance(activations, StaticActivations) and activations.bits == 16:
        raise Refused("XNNPACK has no kernels for 16-bit integer activations")
    if isinstance(fmt, FloatFormat):
        return decode(decision, f"stored in {fmt.dtype}")
    if isinstance(fmt, CodebookFormat) or not fmt.plain:
        raise Refused(f"XNNPACK does not compute with {fmt}, and ExecuTorch has no step in which it could be expanded once, when the file is loaded")
    if fmt.bits == 4:
        return int4(decision, fmt)
    if fmt.bits != 8 or not isinstance(fmt.granularity, PerTensor | PerAxis):
        raise Refused(f"XNNPACK computes with int8 per tensor or channel and with int4 per channel or group, not with {fmt}")
    return int8(decision, fmt)


def decode(decision: Decision, why: str) -> Choice:
    if decision.kind == "embedding":
        return Choice("decoded", f"{why}: the rows that are looked up are expanded to float32", way="decode")
    unquantized = "" if decision.activations is None else " with activations in float"
    runs = "is a product of matrices" if decision.kind in PRODUCTS else "runs outside of XNNPACK"
    return Choice("decoded", f"{why}: it is expanded to float32 at each run, and its layer {runs}{unquantized}", way="decode")


def int8(decision: Decision, fmt: IntFormat) -> Choice:
    kind, activations = decision.kind, decision.activations
    if kind == "embedding":
        return decode(decision, f"stored in {fmt}")
    if activations is None:
        return decode(decision, "XNNPACK computes with int8 weights only where activations are int8 too")
    if not fmt.symmetric or fmt.negative_scales:
        return decode(decision, f"XNNPACK's int8 weights have positive scales and no zero points, unlike rule {fmt.rule!r}")
    if isinstance(activations, StaticActivations):
        known = kind in (*LINEAR, *CONVOLUTIONS)
        return Choice("native", way="static") if known else decode(decision, f"XNNPACK has no static int8 kernel for layers of kind {kind}")
    if kind in LINEAR or (kind == "conv2d" and decision.shape[1] > 1):  # XNNPACK runs one input channel in its depthwise kernel
        return Choice("native", way="dynamic")
    return decode(decision, f"XNNPACK has no kernel for dynamic activations in layers of kind {kind}")


def int4(decision: Decision, fmt: IntFormat) -> Choice:
    for wrong, reason in int4_limits(decision, fmt):
        if wrong:
            raise Refused(f"XNNPACK's int4 kernel cannot take it: {reason}")
    return Choice("native", "" if decision.activations else QUANTIZES, way="dynamic")


def int4_limits(decision: Decision, fmt: IntFormat):
    groups = fmt.granularity.size if isinstance(fmt.granularity, PerGroup) else None
    yield decision.kind not in LINEAR, f"it multiplies linear layers only, and this is a layer of kind {decision.kind}"
    yield isinstance(decision.activations, StaticActivations), "it quantizes activations at run time and takes no static ranges"
    yield not fmt.symmetric or fmt.negative_scales, f"its scales are positive and it has no zero points, unlike rule {fmt.rule!r}"
    yield groups is not None and groups % GROUP, f"its groups hold a multiple of {GROUP} values, not {groups}"
    yield groups is not None and decision.shape[1] % groups, f"its groups are whole, and {decision.shape[1]} inputs are no multiple of {groups}"
    yield groups is not None and fmt.scale_dtype != "bfloat16", f"the scales of its groups are bfloat16, the format's {fmt.scale_dtype}"
