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
    for node, given in products_4bit(module):
        parts = [constant_before(module, node, part, value) for part, value in packed_for_this_cpu(module, given).items()]
        node.target, node.kwargs = torch.ops.bitsandbytes.gemv_4bit.default, {}
        node.args = (given["A"], parts[0], given["shapeB"], *parts[1:], given["blocksize"])
    module.recompile()


@torch.no_grad()
def expand_4bit(module: fx.GraphModule) -> None:
    """The same numbers in place of gemm_4bit where it has no fused kernel for this CPU and expands its weight at each run, by a table of a byte's two levels.

    bitsandbytes' own expansion takes many times as long as the product.
    """
    for node, given in products_4bit(module):
        codes, levels = evaluated(module, given["B"]), levels_4bit(given["quant_type"])
        pairs = torch.stack([levels.repeat_interleave(16), levels.repeat(16)], 1)  # the first of two weights is in a byte's high half
        scales, size = scales_4bit(module, given), given["blocksize"]
        if 2 * codes.numel() % size:
            continue  # a short last block
        table, factors = constant_before(module, node, "pairs", pairs), constant_before(module, node, "scales", scales.reshape(-1, 1))
        with module.graph.inserting_before(node):
            indices = module.graph.call_function(aten.to.dtype, (module.graph.call_function(aten.view.default, (given["B"], [-1])), torch.int32))
            values = module.graph.call_function(aten.embedding.default, (table, indices))
            scaled = module.graph.call_function(aten.mul.Tensor, (module.graph.call_function(aten.view.default, (values, [-1, size])), factors))
            weight = module.graph.call_function(aten.view.default, (scaled, list(given["shapeB"])))
        node.target, node.args, node.kwargs = aten.linear.default, (given["A"], weight, given.get("bias")), {}
    module.recompile()


def products_4bit(module: fx.GraphModule) -> list[tuple[fx.Node, dict[str, Any]]]:
    """Every gemm_4bit with its arguments by name."""
    found = module.graph.find_nodes(op="call_function", target=torch.ops.bitsandbytes.gemm_4bit.default)
    return [(node, dict(zip((a.name for a in node.target._schema.arguments), node.args, strict=False)) | node.kwargs) for node in found]


def scales_4bit(module: fx.GraphModule, given: Mapping[str, Any]) -> torch.Tensor:
    """float32 [blocks]: the scales of a gemm_4bit, decoded where they are codes."""
    scales, codes, table, offset = (evaluated(module, given.get(name)) for name in ("absmax", *NESTED))
    return scales if codes is None else torch.ops.bitsandbytes.dequantize_blockwise(codes, scales, table, 256, torch.float32) + offset


def levels_4bit(kind: str) -> torch.Tensor:
    from bitsandbytes.functional import get_4bit_type

    return get_4bit_type(kind, device="cpu")


def packed_for_this_cpu(module: fx.GraphModule, given: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The constant arguments of gemv_4bit from those of gemm_4bit."""
    from bitsandbytes.functional import QuantState, _convert_weight_packed_for_cpu

    levels = levels_4bit(given["quant_type"])
    state = QuantState(scales_4bit(module, given), torch.Size(given["shapeB"]), levels, given["blocksize"], given["quant_type"], torch.float32)
    packed, state = _convert_weight_packed_for_cpu(evaluated(module, given["B"]), state)
    return {"codes": packed, "scales": state.absmax, "table": levels}
