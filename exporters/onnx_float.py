"""A network as a float ONNX graph whose layer weights are still whole: converted once, then shared by every recipe."""

import tempfile
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path

import onnx_ir as ir
import onnx_ir.passes.common as passes
import onnxscript.optimizer

from compress.backends.keras_in_torch import OPSET, to_onnx
from compress.errors import ExportError, Refused
from compress.network import COMPRESSIBLE, Network, Weight
from exporters.onnx_layouts import Layout, fingerprint, layout_of

LARGEST_FILE = 2**31 - 1  # bytes of one protobuf message
IR_VERSION = 10
TAKING_APART = ["MatMulAddFusion", "GemmSumFusion", "GemmTransposeFusion", "MatMul_BatchNormalization_Fusion"]  # they hide the layers that are placed later

Found = dict[str, tuple[str, Layout]]
"""A plan's name to the initializer that holds the tensor and how it lies there. Tensors that the graph never uses are absent."""

CONVERTED: "weakref.WeakKeyDictionary[Network, tuple[bytes, Found]]" = weakref.WeakKeyDictionary()


def float_model(network: Network) -> tuple[ir.Model, Found]:
    """A fresh copy of the network's float graph. ExportError where its framework cannot export it, Refused beyond 2 GB."""
    import onnx

    if network not in CONVERTED:
        model, found = convert(network)
        proto = ir.to_proto(model)
        if proto.ByteSize() > LARGEST_FILE:
            raise Refused(f"the float graph takes {proto.ByteSize():,} bytes, and one ONNX file holds less than 2 GB")
        CONVERTED[network] = proto.SerializeToString(), found
    data, found = CONVERTED[network]
    return ir.from_proto(onnx.load_from_string(data)), found


def convert(network: Network) -> tuple[ir.Model, Found]:
    weights = {name: weight for name, weight in network.weights().items() if weight.kind in COMPRESSIBLE}
    model = {"pytorch": from_torch, "keras": from_keras, "onnx": from_onnx}[network.framework](network)
    if network.framework != "onnx":  # a file of the user's own runs as it is
        model = with_inputs_for(model, find(model.graph, weights), optimized)
    if network.framework == "keras":
        # Convolution kernels may be folded here: Keras's [*kernel, in, out] becomes ONNX's [out, in, *kernel], a bias enters its convolution.
        biases_into_convolutions(model.graph)
        matrices = {name: weight for name, weight in weights.items() if "conv" not in weight.kind}
        model = with_inputs_for(model, find(model.graph, matrices), without_transposes)
    passes.ClearMetadataAndDocStringPass()(model)
    model.doc_string, model.ir_version = None, max(IR_VERSION, model.ir_version or 0) if network.framework == "onnx" else IR_VERSION
    passes.RemoveUnusedNodesPass()(model)
    return model, find(model.graph, weights)


def from_torch(network: Network) -> ir.Model:
    import torch

    names = [spec.name for spec in network.inputs]
    try:
        return torch.onnx.export(network.model, network.example, dynamo=True, optimize=False, opset_version=OPSET, input_names=names, verbose=False).model
    except torch.onnx.errors.OnnxExporterError as error:
        raise ExportError(f"torch.onnx does not export {type(network.model).__name__}: {last_line(error)}") from error


def from_onnx(network: Network) -> ir.Model:
    return network.model.clone(deep_copy=True)


def last_line(error: BaseException) -> str:
    cause = error.__cause__ or error
    return str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__


def from_keras(network: Network) -> ir.Model:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "float.onnx"
        to_onnx(network.model, network.inputs, path)
        return ir.from_proto(ir.to_proto(ir.load(path)))


def find(graph: ir.Graph, weights: Mapping[str, Weight]) -> Found:
    """The initializer of every weight: by name where it has one that holds the same values, otherwise by value; each is taken once."""
    floats = {name: value.const_value.numpy() for name, value in graph.initializers.items() if value.dtype == ir.DataType.FLOAT and value.uses()}
    prints: dict[tuple, list[str]] = {}
    for name, array in floats.items():
        prints.setdefault(fingerprint(array), []).append(name)
    found: Found = {}
    for weight in weights.values():
        same = [name for name in prints.get(fingerprint(weight.value), ()) if name not in {taken for taken, _ in found.values()}]
        same.sort(key=lambda name: name not in (weight.name, *weight.tied))
        for name in same:
            layout = layout_of(weight.value, floats[name])
            if layout is not None:
                found[weight.name] = name, layout
                break
    return found


def with_inputs_for(model: ir.Model, found: Found, change: Callable[[ir.Model], ir.Model]) -> ir.Model:
    """The model after `change`, during which the found initializers are graph inputs: no optimizer can fold or merge them."""
    graph, held = model.graph, {}
    for name, _ in found.values():
        value = graph.initializers.pop(name)
        held[name], value.const_value = value.const_value, None
        graph.inputs.append(value)
    model = change(model)
    graph = model.graph
    for value in [value for value in graph.inputs if value.name in held]:
        graph.inputs.remove(value)
        value.const_value = held[value.name]
        graph.register_initializer(value)
    return model


def optimized(model: ir.Model) -> ir.Model:
    onnxscript.optimizer.optimize_ir(model)
    return model


def without_transposes(model: ir.Model) -> ir.Model:
    """The graph after ONNX Runtime's basic optimizations: Keras's channels-last layout costs a transpose before and behind every convolution."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "basic.onnx")
        ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"], disabled_optimizers=TAKING_APART)
        return ir.from_proto(ir.to_proto(ir.load(options.optimized_model_filepath)))


def biases_into_convolutions(graph: ir.Graph) -> None:
    """Keras adds a bias behind the transpose back to channels last, where ONNX Runtime does not always find it."""
    for node in list(graph):
        if node.op_type != "Add":
            continue
        moved = node.inputs[0].producer()
        conv = None if moved is None or moved.op_type != "Transpose" else moved.inputs[0].producer()
        bias = node.inputs[1].const_value
        if conv is None or conv.op_type != "Conv" or bias is None or len(moved.outputs[0].uses()) != 1 or len(moved.inputs[0].uses()) != 1:
            continue
        order = list(moved.attributes["perm"].as_ints())
        own = conv.inputs[2].const_value if len(conv.inputs) > 2 and conv.inputs[2] is not None else None
        channels = conv.inputs[1].shape[0]
        if order[-1] != 1 or bias.size != channels or bias.shape[-1] != channels or len(conv.inputs) > 2 and own is None:
            continue
        values = bias.numpy().reshape(-1) + (0 if own is None else own.numpy())
        added = ir.val(f"{node.outputs[0].name}/bias", ir.DataType.FLOAT, [channels], const_value=ir.tensor(values, name=f"{node.outputs[0].name}/bias"))
        graph.register_initializer(added)
        conv.resize_inputs(3)
        conv.replace_input_with(2, added)
        node.outputs[0].replace_all_uses_with(moved.outputs[0], replace_graph_outputs=True)
        graph.remove(node, safe=True)
