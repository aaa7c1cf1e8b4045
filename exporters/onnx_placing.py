"""Kernels put in the place of float nodes, computing with the core's own codes and scales."""

from math import prod

import numpy as np
import onnx_ir as ir

from compress.formats import DynamicActivations
from compress.plan import Decision
from exporters.onnx_codebooks import bnb4_inputs
from exporters.onnx_graph import MICROSOFT, Builder, Use
from exporters.onnx_layouts import Layout
from exporters.onnx_rows import gather_levels
from exporters.onnx_schemes import AT_LOAD, BNB4, Kernel, Scheme, bnb4_block, scheme, width
from exporters.onnx_storing import FLOAT, Stored, in_layout
from exporters.onnx_unpacking import byte_type, first

SEES = {"MatMul": "linear", "Gemm": "linear", "Gather": "embedding"}  # the layer kind that a node makes of a tied weight
PACKED = ("blocks", "gather_blocks", "gather_levels", "bnb4")  # codes lie as these kernels want them
BIAS_REACH = np.float32(2**30)  # of int32's 2^31: room for the products that the accumulator adds


def schemes_for(decision: Decision, uses: list[Use]) -> list[Scheme]:
    """The kernel of every node that computes with the weight. Refused where one has none for it."""
    schemes = [kernel_for(use, decision) for use in uses]
    if any(s.kernel in PACKED for s in schemes) and not all(s.kernel in PACKED for s in schemes):
        schemes = [at_load("nodes of different kinds share the weight") if s.kernel in PACKED else s for s in schemes]
    return schemes


def place(build: Builder, value: ir.Value, layout: Layout, stored: Stored, decision: Decision, uses: list[Use]) -> Scheme:
    """Rewrites every node that computes with an initializer; the scheme that came of it, with the reasons of all its nodes."""
    done = [PLACE[s.kernel](build, stored, use, decision) or s for s, use in zip(schemes_for(decision, uses), uses, strict=True)]
    if any(s.kernel == "decode" for s in done):
        build.replace(value, in_layout(build, stored.decoded(), stored.shape, layout, stored.name))
    placement = "native" if all(s.placement == "native" for s in done) else "decoded"
    return Scheme(done[0].kernel, placement, "; ".join(dict.fromkeys(s.reason for s in done if s.reason)))


def kernel_for(use: Use, decision: Decision) -> Scheme:
    kind = SEES.get(use.node.op_type, decision.kind)
    kind = decision.kind if decision.kind == "attention" and kind == "linear" else kind
    if use.rows is None:
        return at_load(f"{use.node.op_type} reads it in an order that no integer kernel takes")
    found = scheme(kind, decision.shape, decision.format, decision.activations)
    if found.kernel == "bnb4" and use.rows[0] * prod(decision.shape[1:]) % bnb4_block(decision.shape, decision.format.granularity):
        return at_load(f"a part of it starts inside a block of {decision.format.granularity.size} values")
    return found


def at_load(why: str) -> Scheme:
    return Scheme("decode", "decoded", f"{AT_LOAD}: {why}")


def decode(build: Builder, stored: Stored, use: Use, decision: Decision) -> None:
    """Nothing yet: the initializer itself is replaced once, for all such nodes."""


def bias_of(node: ir.Node, outputs: int) -> tuple[ir.Value | None, ir.Value]:
    """The bias of a MatMul or Gemm, if a constant one follows or is inside, and the value that the layer computes."""
    result = node.outputs[0]
    if node.op_type == "Gemm":
        return (node.inputs[2] if len(node.inputs) > 2 else None), result
    following = list(result.uses())
    if len(following) == 1 and following[0].node.op_type == "Add" and not result.is_graph_output():
        add = following[0].node
        other = add.inputs[1 - following[0].idx]
        if other.is_initializer() and tuple(other.shape) == (outputs,):
            return other, add.outputs[0]
    return None, result


