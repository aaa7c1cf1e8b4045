"""Static activations: which tensors are quantized, with which ranges, and the QuantizeLinear/DequantizeLinear pairs around them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from compress.calibration import Range, observe
from compress.formats import IntFormat, StaticActivations
from compress.numerics.scales import asymmetric
from compress.pipeline import Compressed
from compress.samples import samples
from exporters.onnx_graph import Builder

SAME_RANGE = ("MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze")  # they move or pick values
INTEGER = ("Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "Sigmoid", "LeakyRelu")  # ONNX Runtime has integer kernels for them
TAKEN_OVER = ("Conv", "ConvTranspose", "Gemm")  # whose float weights ONNX Runtime quantizes itself between integer tensors
FUSED = ("Relu", "Clip")  # a rounding to the range behind them does their work

Layers = Mapping[ir.Node, StaticActivations]


@dataclass(frozen=True, eq=False)
class Marks:
    """What stays integer between the layers."""

    settings: dict[ir.Value, StaticActivations]  # every tensor to quantize, with the settings of the layer that needs it
    shares: dict[ir.Value, ir.Value]  # tensors that hold another's values and so have its range
    nodes: set[ir.Node]  # compute in integers, or only move them
    made: set[ir.Value]  # their results: nobody reads these in float

    def source(self, value: ir.Value) -> ir.Value:
        while value in self.shares:
            value = self.shares[value]
        return value


def quantize_activations(small: Compressed, model: ir.Model, build: Builder, layers: Layers) -> int:
    """Quantizes the inputs of `layers`, the outputs of convolutions among them, and all between that stays integer; how many ranges that took."""
    marks = mark(model.graph, layers)
    ranges = calibrate(small, model, {value.name: settings for value, settings in marks.settings.items() if value not in marks.shares})
    parameters = {name: constants(build, name, found) for name, found in ranges.items()}
    sources = {value: marks.source(value).name for value in marks.settings}
    for value, source in sources.items():
        surround(build, value, parameters[source], marks)
    return len(parameters)


def tail(node: ir.Node) -> ir.Value:
    """A node's output, or that of the activation function that alone reads it and is fused with it."""
    output = node.outputs[0]
    following = list(output.uses())
    alone = len(following) == 1 and following[0].node.op_type in FUSED and following[0].idx == 0 and not output.is_graph_output()
    return following[0].node.outputs[0] if alone else output


def mark(graph: ir.Graph, layers: Layers) -> Marks:
    """Starts at the layers and goes on through every node that has an integer kernel and only integer inputs."""
    marks = Marks({}, {}, set(layers), set())
    for node, settings in layers.items():
        marks.settings.setdefault(node.inputs[0], settings)
        if node.op_type == "Conv":
            marks.settings.setdefault(tail(node), settings)
            marks.made.add(tail(node))
    grew = True
    while grew:
        grew = False
        for node in graph:
            result = None if node in marks.nodes else reached(node, marks.settings)
            if result is not None:
                grew = True
                marks.nodes.add(node)
                marks.made.add(result)
                marks.settings.setdefault(result, marks.settings[node.inputs[0]])
                if node.op_type in SAME_RANGE:
                    marks.shares[result] = node.inputs[0]
    return marks


def reached(node: ir.Node, marked: Mapping[ir.Value, StaticActivations]) -> ir.Value | None:
    """The output of a node that stays integer because all its inputs are, else None."""
    if node.op_type in SAME_RANGE:
        return node.outputs[0] if node.inputs[0] in marked else None
    if node.op_type in INTEGER and all(value in marked for value in node.inputs):
        return tail(node)
    return None


def calibrate(small: Compressed, model: ir.Model, wanted: Mapping[str, StaticActivations]) -> dict[str, Range]:
    """The core's range of every named tensor, from running the float graph on one calibration sample after the other."""
    found: dict[str, Range] = {}
    for settings in dict.fromkeys(wanted.values()):
        found |= observe(activations(small, model, [name for name, own in wanted.items() if own == settings]), settings)
    return found


def activations(small: Compressed, model: ir.Model, names: list[str]) -> Iterator[dict[str, np.ndarray]]:
    """The named tensors of the float graph, one calibration sample after the other."""
    proto = ir.to_proto(model)
    given = [name for name in names if name in {value.name for value in proto.graph.input}]
    asked = [name for name in names if name not in given]
    own = {output.name for output in proto.graph.output}
    proto.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in asked if name not in own)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for sample in samples(small.calibration, small.network.inputs):
        values = session.run(asked, sample) if asked else []
        yield dict(zip(asked, values, strict=True)) | {name: sample[name] for name in given}


def constants(build: Builder, name: str, found: Range) -> tuple[ir.Value, ir.Value]:
    """Scale and uint8 zero point of a range."""
    scale, zero = asymmetric(np.array([found.low], np.float32), np.array([found.high], np.float32), IntFormat(8, rule="asymmetric"))
    return build.constant(f"{name}/scale", scale.reshape(())), build.constant(f"{name}/zero_point", (zero + 128).astype(np.uint8).reshape(()))


def surround(build: Builder, value: ir.Value, parameters: tuple[ir.Value, ir.Value], marks: Marks) -> None:
    """QuantizeLinear and DequantizeLinear behind a tensor. Nodes that compute in float read the tensor itself where it was made in float."""
    readers = list(value.uses())
    codes = build.node("QuantizeLinear", [value, *parameters], f"{value.name}/quantized")
    back = build.node("DequantizeLinear", [codes, *parameters], f"{value.name}/dequantized")
    back.type, back.shape = value.type, value.shape
    shielded = None
    for node, slot in readers:
        if node in marks.nodes:
            node.replace_input_with(slot, back)
        elif value in marks.made:
            if node.op_type in TAKEN_OVER and shielded is None:
                shielded = shield(build, value.name, back, parameters)
            node.replace_input_with(slot, shielded if node.op_type in TAKEN_OVER else back)
    if value.is_graph_output() and value in marks.made:
        index = build.graph.outputs.index(value)
        name, value.name = value.name, build.fresh(f"{value.name}_float")
        build.graph.outputs[index], back.name = back, name


def shield(build: Builder, name: str, back: ir.Value, parameters: tuple[ir.Value, ir.Value]) -> ir.Value:
    """The same values behind a Clip to what uint8 reaches. Between DequantizeLinear and QuantizeLinear alone, ONNX Runtime's
    WeightBiasQuantization would give the float weights of a convolution int8 scales of its own, and tell nobody.
    """
    scale, zero = (parameter.const_value.numpy() for parameter in parameters)
    ends = [build.constant(f"{name}/{what}", np.float32(code - float(zero)) * scale) for what, code in (("lowest", 0), ("highest", 255))]
    return build.node("Clip", [back, *ends], f"{name}/kept_float")
