"""ONNX Runtime's CPU provider."""

import json
from collections.abc import Callable, Mapping, Sequence
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from compress.artifact import Artifact
from compress.errors import Refused
from compress.network import Inputs, InputSpec
from evaluators.layer_graph import Operator, layer_outputs
from evaluators.operators import OperatorTime, Timed, medians, own_times

EXPORTER = "onnx"
SUFFIX = ".onnx"

PRODUCTS = {  # multiply-adds from the shapes of the first two inputs and of the output
    "Conv": lambda x, weight, out: prod(out) * prod(weight[1:]),
    "MatMul": lambda x, weight, out: prod(out) * x[-1],
    "Gemm": lambda x, weight, out: prod(out) * prod(x) // out[0],
}
UNCOUNTED = ("ConvTranspose", "LSTM", "GRU", "RNN", "Attention", "MultiHeadAttention", "Einsum", "Loop", "If", "Scan")
FLAGS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "asimddp", "i8mm", "sve")


class OrtSession:
    def __init__(self, session, inputs: tuple[InputSpec, ...]):
        self.session, self.inputs = session, inputs

    def run(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        return self.session.run(None, {spec.file_name: np.ascontiguousarray(inputs[spec.name], spec.dtype) for spec in self.inputs})


def load(artifact: Artifact, threads: int) -> OrtSession:
    """A session with `threads` threads inside a node and nodes one after the other."""
    return opened(artifact, options(threads))


def options(threads: int) -> Any:
    """Idle threads sleep instead of spinning: a spinning thread would make the next run start sooner than a lone request does, and takes
    a core from whatever runs beside it.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.x64quantprecision", "1")  # signed weights become unsigned where their products would saturate
    return options


def opened(artifact: Artifact, options: Any) -> OrtSession:
    import onnxruntime as ort

    session = ort.InferenceSession(str(artifact.path), options, providers=["CPUExecutionProvider"])
    return OrtSession(session, artifact.contents.inputs)


def load_on(artifact: Artifact, threads: int, device: str):
    """A session on an NVIDIA GPU, which names the nodes that stayed on the CPU."""
    from evaluators.runtimes import ort_on_cuda

    return ort_on_cuda.load(artifact, options(threads), device)


def operator_times(artifact: Artifact, inputs: Sequence[Inputs], runs: int, threads: int) -> list[OperatorTime]:
    """Nodes of the graph that ONNX Runtime made of the file, each with its median over `runs` runs."""
    with TemporaryDirectory() as folder:
        profiled = options(threads)
        profiled.enable_profiling, profiled.profile_file_prefix = True, f"{folder}/profile"
        session = opened(artifact, profiled)
        for number in range(runs + 1):
            session.run(inputs[number % len(inputs)])
        events = json.loads(Path(session.session.end_profiling()).read_text())
    nodes = [event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]
    whole = [(event["ts"], event["ts"] + event["dur"]) for event in events if event["name"] == "model_run"]
    found = [[timed(node) for node in nodes if start <= node["ts"] < end] for start, end in whole]
    return medians([own_times(run, 1e-6) for run in found[1:]])


def timed(node: Mapping[str, Any]) -> Timed:
    kind, shapes = node["args"]["op_name"], [shape for typed in node["args"]["input_type_shape"] for shape in typed.values()]
    if "Conv" in kind and is_depthwise(shapes):
        kind += " (depthwise)"
    return Timed(OperatorTime(node["name"].removesuffix("_kernel_time"), kind, 0.0), node["ts"], node["dur"])


def is_depthwise(shapes: Sequence[Sequence[int]]) -> bool:
    """Whether each output channel reads one of several input channels, by the shapes of a convolution's inputs."""
    weights = [shape for shape in shapes[1:] if len(shape) > 2]
    return bool(weights) and len(shapes[0]) > 2 and shapes[0][1] > 1 and weights[0][1] == 1


def show_layers(artifact: Artifact, weights: Mapping[str, str], threads: int) -> tuple[list[str], Callable[[Inputs], list[np.ndarray]]]:
    """The layers, and their outputs for a sample, which the graph has as further outputs: codes where a node rounds to them, so that fused kernels stay."""
    import onnx
    import onnxruntime as ort
    from onnx.numpy_helper import to_array

    model = onnx.load(artifact.path)
    graph = model.graph
    nodes = [Operator(node.op_type, tuple(filter(None, node.input)), tuple(filter(None, node.output))) for node in graph.node]
    constants = {tensor.name: tensor for tensor in graph.initializer}
    found = layer_outputs(nodes, constants, weights)
    rounding = [node for node in graph.node if node.op_type == "QuantizeLinear" and constants.keys() >= set(node.input[1:])]
    scales = {node.output[0]: [to_array(constants[name]) for name in node.input[1:]] for node in rounding}
    codes = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in scales}
    tensors = {layer: codes.get(name, name) for layer, name in found.items()}
    known = {value.name for value in graph.output}
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(tensors.values()) if name not in known)
    session = ort.InferenceSession(model.SerializeToString(), options(threads), providers=["CPUExecutionProvider"])
    given = OrtSession(session, artifact.contents.inputs)

    def run(inputs: Inputs) -> list[np.ndarray]:
        values = dict(zip((value.name for value in session.get_outputs()), given.run(inputs), strict=True))
        return [decoded(values[name], *scales[name]) if name in scales else values[name] for name in tensors.values()]

    return list(tensors), run


def decoded(codes: np.ndarray, scale: np.ndarray, zero_point: np.ndarray | float = 0.0) -> np.ndarray:
    return (codes.astype(np.float32) - np.float32(zero_point)) * scale


def multiply_adds(artifact: Artifact, sample: Inputs) -> int:
    """Of one run, from the shapes that follow from those of the inputs."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(onnx.load(artifact.path)).graph
    strange = sorted({node.op_type for node in graph.node} & set(UNCOUNTED))
    if strange:
        raise Refused(f"multiply-adds are not counted in {', '.join(strange)}")
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        shapes[value.name] = tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
    products = [node for node in graph.node if node.op_type in PRODUCTS]
    unknown = [node.name for node in products if not all(prod(shapes.get(name, (0,))) for name in (*node.input[:2], node.output[0]))]
    if unknown:
        raise Refused(f"the shapes of {', '.join(unknown)} do not follow from those of the inputs")
    return sum(PRODUCTS[node.op_type](shapes[node.input[0]], shapes[node.input[1]], shapes[node.output[0]]) for node in products)


def versions() -> dict[str, str]:
    """ONNX Runtime's version and which of the instructions that its integer kernels look for this CPU has."""
    import onnxruntime as ort

    found = cpu_flags()
    if found & {"avx512_vnni", "avx_vnni"}:
        kernels = "VNNI"
    else:
        kernels = "dot product" if "asimddp" in found else "no VNNI: weights made unsigned, or sums would saturate"
    return {
        "onnxruntime": ort.__version__,
        "onnxruntime int8 kernels": kernels,
        "cpu features": ", ".join(flag for flag in FLAGS if flag in found) or "unknown",
    }


def cpu_flags() -> set[str]:
    """The kernel's names of this CPU's instruction sets; empty where there is no /proc/cpuinfo."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            return {flag for line in file if line.startswith(("flags", "Features")) for flag in line.partition(":")[2].split()}
    except FileNotFoundError:
        return set()
