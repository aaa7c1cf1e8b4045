"""Models of ONNX's quantization operators, for whoever runs them."""

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from compress.conformance.matrix import Theirs
from compress.formats import PerGroup
from compress.numerics import encode
from compress.presets import preset

ROUNDED_FIRST = "It adds the zero point after rounding, this project before"
OPSET = 21  # the first with blocked quantization and int4
Run = Callable[[onnx.ModelProto, dict[str, np.ndarray]], list[np.ndarray]]


def model_of(nodes, inputs: dict, outputs: dict, constants: dict[str, np.ndarray]) -> onnx.ModelProto:
    """inputs, outputs: names to (element type, shape)."""
    infos = [[helper.make_tensor_value_info(name, *given) for name, given in side.items()] for side in (inputs, outputs)]
    graph = helper.make_graph(nodes, "g", *infos, [numpy_helper.from_array(value, name) for name, value in constants.items()])
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def quantize(run: Run, name: str):
    """QuantizeLinear and DequantizeLinear of a preset: the operators take scales and make none, so they get ours."""
    fmt = preset(name).format
    blocks = fmt.granularity.size if isinstance(fmt.granularity, PerGroup) else 0
    kind = TensorProto.INT4 if fmt.bits == 4 else TensorProto.INT8

    def ask(values: np.ndarray) -> Theirs:
        scales = encode(values, fmt).scales.astype(values.dtype)
        axis = {"axis": 1, "block_size": blocks} if blocks else {"axis": 0}
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "s"], ["q"], output_dtype=kind, **axis),
            helper.make_node("DequantizeLinear", ["q", "s"], ["y"], **axis),
            helper.make_node("Cast", ["q"], ["codes"], to=TensorProto.INT32),
        ]
        real, shape = helper.np_dtype_to_tensor_dtype(values.dtype), list(values.shape)
        model = model_of(nodes, {"x": (real, shape)}, {"codes": (TensorProto.INT32, shape), "y": (real, shape)}, {"s": scales})
        codes, decoded = run(model, {"x": values})
        return Theirs(codes, decoded)

    return ask


def dynamic(run: Run):
    def ask(values: np.ndarray) -> Theirs:
        nodes = [helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]), helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"])]
        shape = list(values.shape)
        real = helper.np_dtype_to_tensor_dtype(values.dtype)
        model = model_of(nodes, {"x": (real, shape)}, {"q": (TensorProto.UINT8, shape), "y": (TensorProto.FLOAT, shape)}, {})
        codes, decoded = run(model, {"x": values})
        return Theirs(codes, decoded)

    return ask
