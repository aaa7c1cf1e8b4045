"""What loads an artifact and runs it."""

from typing import Protocol

import numpy as np

from compress.artifact import Artifact
from compress.network import Inputs
from compress.registry import Entry, Registry

RUNTIMES = Registry(
    "runtime",
    {
        "litert": Entry("evaluators.runtimes.litert", "tensorflow", "LiteRT's CPU interpreter with XNNPACK"),
        "onnxruntime": Entry("evaluators.runtimes.ort", "onnx", "ONNX Runtime's CPU provider"),
        "torch": Entry("evaluators.runtimes.torch_eager", "torch", "torch.export program run by eager kernels"),
        "torch-compiled": Entry("evaluators.runtimes.torch_compiled", "torch", "torch.export program compiled by Inductor"),
        "executorch": Entry("evaluators.runtimes.executorch_xnnpack", "executorch", "ExecuTorch with its XNNPACK backend"),
    },
    aliases={"tflite": "litert", "ort": "onnxruntime", "onnx": "onnxruntime", "pytorch": "torch", "pte": "executorch"},
)


DEVICE = "COMPRESSKIT_DEVICE"
"""The variable by which a target tells its measuring processes where runtimes compute, as cuda:0. It is read where sessions are loaded, and nowhere else."""


class Session(Protocol):
    """A loaded artifact. `run` returns when the results are there: a session that works asynchronously synchronises itself.

    A session on a device also has `timed`, `memory` and `energy` (see evaluators.runtimes.cuda), since this process's clock and memory say little of it.
    """

    def run(self, inputs: Inputs) -> list[np.ndarray]:
        """Outputs of one batch of exactly the exported size, in the model's order.

        Arrays come under the network's input names (`artifact.contents.inputs`) and are cast to what the file wants.
        """
        ...


class Runtime(Protocol):
    """A module with these names, and with others where the runtime can compute on a device, or tell what its operators do:

    load_on(artifact, threads, device)                a Session on a GPU
    operator_times(artifact, inputs, runs, threads)   a list of OperatorTime, medians over `runs` runs, in the runtime's own words
    multiply_adds(artifact, sample)                   of one run of a float32 file; Refused where its operators do not say
    show_layers(artifact, weights, threads)           layers in the order of computation, and a function from a sample to their outputs as numbers;
                                                      `weights` has their names by those that the file may have for their weights
    """

    EXPORTER: str  # the exporter whose files it loads
    SUFFIX: str

    def load(self, artifact: Artifact, threads: int) -> Session: ...

    def versions(self) -> dict[str, str]:
        """Versions and the kernel facts of this machine that explain its speed."""
        ...
