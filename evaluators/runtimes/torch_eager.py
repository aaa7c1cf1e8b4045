"""torch.export programs run by eager kernels."""

import json
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from compress.artifact import Artifact
from compress.errors import CompressError
from compress.network import Inputs

EXPORTER = "torch"
SUFFIX = ".pt2"
aten = torch.ops.aten


class TorchSession:
    """Runs a module of positional tensors. CPU kernels return when they are done, so there is nothing to synchronise."""

    def __init__(self, module: Any, artifact: Artifact):
        self.module = module
        self.inputs = [(spec.name, np.dtype(spec.dtype)) for spec in artifact.contents.inputs]

    @torch.no_grad()
    def run(self, inputs: Inputs) -> list[np.ndarray]:
        given = (torch.from_numpy(np.ascontiguousarray(inputs[name], dtype)) for name, dtype in self.inputs)
        outputs = self.module(*given)
        return [output.float().numpy() for output in ([outputs] if isinstance(outputs, torch.Tensor) else outputs)]


def load(artifact: Artifact, threads: int) -> TorchSession:
    torch.set_num_threads(threads)
    module = open_program(artifact)
    return TorchSession(lowered(module, artifact), artifact)


def open_program(artifact: Artifact) -> torch.fx.GraphModule:
    """The program as a module whose constants are ready to compute with. CompressError for a file that would run pickled code."""
    from torch.ao.quantization.fx import _decomposed  # noqa: F401  registers the quantized_decomposed operators

    refuse_pickles(artifact.path)
    module = torch.export.load(artifact.path).module(check_guards=False)
    if "aten._int_mm" in artifact.contents.operators and not int8_products_are_exact():
        multiply_in_float(module)
    if "aten._weight_int4pack_mm_for_cpu" in artifact.contents.operators:
        pack_int4(module)
    return module


def refuse_pickles(path: Path) -> None:
    """torch.export.load unpickles what a file says is pickled, which runs whatever code it holds; files written here hold none."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        configs = [json.loads(archive.read(name))["config"] for name in names if name.endswith(("_weights_config.json", "_constants_config.json"))]
        sizes = [archive.getinfo(name).file_size for name in names if "/data/sample_inputs/" in name]
    if any(entry["use_pickle"] for config in configs for entry in config.values()) or any(sizes):
        raise CompressError(f"{path.name} holds pickled objects, which can run any code when loaded; export the model again with compresskit")


def int8_products_are_exact() -> bool:
    """Whether this CPU multiplies int8 without saturating: oneDNN without VNNI instructions adds pairs of products in 16 bits."""
    x, w = torch.full((4, 64), 127, dtype=torch.int8), torch.full((16, 64), 127, dtype=torch.int8)
    return torch.equal(torch._int_mm(x, w.t()), torch.full((4, 16), 127 * 127 * 64, dtype=torch.int32))


def multiply_in_float(module: torch.fx.GraphModule) -> None:
    """Integer products in float32 instead, where int8 kernels saturate: right, and no faster than float."""
    for node in module.graph.find_nodes(op="call_function", target=aten._int_mm.default):
        with module.graph.inserting_before(node):
            floats = [module.graph.call_function(aten.to.dtype, (argument, torch.float32)) for argument in node.args]
            node.replace_all_uses_with(module.graph.call_function(aten.mm.default, tuple(floats)))
        module.graph.erase_node(node)
    module.recompile()


@torch.no_grad()
def pack_int4(module: torch.fx.GraphModule) -> None:
    """Packs int4 weights for this CPU once, instead of at every run."""
    for node in module.graph.find_nodes(op="call_function", target=aten._weight_int4pack_mm_for_cpu.default):
        for index in (1, 3):
            target = f"{node.name}_packed_{index}"
            module.register_buffer(target, evaluated(module, node.args[index]))
            with module.graph.inserting_before(node):
                node.update_arg(index, module.graph.get_attr(target))
    module.graph.eliminate_dead_code()
    module.recompile()


def evaluated(module: torch.fx.GraphModule, node: Any) -> Any:
    """The value of a node that depends on constants only."""
    if isinstance(node, list | tuple):
        return [evaluated(module, item) for item in node]
    if not isinstance(node, torch.fx.Node):
        return node
    if node.op == "get_attr":
        return attribute(module, node.target.split("."))
    return node.target(*(evaluated(module, argument) for argument in node.args), **node.kwargs)


def attribute(module: Any, path: Iterable[str]) -> Any:
    for name in path:
        module = getattr(module, name)
    return module


def lowered(module: torch.fx.GraphModule, artifact: Artifact) -> torch.fx.GraphModule:
    """Static int8 graphs with oneDNN's int8 operators in place of dequantize-operator-quantize, where this CPU's are exact; others as they are."""
    if not artifact.contents.activation_ranges or not int8_products_are_exact():
        return module
    from torchao.quantization.pt2e.lowering import lower_pt2e_quantized_to_x86

    found = lower_pt2e_quantized_to_x86(module, zeros(artifact))
    for node in found.graph.find_nodes(op="call_function", target=aten.view.default):
        node.target = aten.reshape.default  # oneDNN's convolutions return channels-last tensors, of which not every view exists
    found.recompile()
    return found


def zeros(artifact: Artifact) -> tuple[torch.Tensor, ...]:
    return tuple(torch.zeros(spec.shape, dtype=getattr(torch, spec.dtype)) for spec in artifact.contents.inputs)


def versions() -> dict[str, str]:
    import importlib.metadata

    return {
        "torch": torch.__version__,
        "torchao": importlib.metadata.version("torchao"),
        "CPU capability": torch.backends.cpu.get_cpu_capability(),
        "int8 products": "oneDNN" if int8_products_are_exact() else "saturate on this CPU (no VNNI): computed in float32",
        "threads": str(torch.get_num_threads()),
    }
