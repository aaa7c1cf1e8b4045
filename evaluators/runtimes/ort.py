"""ONNX Runtime's CPU provider."""

from collections.abc import Mapping

import numpy as np

from compress.artifact import Artifact
from compress.network import InputSpec

EXPORTER = "onnx"
SUFFIX = ".onnx"

FLAGS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "asimddp", "i8mm", "sve")


class OrtSession:
    def __init__(self, session, inputs: tuple[InputSpec, ...]):
        self.session, self.inputs = session, inputs

    def run(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        return self.session.run(None, {spec.file_name: np.ascontiguousarray(inputs[spec.name], spec.dtype) for spec in self.inputs})


def load(artifact: Artifact, threads: int) -> OrtSession:
    """A session with `threads` threads inside a node and nodes one after the other.

    Idle threads sleep instead of spinning: a spinning thread would make the next run start sooner than a lone request does, and takes
    a core from whatever runs beside it.
    """
    import onnxruntime as ort

    return OrtSession(ort.InferenceSession(str(artifact.path), options(threads), providers=["CPUExecutionProvider"]), artifact.contents.inputs)


def options(threads: int):
    import onnxruntime as ort

    chosen = ort.SessionOptions()
    chosen.intra_op_num_threads, chosen.inter_op_num_threads = threads, 1
    chosen.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    chosen.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    chosen.log_severity_level = 3
    chosen.add_session_config_entry("session.intra_op.allow_spinning", "0")
    chosen.add_session_config_entry("session.x64quantprecision", "1")  # signed weights become unsigned where their products would saturate
    return chosen


def load_on(artifact: Artifact, threads: int, device: str):
    """A session on an NVIDIA GPU, which names the nodes that stayed on the CPU."""
    from evaluators.runtimes import ort_on_cuda

    return ort_on_cuda.load(artifact, options(threads), device)


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
