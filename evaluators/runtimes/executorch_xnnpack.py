"""ExecuTorch's runtime on the CPU, with its XNNPACK backend."""

from importlib.metadata import version

import numpy as np
import torch
from executorch.extension.pybindings.portable_lib import _threadpool_get_thread_count, _unsafe_reset_threadpool
from executorch.runtime import Runtime

from compress.artifact import Artifact
from compress.network import Inputs

EXPORTER = "executorch"
SUFFIX = ".pte"


class ExecutorchSession:
    """A .pte file with its method loaded: XNNPACK's weights are packed and its memory is planned."""

    def __init__(self, artifact: Artifact):
        self.program = Runtime.get().load_program(artifact.path)
        self.method = self.program.load_method("forward")
        self.inputs = [(spec.name, np.dtype(spec.dtype)) for spec in artifact.contents.inputs]

    def run(self, inputs: Inputs) -> list[np.ndarray]:
        given = [torch.from_numpy(np.ascontiguousarray(inputs[name], dtype)) for name, dtype in self.inputs]
        return [output.numpy() for output in self.method.execute(given)]


def load(artifact: Artifact, threads: int) -> ExecutorchSession:
    """A session on the process's one pool of threads, which is made anew where it has another size."""
    if _threadpool_get_thread_count() != threads:
        _unsafe_reset_threadpool(threads)
    return ExecutorchSession(artifact)


def versions() -> dict[str, str]:
    return {
        "executorch": version("executorch"),
        "kernels": "XNNPACK; portable kernels for what it does not take, which the artifact's notes name",
        "threads": str(_threadpool_get_thread_count()),
    }
