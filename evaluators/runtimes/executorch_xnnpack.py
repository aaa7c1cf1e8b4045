"""ExecuTorch's runtime on the CPU, with its XNNPACK backend."""

from importlib.metadata import version

import numpy as np

from compress.artifact import Artifact
from compress.network import Inputs

EXPORTER = "executorch"
SUFFIX = ".pte"


class ExecutorchSession:
    """A .pte file with its method loaded: XNNPACK's weights are packed and its memory is planned."""

    def __init__(self, artifact: Artifact):
        from executorch.runtime import Runtime

        self.program = Runtime.get().load_program(artifact.path)
        self.method = self.program.load_method("forward")
        self.inputs = [(spec.name, np.dtype(spec.dtype)) for spec in artifact.contents.inputs]

    def run(self, inputs: Inputs) -> list[np.ndarray]:
        import torch

        given = [torch.from_numpy(np.ascontiguousarray(inputs[name], dtype)) for name, dtype in self.inputs]
        return [output.numpy() for output in self.method.execute(given)]


def load(artifact: Artifact, threads: int) -> ExecutorchSession:
    """A session on the process's one pool of threads, which is made anew where it has another size."""
    from executorch.extension.pybindings import portable_lib

    if portable_lib._threadpool_get_thread_count() != threads:
        portable_lib._unsafe_reset_threadpool(threads)
    return ExecutorchSession(artifact)


def versions() -> dict[str, str]:
    from executorch.extension.pybindings import portable_lib

    return {
        "executorch": version("executorch"),
        "kernels": "XNNPACK; portable kernels for what it does not take, which the artifact's notes name",
        "threads": str(portable_lib._threadpool_get_thread_count()),
    }
