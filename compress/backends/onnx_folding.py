"""Batch norms of an ONNX graph folded into the layers before them, in float64 as the other backends do.

onnxscript's rules fold in float32, which gives other codes, and leave convolutions without a bias alone.
"""

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

from compress.backends.onnx_layers import Role, canonical, file_layout, role_of

LAYERS = ("Conv", "ConvTranspose", "Gemm")
EPSILON = 1e-5  # ONNX's default


def fold_batch_norms(model: ir.Model) -> tuple[str, ...]:
    """Folds every batch norm that alone reads a layer's output, in place; notes say how many."""
    norms = [node for node in model.graph if node.op_type == "BatchNormalization"]
    count = sum(fold(model.graph, norm) for norm in norms)
    passes.RemoveUnusedNodesPass()(model)
    left = len(norms) - count
    notes = [f"{count} batch norms folded into the layers before them"] if count else []
    return (*notes, *([f"{left} batch norms left as they are (not alone behind a convolution or linear layer)"] if left else []))


def fold(graph: ir.Graph, norm: ir.Node) -> bool:
    layer = norm.inputs[0].producer()
    if layer is None or layer.op_type not in LAYERS or len(norm.inputs[0].uses()) > 1 or norm.inputs[0].is_graph_output():
        return False
    weight, bias = layer.inputs[1], layer.inputs[2] if len(layer.inputs) > 2 else None
    constants = [weight, *norm.inputs[1:], *([] if bias is None else [bias])]
    own = all(len(value.uses()) == 1 for value in (weight, *([] if bias is None else [bias])))
    plain = layer.op_type != "Gemm" or all(layer.attributes[name].as_float() == 1 for name in ("alpha", "beta") if name in layer.attributes)
    if not own or not plain or any(value.const_value is None or value.dtype != ir.DataType.FLOAT for value in constants):
        return False
    gamma, beta, mean, variance = (value.const_value.numpy().astype(np.float64) for value in norm.inputs[1:])
    epsilon = norm.attributes["epsilon"].as_float() if "epsilon" in norm.attributes else EPSILON
    scale = gamma / np.sqrt(variance + float(str(np.float32(epsilon))))  # 1e-5, not the float32 next to it
    if bias is not None and bias.const_value.size != scale.size:
        return False
    role, values = role_of(weight), weight.const_value.numpy()
    set_value(weight, scaled(values, scale, role))
    old = 0 if bias is None else bias.const_value.numpy().astype(np.float64).reshape(-1)
    moved = ((old - mean) * scale + beta).astype(np.float32)
    if bias is None:
        bias = ir.val(f"{weight.name}_bias", ir.DataType.FLOAT, [moved.size], const_value=ir.tensor(moved, name=f"{weight.name}_bias"))
        graph.register_initializer(bias)
        layer.resize_inputs(3)
        layer.replace_input_with(2, bias)
    else:
        set_value(bias, moved.reshape(bias.const_value.shape.numpy()))
    norm.outputs[0].replace_all_uses_with(layer.outputs[0], replace_graph_outputs=True)
    graph.remove(norm, safe=True)
    return True


def scaled(values: np.ndarray, scale: np.ndarray, role: Role) -> np.ndarray:
    """The weight with its output channels scaled, where it lies as it did."""
    found = canonical(values.astype(np.float64), role)
    return file_layout((found * scale.reshape(-1, *[1] * (found.ndim - 1))).astype(np.float32), role, values.shape)


def set_value(value: ir.Value, array: np.ndarray) -> None:
    value.const_value = ir.tensor(array, name=value.name)
