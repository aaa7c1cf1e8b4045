"""torch.export programs run by eager kernels."""

import json
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils import flop_counter

from compress.artifact import Artifact
from compress.errors import CompressError
from compress.network import Inputs
from evaluators.layer_graph import Operator, layer_outputs
from evaluators.operators import OperatorTime, medians
from evaluators.runtimes.torch_loading import BITSANDBYTES, compute_at_load, expand_4bit, has_fused_4bit, import_bitsandbytes, pack_4bit

EXPORTER = "torch"
SUFFIX = ".pt2"
aten = torch.ops.aten
FUSED, EXPANDED = "in bfloat16", "no AVX512-BF16: weights are expanded to float32 at each run, by a table of a byte's two levels"
NO_KERNEL = "computed in float32: without AVX512-VNNI PyTorch has a plain loop, many times slower, or products that saturate"
IN_FLOAT = "computed in float32: the CPU's own saturate (no VNNI), or there is no oneDNN"


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
    program = open_program(artifact)
    static = artifact.contents.activation_ranges > 0 and static_products_are_exact()
    module = lowered(program, artifact) if static else program.module(check_guards=False)
    prepare(module, artifact)
    return TorchSession(module, artifact)


def load_on(artifact: Artifact, threads: int, device: str) -> Any:
    """A session on an NVIDIA GPU. Refused where it has no kernels for what the file computes with."""
    from evaluators.runtimes import torch_on_cuda

    torch.set_num_threads(threads)
    return torch_on_cuda.load(artifact, device)


def operator_times(artifact: Artifact, inputs: Sequence[Inputs], runs: int, threads: int) -> list[OperatorTime]:
    """Operators of the graph with all that they call, each with its median over `runs` runs."""
    return profiled(load(artifact, threads), inputs, runs)


def profiled(session: TorchSession, inputs: Sequence[Inputs], runs: int) -> list[OperatorTime]:
    found = []
    for number in range(runs + 1):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
            session.run(inputs[number % len(inputs)])
        found.append([OperatorTime(event.name, kind(event), event.cpu_time_total / 1e6) for event in profile.events() if is_outermost(event)])
    return medians(found[1:])  # the first starts the profiler


def is_operator(event: Any) -> bool:
    """Whether it is an operator or a compiled kernel, and not a region around them."""
    return "::" in event.name or event.name.startswith("graph_")


def is_outermost(event: Any) -> bool:
    parent = event.cpu_parent
    while parent is not None and not is_operator(parent):
        parent = parent.cpu_parent
    return is_operator(event) and parent is None


def kind(event: Any) -> str:
    """An operator's name, a convolution's with the kernel that computes it; a compiled kernel's without its number."""
    name = re.sub(r"^graph_\d+_|_\d+$", "", event.name)
    if "conv" not in name:
        return name
    shapes = [shape for shape in event.input_shapes or () if len(shape) > 2]
    depthwise = len(shapes) > 1 and shapes[0][1] > 1 and shapes[1][1] == 1
    inner = kernel(event).name
    return f"{name}{f' by {inner}' if inner != event.name else ''}{' (depthwise)' if depthwise else ''}"


def kernel(event: Any) -> Any:
    """The convolution that a convolution calls in the end."""
    called = [child for child in event.cpu_children if "conv" in child.name]
    return kernel(max(called, key=lambda child: child.cpu_time_total)) if called else event


def show_layers(artifact: Artifact, weights: Mapping[str, str], threads: int) -> tuple[list[str], Callable[[Inputs], list[np.ndarray]]]:
    """The layers, and their outputs for a sample, by the program's own operators: what oneDNN or Inductor would fuse computes one by one."""
    torch.set_num_threads(threads)
    module = open_program(artifact).module(check_guards=False)
    nodes = {node.name: node for node in module.graph.nodes}
    constants = {node.name for node in nodes.values() if node.op == "get_attr"}
    own = {node.name: weights[node.target] for node in nodes.values() if node.op == "get_attr" and node.target in weights}
    operators = [Operator(str(n.target), tuple(i.name for i in n.all_input_nodes), outputs(n)) for n in nodes.values() if n.op == "call_function"]
    found = layer_outputs(operators, constants, own)
    module.graph.output_node().args = (tuple(nodes[name] for name in found.values()),)
    module.graph.set_codegen(torch.fx.graph.CodeGen())
    if not has_dynamic_kernel():
        multiply_in_float(module)
    module.recompile()
    return list(found), TorchSession(module, artifact).run


def outputs(node: torch.fx.Node) -> tuple[str, ...]:
    """A node that makes a tuple has several outputs, which are no nodes themselves."""
    return (node.name,) if isinstance(node.meta.get("val"), torch.Tensor) else (node.name, f"{node.name}[1]")


def multiply_adds(artifact: Artifact, sample: Inputs) -> int:
    """Of one run, as torch counts them from the shapes of its operators."""
    counter = flop_counter.FlopCounterMode(display=False, custom_mapping={aten._scaled_dot_product_flash_attention_for_cpu: flop_counter.sdpa_flop})
    with counter:
        load(artifact, 1).run(sample)
    return counter.get_total_flops() // 2


def open_program(artifact: Artifact) -> torch.export.ExportedProgram:
    """The file's program. CompressError for a file that would run pickled code."""
    from torch.ao.quantization.fx import _decomposed  # noqa: F401  registers the quantized_decomposed operators

    refuse_pickles(artifact.path)
    if BITSANDBYTES in artifact.contents.operators:
        import_bitsandbytes(artifact.path.name)
    return torch.export.load(artifact.path)


