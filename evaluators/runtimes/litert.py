"""LiteRT's interpreter on the CPU, with XNNPACK."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from math import prod
from typing import Any

import numpy as np

from compress.artifact import Artifact
from compress.errors import Refused
from compress.network import Inputs
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

    def __init__(self, artifact: Artifact, threads: int):
        from ai_edge_litert.interpreter import Interpreter

        self.interpreter = Interpreter(model_path=str(artifact.path), num_threads=threads)
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


def encoded(array: np.ndarray, detail: Mapping[str, Any]) -> np.ndarray:
    """As the file wants it: cast, or the codes of a float array where an input is codes."""
    (scale, zero_point), dtype = detail["quantization"], detail["dtype"]
    if scale and array.dtype.kind == "f" and np.issubdtype(dtype, np.integer):
        limits = np.iinfo(dtype)
        array = np.clip(np.rint(array / np.float32(scale)) + zero_point, limits.min, limits.max)
    return np.ascontiguousarray(array, dtype)


def decoded(array: np.ndarray, detail: Mapping[str, Any]) -> np.ndarray:
    """Numbers, where an output is codes."""
    scale, zero_point = detail["quantization"]
    codes = scale and array.dtype.kind in "iu"
    return (array.astype(np.float32) - np.float32(zero_point)) * np.float32(scale) if codes else array


def load(artifact: Artifact, threads: int) -> LitertSession:
    return LitertSession(artifact, threads)


def operator_times(artifact: Artifact, inputs: Sequence[Inputs], runs: int, threads: int) -> list[OperatorTime]:
    from evaluators.runtimes import litert_profiler  # which imports this module

    return litert_profiler.operator_times(artifact, inputs, runs, threads)


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