def activation(build: Builder, node: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value]:
    """uint8 values, scale and zero point of a layer's input: calibrated ones where the input was quantized already, else those of the moment."""
    x = node.inputs[0]
    source = x.producer()
    if source is not None and source.op_type == "DequantizeLinear":
        return tuple(source.inputs)
    for consumer, _ in x.uses():
        if consumer.op_type == "DynamicQuantizeLinear":
            return tuple(consumer.outputs)
    return tuple(build.node("DynamicQuantizeLinear", [x], f"{x.name}/quantized", outputs=3))


def integer(build: Builder, stored: Stored, use: Use, decision: Decision) -> None:
    name, scales = stored.name, stored.encoded.scales
    bias, result = bias_of(use.node, use.rows[1] - use.rows[0])
    codes, scale, zero = activation(build, use.node)
    weight = build.node("Transpose", [stored.bytes(use.rows)], f"{name}/transposed", perm=[1, 0])
    weight_scale, weight_zero = stored.scales(scales.shape), stored.zero_points(scales.shape, byte_type(decision.format))
    if scales.ndim:
        weight_scale = stored.rows(weight_scale, use.rows)
        weight_zero = None if weight_zero is None else stored.rows(weight_zero, use.rows)
    inputs = [codes, weight, scale, weight_scale, zero, weight_zero, bias]
    build.replace(result, build.node("MatMulIntegerToFloat", inputs, f"{name}/product", MICROSOFT))


def blocks(build: Builder, stored: Stored, use: Use, decision: Decision) -> None:
    name, count = stored.name, use.rows[1] - use.rows[0]
    bias, result = bias_of(use.node, count)
    zero = stored.block_zero_points()
    inputs = [use.node.inputs[0], stored.rows(stored.packed(), use.rows), stored.rows(stored.block_scales(), use.rows)]
    inputs += [None if zero is None else stored.rows(zero, use.rows), None, bias]
    level = 4 if isinstance(decision.activations, DynamicActivations) else 1  # int8 or float32 activations
    sizes = {"K": stored.inputs, "N": count, "bits": width(decision.format), "block_size": stored.block}
    build.replace(result, build.node("MatMulNBits", inputs, f"{name}/product", MICROSOFT, accuracy_level=level, **sizes))


def bnb4(build: Builder, stored: Stored, use: Use, decision: Decision) -> None:
    """MatMulBnb4 has no bias of its own."""
    name, node, count = stored.name, use.node, use.rows[1] - use.rows[0]
    codes, absmax, block = bnb4_inputs(stored, use.rows)
    kind = BNB4[decision.format.codebook]
    product = build.node(
        "MatMulBnb4", [node.inputs[0], codes, absmax], f"{name}/product", MICROSOFT, K=stored.inputs, N=count, block_size=block, quant_type=kind
    )
    bias = node.inputs[2] if node.op_type == "Gemm" and len(node.inputs) > 2 else None
    build.replace(node.outputs[0], product if bias is None else build.node("Add", [product, bias], f"{name}/biased"))


def gather(build: Builder, stored: Stored, use: Use, decision: Decision) -> None:
    name, ids = stored.name, use.node.inputs[1]
    per_row = stored.encoded.scales.ndim > 0
    shape = (stored.shape[0], 1) if per_row else ()

    def picked(value: ir.Value, what: str) -> ir.Value:
        return build.node("Gather", [value, ids], f"{name}/{what}", axis=0) if value is not None and per_row else value

    values = build.cast(build.node("Gather", [stored.codes(), ids], f"{name}/rows_int", axis=0), FLOAT, f"{name}/rows_float")
    zero = picked(stored.zero_points(shape), "row_zero_points")
    if zero is not None:
        values = build.node("Sub", [values, zero], f"{name}/rows_centred")
    build.replace(use.node.outputs[0], build.node("Mul", [values, picked(stored.scales(shape), "row_scales")], f"{name}/rows_decoded"))


