"""LiteRT's interpreter on the CPU, with XNNPACK."""

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from math import prod
from typing import Any

import numpy as np

from compress.artifact import Artifact
from compress.backends.litert_codes import decoded, encoded
from compress.errors import Refused
from compress.network import Inputs
from evaluators.layer_graph import Operator, layer_outputs
from evaluators.operators import OperatorTime

EXPORTER = "litert"
SUFFIX = ".tflite"
PRODUCTS = {  # multiply-adds from the shapes of the first two inputs and of the output
    "CONV_2D": lambda x, weight, out: prod(out) * prod(weight[1:]),
    "DEPTHWISE_CONV_2D": lambda x, weight, out: prod(out) * prod(weight[1:3]),
    "FULLY_CONNECTED": lambda x, weight, out: prod(out) * weight[-1],
    "BATCH_MATMUL": lambda x, weight, out: prod(out) * prod(x) // prod(out[:-1]),
}
UNCOUNTED = ("CONV_3D", "TRANSPOSE_CONV", "WHILE", "IF", "LSTM", "UNIDIRECTIONAL_SEQUENCE_LSTM", "BIDIRECTIONAL_SEQUENCE_LSTM", "SVDF", "RNN")


class LitertSession:
    """A .tflite file with its tensors allocated."""

    def __init__(self, artifact: Artifact, threads: int, interpreter: Any = None):
        """`interpreter` is of the file itself unless a copy of it with more outputs is given."""
        from ai_edge_litert.interpreter import Interpreter

        self.interpreter = interpreter or Interpreter(model_path=str(artifact.path), num_threads=threads)
        self.interpreter.allocate_tensors()
        given = {detail["name"]: detail for detail in self.interpreter.get_input_details()}
        made = {detail["name"]: detail for detail in self.interpreter.get_output_details()}
        used = [spec for spec in artifact.contents.inputs if spec.file_name]  # the converter drops inputs that nothing reads
        self.inputs = [(spec.name, given[spec.file_name]) for spec in used]
        self.outputs = [made[spec.file_name] for spec in artifact.contents.outputs]

    def run(self, inputs: Inputs) -> list[np.ndarray]:
        for name, detail in self.inputs:
            self.interpreter.set_tensor(detail["index"], encoded(inputs[name], detail))
        self.interpreter.invoke()
        return [decoded(self.interpreter.get_tensor(detail["index"]), detail) for detail in self.outputs]


def load(artifact: Artifact, threads: int) -> LitertSession:
    return LitertSession(artifact, threads)


def operator_times(artifact: Artifact, inputs: Sequence[Inputs], runs: int, threads: int) -> list[OperatorTime]:
    from evaluators.runtimes import litert_profiler  # which imports this module

    return litert_profiler.operator_times(artifact, inputs, runs, threads)


def show_layers(artifact: Artifact, weights: Mapping[str, str], threads: int) -> tuple[list[str], Callable[[Inputs], list[np.ndarray]]]:
    """The layers, and their outputs for a sample, which a copy of the file has as further outputs: XNNPACK computes them as it does in the file itself."""
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model(str(artifact.path))
    first = model.subgraphs[0]
    constants = {index for index, tensor in enumerate(first.tensors) if model.buffers[tensor.buffer].data is not None}
    own = {str(index): weights[name] for index, tensor in enumerate(first.tensors) if (name := (tensor.name or b"").decode()) in weights}
    names = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
    kinds = [names.get(code.builtinCode, "") for code in model.operatorCodes]
    operators = [Operator(kinds[o.opcodeIndex], numbers(o.inputs), numbers(o.outputs)) for o in first.operators]
    found = {layer: int(index) for layer, index in layer_outputs(operators, map(str, constants), own).items()}
    first.outputs = [*first.outputs, *(index for index in dict.fromkeys(found.values()) if index not in first.outputs)]
    session = LitertSession(artifact, threads, Interpreter(model_content=bytes(flatbuffer_utils.convert_object_to_bytearray(model)), num_threads=threads))
    details = {detail["index"]: detail for detail in session.interpreter.get_output_details()}

    def run(inputs: Inputs) -> list[np.ndarray]:
        session.run(inputs)
        return [decoded(session.interpreter.get_tensor(index), details[index]) for index in found.values()]

    return list(found), run


def numbers(indices: Any) -> tuple[str, ...]:
    """Tensors of an operator by their number in the graph; an input that is left out is -1."""
    return tuple(str(index) for index in (() if indices is None else indices) if index >= 0)


def graph(artifact: Artifact) -> list[tuple[str, list[tuple[tuple[int, ...], str]], list[tuple[int, ...]]]]:
    """Every operator of the file's first graph, as written there: name, shape and dtype of each input, shape of each output."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(str(artifact.path), experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES)
    tensors = {d["index"]: (tuple(d["shape"].tolist()), np.dtype(d["dtype"]).name) for d in interpreter.get_tensor_details()}
    operators = interpreter._get_ops_details()
    return [(o["op_name"], [tensors.get(i, ((), "")) for i in o["inputs"]], [tensors[i][0] for i in o["outputs"]]) for o in operators]


def multiply_adds(artifact: Artifact, sample: Inputs) -> int:
    """Of one run, from the shapes in the file."""
    operators = graph(artifact)
    strange = sorted({name for name, _, _ in operators} & set(UNCOUNTED))
    if strange:
        raise Refused(f"multiply-adds are not counted in {', '.join(strange)}")
    return sum(PRODUCTS[name](inputs[0][0], inputs[1][0], outputs[0]) for name, inputs, outputs in operators if name in PRODUCTS)


def versions() -> dict[str, str]:
    return {"ai-edge-litert": version("ai-edge-litert"), "kernels": "XNNPACK delegate, its default; built-in kernels for what it does not take"}
