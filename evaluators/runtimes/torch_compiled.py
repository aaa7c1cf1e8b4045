"""torch.export programs compiled by Inductor."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from compress.artifact import Artifact
from compress.errors import CompressError
from compress.network import Inputs
from evaluators.operators import OperatorTime
from evaluators.runtimes.torch_eager import TorchSession, open_program, prepare, profiled, static_products_are_exact, zeros
from evaluators.runtimes.torch_eager import multiply_adds as multiply_adds
from evaluators.runtimes.torch_eager import show_layers as show_layers
from evaluators.runtimes.torch_eager import versions as eager_versions
from evaluators.runtimes.torch_loading import BITSANDBYTES, has_fused_4bit

EXPORTER = "torch"
SUFFIX = ".pt2"


def load(artifact: Artifact, threads: int) -> TorchSession:
    """A compiled session; compiling takes seconds to a minute. CompressError where there is no C++ compiler."""
    compiler()
    torch.set_num_threads(threads)
    # Freezing folds constants, 4-bit weights among them that are to be expanded at each run, and lowers static int8 to oneDNN, whose int8 kernels are
    # wrong on a CPU where they saturate.
    expands = BITSANDBYTES in artifact.contents.operators and not has_fused_4bit()
    freezing = not expands and (not artifact.contents.activation_ranges or static_products_are_exact())
    module = open_program(artifact).module(check_guards=False)
    prepare(module, artifact)
    session = TorchSession(torch.compile(module, fullgraph=True, dynamic=False), artifact)
    with torch._inductor.config.patch(freezing=freezing):  # Dynamo reads it too, which torch.compile's `options` would not reach
        session.run({name: value.numpy() for (name, _), value in zip(session.inputs, zeros(artifact), strict=True)})
    return session


def load_on(artifact: Artifact, threads: int, device: str) -> Any:
    """The same on an NVIDIA GPU, compiled to Triton's kernels, which need a C compiler as well."""
    from evaluators.runtimes import torch_on_cuda

    compiler()
    torch.set_num_threads(threads)
    session = torch_on_cuda.load(artifact, device, lambda module: torch.compile(module, fullgraph=True, dynamic=False))
    session.run({spec.name: np.zeros(spec.shape, spec.dtype) for spec in artifact.contents.inputs})
    return session


def operator_times(artifact: Artifact, inputs: Sequence[Inputs], runs: int, threads: int) -> list[OperatorTime]:
    """Inductor's kernels and the operators that it calls, each with its median over `runs` runs. Compiles the file once more."""
    with torch._inductor.config.patch({"cpp.enable_kernel_profile": True}):
        session = load(artifact, threads)
    return profiled(session, inputs, runs)


def compiler() -> str:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        return get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise CompressError("torch-compiled needs a C++ compiler: install g++ (Debian: apt-get install g++) or name one in the variable CXX") from error


def versions() -> dict[str, str]:
    return eager_versions() | {"C++ compiler": compiler()}