def gather_blocks(build: Builder, stored: Stored, use: Use, decision: Decision) -> None:
    name, bits = stored.name, width(decision.format)
    rows = build.reshape(stored.packed(), (stored.shape[0], stored.blocks * stored.block * bits // 8), f"{name}/rows")
    if stored.blocks * stored.block > stored.inputs:
        rows = first(build, rows, stored.inputs * bits // 8, 1, f"{name}/rows_unpadded")
    inputs = [rows, use.node.inputs[1], stored.block_scales(), stored.block_zero_points()]
    picked = build.node("GatherBlockQuantized", inputs, f"{name}/rows_decoded", MICROSOFT, bits=bits, block_size=stored.block, gather_axis=0, quantize_axis=1)
    build.replace(use.node.outputs[0], picked)


def qlinear_conv(build: Builder, stored: Stored, use: Use, decision: Decision) -> Scheme | None:
    """DequantizeLinear for weight and bias, which ONNX Runtime fuses to QLinearConv."""
    node, name, scales = use.node, stored.name, stored.encoded.scales
    codes, scale, reason = stored.bytes((0, stored.shape[0])), stored.scales(scales.shape), None
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        scale_in = node.inputs[0].producer().inputs[1]
        values, step_in = bias.const_value.numpy(), scale_in.const_value.numpy()
        least = np.abs(values) / (step_in * BIAS_REACH)  # the smallest weight scales that keep the bias inside int32
        if np.any(least > np.abs(scales)):
            codes, scale, reason = coarser(build, stored, codes, scale, least)
        steps = np.maximum(np.abs(scales), least) * np.sign(scales) * step_in
        integers = build.constant(f"{name}/bias", np.rint(values / steps).astype(np.int32))
        fine = build.node("Mul", [scale, scale_in], f"{name}/bias_scale")
        node.replace_input_with(2, build.node("DequantizeLinear", [integers, fine], f"{name}/bias_float", axis=0))
    axis = {"axis": 0} if scales.ndim or reason else {}
    node.replace_input_with(1, build.node("DequantizeLinear", [codes, scale], f"{name}/weight", **axis))
    return reason and Scheme("qlinear_conv", "native", reason)


def coarser(build: Builder, stored: Stored, codes: ir.Value, scale: ir.Value, least: np.ndarray) -> tuple[ir.Value, ir.Value, str]:
    """Codes and scales as the kernel gets them where some channel's weights are so small that its bias overflows int32 at their scale.

    The file keeps the core's; folding at load rounds these channels' codes to the smallest scale that holds the bias. A weight moves by at
    most half such a scale, all of a channel's products together by at most inputs * 2^-23 of its bias.
    """
    name, scales = stored.name, stored.encoded.scales
    kernel = np.broadcast_to(np.maximum(np.abs(scales), least) * np.sign(scales), least.shape).astype(np.float32)
    few = stored.once("kernel_scales", lambda: kernel)
    column = (-1, *[1] * (len(stored.shape) - 1))
    ratio = build.reshape(build.node("Div", [scale, few], f"{name}/ratio"), column, f"{name}/ratios")
    moved = build.node("Mul", [build.cast(codes, FLOAT, f"{name}/codes_float"), ratio], f"{name}/coarse")
    rounded = build.cast(build.node("Round", [moved], f"{name}/rounded"), byte_type(stored.encoded.format), f"{name}/codes_kernel")
    count = int((least > np.abs(scales)).sum())
    return rounded, few, f"the bias of {count} channel(s) overflows int32 at the scale of their tiny weights, which are rounded to a coarser one at load"


PLACE: dict[Kernel, object] = {
    "decode": decode,
    "integer": integer,
    "qlinear_conv": qlinear_conv,
    "blocks": blocks,
    "bnb4": bnb4,
    "gather": gather,
    "gather_levels": gather_levels,
    "gather_blocks": gather_blocks,
}