def prepare(module: torch.fx.GraphModule, artifact: Artifact) -> None:
    """What the file leaves to the machine that runs it: how 4-bit codes are packed, whether int8 products are exact, and what is expanded."""
    if "aten._int_mm" in artifact.contents.operators and not has_dynamic_kernel():
        multiply_in_float(module)
    if BITSANDBYTES in artifact.contents.operators:
        (pack_4bit if has_fused_4bit() else expand_4bit)(module)
    entries = artifact.contents.metadata.get("tensors", {}).values()
    compute_at_load(module, {target for entry in entries if entry.get("at_load") for target in entry["parts"].values()})


def refuse_pickles(path: Path) -> None:
    """torch.export.load unpickles what a file says is pickled, which runs whatever code it holds; files written here hold none."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        configs = [json.loads(archive.read(name))["config"] for name in names if name.endswith(("_weights_config.json", "_constants_config.json"))]
        sizes = [archive.getinfo(name).file_size for name in names if "/data/sample_inputs/" in name]
    if any(entry["use_pickle"] for config in configs for entry in config.values()) or any(sizes):
        raise CompressError(f"{path.name} holds pickled objects, which can run any code when loaded; export the model again with compresskit")


def has_dynamic_kernel() -> bool:
    """Whether `_int_mm` is worth calling on this CPU. On x86 PyTorch gives it oneDNN's kernel only where there is AVX512-VNNI (pytorch/pytorch#136942),
    and a plain loop elsewhere, 8 to 35 times slower than the float product.
    """
    cpu = torch.cpu.get_capabilities()
    return bool(cpu["architecture"] != "x86_64" or cpu["avx512_vnni"]) and dynamic_products_are_exact()


def dynamic_products_are_exact() -> bool:
    """Whether `_int_mm` multiplies int8 by int8 on this CPU without saturating: without VNNI instructions some kernels add pairs of products in 16 bits."""
    x, w = torch.full((4, 64), 127, dtype=torch.int8), torch.full((16, 64), 127, dtype=torch.int8)
    return torch.equal(torch._int_mm(x, w.t()), torch.full((4, 16), 127 * 127 * 64, dtype=torch.int32))


def static_products_are_exact() -> bool:
    """The same of oneDNN's operators, which multiply uint8 by int8: one may saturate where the other does not. False where there is no oneDNN."""
    if not torch.backends.mkldnn.is_available():
        return False
    x, w = torch.full((4, 64), 255, dtype=torch.uint8), torch.full((16, 64), 127, dtype=torch.int8)
    weight, ones, zero_points = torch.ops.onednn.qlinear_prepack(w, [4, 64]), torch.ones(16), torch.zeros(16, dtype=torch.int64)
    sums = torch.ops.onednn.qlinear_pointwise(x, 1.0, 0, weight, ones, zero_points, None, 1.0, 0, torch.float32, "none", [], "")
    return bool((sums == 255 * 127 * 64).all())


def multiply_in_float(module: torch.fx.GraphModule) -> None:
    """Integer products in float32 instead, where int8 kernels saturate or are missing: no faster than float, and exact up to sums of 2^24, rounded beyond."""
    for node in module.graph.find_nodes(op="call_function", target=aten._int_mm.default):
        with module.graph.inserting_before(node):
            floats = [module.graph.call_function(aten.to.dtype, (argument, torch.float32)) for argument in node.args]
            node.replace_all_uses_with(module.graph.call_function(aten.mm.default, tuple(floats)))
        module.graph.erase_node(node)
    module.recompile()


def lowered(program: torch.export.ExportedProgram, artifact: Artifact) -> torch.fx.GraphModule:
    """Static int8 with oneDNN's int8 operators in place of dequantize-operator-quantize.

    The steps of torchao's lower_pt2e_quantized_to_x86, which leaves linear layers of three dimensions in float: its patterns want `reshape`, where the
    graph says `view`. Also, oneDNN's convolutions return channels-last tensors, of which not every view exists.
    """
    from torch._inductor.constant_folding import constant_fold
    from torch._inductor.fx_passes.freezing_patterns import freezing_passes

    composites = {op: how for op, how in torch.export.default_decompositions().items() if torch._export.utils._is_cia_op(op)}
    module = program.run_decompositions(composites).module(check_guards=False)
    for node in module.graph.nodes:
        if node.target is aten.view.default:
            node.target = aten.reshape.default
        elif node.target is aten.t.default:
            node.target, node.args = aten.permute.default, (node.args[0], [1, 0])
    module.recompile()
    freezing_passes(module, zeros(artifact))
    constant_fold(module)
    return module


def zeros(artifact: Artifact) -> tuple[torch.Tensor, ...]:
    return tuple(torch.zeros(spec.shape, dtype=getattr(torch, spec.dtype)) for spec in artifact.contents.inputs)


def versions() -> dict[str, str]:
    import importlib.metadata

    return {
        "torch": torch.__version__,
        "torchao": importlib.metadata.version("torchao"),
        "CPU capability": torch.backends.cpu.get_cpu_capability(),
        "static int8 products": "oneDNN" if static_products_are_exact() else IN_FLOAT,
        "dynamic int8 products": "native" if has_dynamic_kernel() else NO_KERNEL,
        "bitsandbytes' 4-bit products": "in bfloat16"
        if torch.cpu.get_capabilities().get("avx512_bf16")
        else "no AVX512-BF16: expanded to float32 at each run, by a table",
        "threads": str(torch.get_num_threads()),
    }
