"""What is done once when a .pt2 is loaded: constants computed, and bitsandbytes' weights packed for this CPU."""

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from compress.errors import MissingExtra

aten = torch.ops.aten
BITSANDBYTES = "bitsandbytes.gemm_4bit"
NESTED = ("absmax_8bit", "absmax_code", "absmax_offset")


@torch.no_grad()
def compute_at_load(module: fx.GraphModule, targets: set[str]) -> None:
    """Replaces what follows from these constants alone by its value, and drops those that nothing reads any longer.

    So int4 is packed for this CPU, and weights that no kernel computes with are expanded to float32, once instead of at every run.
    """
    known, follows = set(), set()
    for node in module.graph.nodes:
        sources = node.all_input_nodes
        if node.op == "get_attr" or node.target is aten.arange.start_step or (node.op == "call_function" and sources and known.issuperset(sources)):
            known.add(node)
            if node.target in targets or follows.intersection(sources):
                follows.add(node)
    for node in list(module.graph.nodes):
        if node in follows and node.op == "call_function" and not known.issuperset(node.users):
            node.replace_all_uses_with(constant_before(module, node, "at_load", evaluated(module, node)))
    module.graph.eliminate_dead_code()
    module.recompile()
    for target in targets - {node.target for node in module.graph.nodes if node.op == "get_attr"}:
        if hasattr(module, target):
            delattr(module, target)


def constant_before(module: fx.GraphModule, node: fx.Node, part: str, value: torch.Tensor) -> fx.Node:
    target = f"{node.name}__{part}"
    module.register_buffer(target, value)
    with module.graph.inserting_before(node):
        return module.graph.get_attr(target)


def evaluated(module: fx.GraphModule, node: Any) -> Any:
    """The value of a node that depends on constants only."""
    if isinstance(node, list | tuple):
        return [evaluated(module, item) for item in node]
    if not isinstance(node, fx.Node):
        return node
    if node.op == "get_attr":
        return operator.attrgetter(node.target)(module)
    return node.target(*(evaluated(module, argument) for argument in node.args), **node.kwargs)


def import_bitsandbytes(file_name: str) -> None:
    """Registers the operators that a file calls; MissingExtra where they are not installed."""
    try:
        import bitsandbytes  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtra(f"{file_name} computes 4-bit layers by bitsandbytes, and {error.name} is not installed: pip install bitsandbytes") from error


def has_fused_4bit() -> bool:
    """Whether bitsandbytes has a kernel for this CPU that computes with 4-bit codes; elsewhere its operator expands them at each run."""
    from bitsandbytes.functional import has_avx512bf16

    return bool(has_avx512bf16())


@torch.no_grad()
def pack_4bit(module: fx.GraphModule) -> None:
    """bitsandbytes' fused kernel and its packing in place of gemm_4bit, as its Linear4bit does when it is evaluated."""
    for node in module.graph.find_nodes(op="call_function", target=torch.ops.bitsandbytes.gemm_4bit.default):
        given = dict(zip((argument.name for argument in node.target._schema.arguments), node.args, strict=False)) | node.kwargs
        parts = [constant_before(module, node, part, value) for part, value in packed_for_this_cpu(module, given).items()]
        node.target, node.kwargs = torch.ops.bitsandbytes.gemv_4bit.default, {}
        node.args = (given["A"], parts[0], given["shapeB"], *parts[1:], given["blocksize"])
    module.recompile()


def packed_for_this_cpu(module: fx.GraphModule, given: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The constant arguments of gemv_4bit from those of gemm_4bit."""
    from bitsandbytes.functional import QuantState, _convert_weight_packed_for_cpu, get_4bit_type

    codes, scales, scale_codes, table, offset = (evaluated(module, given.get(name)) for name in ("B", "absmax", *NESTED))
    if scale_codes is not None:
        scales = torch.ops.bitsandbytes.dequantize_blockwise(scale_codes, scales, table, 256, torch.float32) + offset
    levels = get_4bit_type(given["quant_type"], device="cpu")
    state = QuantState(scales, torch.Size(given["shapeB"]), levels, given["blocksize"], given["quant_type"], torch.float32)
    packed, state = _convert_weight_packed_for_cpu(codes, state)
    return {"codes": packed, "scales": state.absmax, "table": levels}
