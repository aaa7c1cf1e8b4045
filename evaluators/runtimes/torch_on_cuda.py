"""A .pt2 on an NVIDIA GPU: the file's own codes, computed by CUDA's kernels where its operators are the CPU's."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.export.passes import move_to_device_pass

from compress.artifact import Artifact
from compress.errors import Refused
from compress.network import Inputs
from evaluators.runtimes import cuda
from evaluators.runtimes.torch_cuda_products import Lowered, four_bits, half, pack_int4, pad_integers, small_floats, two_of_four, wants_float8
from evaluators.runtimes.torch_eager import open_program
from evaluators.runtimes.torch_loading import compute_at_load

Capability = tuple[int, int]
INT8, BFLOAT16, SPARSE, FLOAT8 = (7, 5), (8, 0), (8, 0), (8, 9)  # compute capabilities from which tensor cores have it


def load(artifact: Artifact, device: str, compiled: Callable[[fx.GraphModule], Any] = lambda module: module) -> cuda.CudaSession:
    context = cuda.use(device)
    low = lowered(open_program(artifact), artifact, device, torch.cuda.get_device_capability(device))
    module, inputs = compiled(low.module), [(spec.name, np.dtype(spec.dtype)) for spec in artifact.contents.inputs]

    def place(batch: Inputs) -> list[torch.Tensor]:
        return [torch.from_numpy(np.ascontiguousarray(batch[name], dtype)).to(device) for name, dtype in inputs]

    @torch.no_grad()
    def compute(placed: list[torch.Tensor]) -> Any:
        return module(*placed)

    return cuda.CudaSession(device, place, compute, fetched, context=context, computed=low.computed)


def fetched(outputs: Any) -> list[np.ndarray]:
    return [output.float().cpu().numpy() for output in ([outputs] if isinstance(outputs, torch.Tensor) else outputs)]


@torch.no_grad()
def lowered(program: torch.export.ExportedProgram, artifact: Artifact, device: str, capability: Capability) -> Lowered:
    """The program on `device`. Refused, with the reason, where a card of this compute capability has no kernel for what the file says."""
    entries = artifact.contents.metadata.get("tensors", {})
    refuse(artifact, entries, capability)
    sparse = set(two_of_four(program)) if capability >= SPARSE else set()
    low = Lowered(move_to_device_pass(program, device).module(check_guards=False), entries)
    pad_integers(low.module)
    pack_int4(low.module)
    if capability >= BFLOAT16 and "bitsandbytes.gemm_4bit" in artifact.contents.operators:
        four_bits(low)
    small_floats(low)
    half(low, sparse)
    low.module.graph.eliminate_dead_code()
    low.module.recompile()
    compute_at_load(low.module, {target for entry in entries.values() if entry.get("at_load") for target in entry["parts"].values()})
    return low


def refuse(artifact: Artifact, entries: Mapping[str, Any], capability: Capability) -> None:
    def need(least: Capability, what: str) -> None:
        if capability < least:
            raise Refused(f"{what} need compute capability {'.'.join(map(str, least))}, and this card has {'.'.join(map(str, capability))}")

    if artifact.contents.activation_ranges:
        raise Refused("static int8: PyTorch's kernels for it are oneDNN's, for CPUs; it has none for CUDA (int8-dynamic runs there)")
    if "aten._int_mm" in artifact.contents.operators:
        need(INT8, "int8 products")
    if "aten._weight_int4pack_mm_for_cpu" in artifact.contents.operators:
        need(BFLOAT16, "ATen's int4 products (tinygemm)")
    if any(wants_float8(entry) for entry in entries.values()):
        need(FLOAT8, "float8 products")
