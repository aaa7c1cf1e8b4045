"""ExecuTorch's runtime on the CPU, with its XNNPACK backend.

Through the extension module that `executorch.runtime` wraps: the wrapper imports all that writes files as well, 7 seconds and 130 MB that no device
would spend.
"""

import re
from collections.abc import Sequence
from importlib.metadata import version
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch  # the extension is linked to its libraries
from executorch.extension.pybindings import _C as extension

from compress.artifact import Artifact
from compress.network import Inputs
from evaluators.operators import OperatorTime

EXPORTER = "executorch"
SUFFIX = ".pte"
PORTABLE = "native_call_"  # what ETDump puts before the name of an operator that no delegate took


class ExecutorchSession:
    """A .pte file with its method loaded: XNNPACK's weights are packed and its memory is planned."""

    def __init__(self, artifact: Artifact, traced: bool = False):
        self.program = extension._load_program(str(artifact.path), enable_etdump=traced)
        self.method = self.program.load_method("forward")
        self.inputs = [(spec.name, np.dtype(spec.dtype)) for spec in artifact.contents.inputs]

    def run(self, inputs: Inputs) -> list[np.ndarray]:
        given = [torch.from_numpy(np.ascontiguousarray(inputs[name], dtype)) for name, dtype in self.inputs]
        return [output.numpy() for output in self.method(given)]


def load(artifact: Artifact, threads: int, traced: bool = False) -> ExecutorchSession:
    """A session on the process's one pool of threads, which is made anew where it has another size."""
    if extension._threadpool_get_thread_count() != threads:
        extension._unsafe_reset_threadpool(threads)
    return ExecutorchSession(artifact, traced)


def operator_times(artifact: Artifact, inputs: Sequence[Inputs], runs: int, threads: int) -> list[OperatorTime]:
    """XNNPACK's kernels and ExecuTorch's own, each with its median over `runs` runs, from an ETDump."""
    from executorch.devtools import Inspector
    from executorch.devtools.inspector import TimeScale

    session = load(artifact, threads, traced=True)
    for number in range(runs + 1):
        session.run(inputs[number % len(inputs)])
    with TemporaryDirectory() as folder:
        session.program.write_etdump_result_to_file(f"{folder}/trace.etdp")
        blocks = Inspector(etdump_path=f"{folder}/trace.etdp", target_time_scale=TimeScale.S).event_blocks
    return [read(event) for block in blocks if block.name == "Execute" for event in block.events if event.is_delegated_op or PORTABLE in event.name]


def read(event: Any) -> OperatorTime:
    """Kernels inside a delegate are numbered by kind, as in `Transpose (ND, X32) #2`."""
    library = "XNNPACK" if event.is_delegated_op else "ExecuTorch's portable kernels"
    return OperatorTime(event.name, re.sub(r" #\d+$", "", event.name.removeprefix(PORTABLE)), median(event.perf_data.raw[1:]), library)


def versions() -> dict[str, str]:
    return {
        "executorch": version("executorch"),
        "torch": torch.__version__,
        "kernels": "XNNPACK; portable kernels for what it does not take, which the artifact's notes name",
        "threads": str(extension._threadpool_get_thread_count()),
    }
