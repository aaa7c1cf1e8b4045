"""Products with small weights on CUDA: each function rewrites one kind of them in a graph that lies on the device already."""

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch.sparse import to_sparse_semi_structured

from evaluators.runtimes.torch_loading import constant_before

aten = torch.ops.aten
HALVES = (torch.float16, torch.bfloat16)
PRODUCTS = {
    aten.linear.default: 1,
    **dict.fromkeys((aten.conv1d.default, aten.conv1d.padding, aten.conv2d.default, aten.conv2d.padding), 1),
    aten.matmul.default: 1,
    aten.mm.default: 1,
    aten.addmm.default: 2,
}
"""Operators that multiply by a weight, and which of their arguments that is."""
MOVED = (aten.permute.default, aten.transpose.int, aten.t.default)  # what may lie between a weight and its reader
INT_ROWS, INT_STEP = 17, 8  # cuBLAS multiplies integers from 17 rows on, and multiples of 8 inputs and outputs
SPARSE_STEP = (32, 64)  # rows and columns of a weight that cuSPARSELt takes
FLOAT8_LARGEST, FLOAT8_STEP = 448.0, 16
SMALLEST_SCALE = torch.finfo(torch.float32).eps


@dataclass
class Lowered:
    """A module whose constants lie on a device, and what is to be said of it."""

    module: fx.GraphModule
    entries: Mapping[str, Mapping[str, Any]]  # the file's metadata about its weights
    computed: dict[str, tuple[str, str]] = field(default_factory=dict)  # placement and reason by weight, where they are not the file's

    def names(self, node: fx.Node) -> list[str]:
        """The weights that a node follows from, through constants alone."""
        targets = set(constants_behind(node))
        return [name for name, entry in self.entries.items() if targets.intersection(entry.get("parts", {}).values())]

    def say(self, node: fx.Node, placement: str, reason: str) -> None:
        self.computed |= dict.fromkeys(self.names(node), (placement, reason))


def constants_behind(node: fx.Node) -> list[str]:
    """Targets of the constants that a node follows from; none where it follows from an input too."""
    if node.op != "call_function":
        return [node.target] if node.op == "get_attr" else []
    found = [constants_behind(source) for source in node.all_input_nodes]
    return sum(found, []) if all(found) else []


def products(module: fx.GraphModule) -> Iterator[tuple[fx.Node, int]]:
    """Operators that multiply by something, and the place of the weight among their arguments."""
    return ((node, PRODUCTS[node.target]) for node in list(module.graph.nodes) if node.target in PRODUCTS)


def shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)


def constant(module: fx.GraphModule, target: str) -> torch.Tensor:
    return operator.attrgetter(target)(module)


def in_float32(module: fx.GraphModule, node: fx.Node) -> None:
    """Every reader of `node` gets it in float32."""
    users = list(node.users)
    with module.graph.inserting_after(node):
        wide = module.graph.call_function(aten.to.dtype, (node, torch.float32))
    for user in users:
        user.replace_input_with(node, wide)


def pad_integers(module: fx.GraphModule) -> None:
    """Zeros around int8 codes where cuBLAS takes no product of their shape; they add nothing, and what they give is cut off."""
    call = module.graph.call_function
    for node in module.graph.find_nodes(op="call_function", target=aten._int_mm.default):
        x, w = node.args
        (rows, inputs), outputs = shape(x), shape(w)[1]
        more_rows, more_inputs, more_outputs = max(0, INT_ROWS - rows), -inputs % INT_STEP, -outputs % INT_STEP
        if not (more_rows or more_inputs or more_outputs):
            continue
        with module.graph.inserting_before(node):
            wide_x = call(aten.constant_pad_nd.default, (x, [0, more_inputs, 0, more_rows]))
            wide_w = call(aten.constant_pad_nd.default, (call(aten.t.default, (w,)), [0, more_inputs, 0, more_outputs]))
            product = call(aten._int_mm.default, (wide_x, call(aten.t.default, (wide_w,))))
            cut = call(aten.slice.Tensor, (call(aten.slice.Tensor, (product, 0, 0, rows)), 1, 0, outputs))
        node.replace_all_uses_with(cut)
        module.graph.erase_node(node)


def pack_int4(module: fx.GraphModule) -> None:
    """tinygemm's CUDA kernel and packing in place of the CPU's: the same nibbles, scales and offsets; of two nibbles in a byte the even one is on top."""
    call = module.graph.call_function
    for node in module.graph.find_nodes(op="call_function", target=aten._weight_int4pack_mm_for_cpu.default):
        x, packed, group, pairs = node.args
        nibbles = packed.args[0]
        columns = shape(nibbles)[1]
        tiles = next(tiles for tiles in (8, 4, 2) if columns % (16 * tiles) == 0)  # columns are whole groups, so multiples of 32
        with module.graph.inserting_before(node):
            even, odd = (call(aten.slice.Tensor, (nibbles, 1, start, columns, 2)) for start in (0, 1))
            both = call(aten.bitwise_or.Tensor, (call(aten.mul.Tensor, (even, 16)), odd))
            halves = call(aten.contiguous.default, (call(aten.to.dtype, (both, torch.uint8)),))
            again = call(aten._convert_weight_to_int4pack.default, (halves, tiles))
            solid = call(aten.contiguous.default, (x,))
            product = call(aten._weight_int4pack_mm.default, (solid, again, group, call(aten.contiguous.default, (pairs,))))
        node.replace_all_uses_with(product)
        module.graph.erase_node(node)


def four_bits(low: Lowered) -> None:
    """bitsandbytes' products in bfloat16: its CUDA kernels use tensor cores for that, and have none for float32."""
    for node in low.module.graph.find_nodes(op="call_function", target=torch.ops.bitsandbytes.gemm_4bit.default):
        with low.module.graph.inserting_before(node):
            x = low.module.graph.call_function(aten.to.dtype, (node.args[0], torch.bfloat16))
        node.args = (x, *node.args[1:])
        in_float32(low.module, node)
        low.say(node.args[1], "native", "bitsandbytes' CUDA kernels compute in bfloat16; for many rows they expand the weight to it at each run")


def wants_float8(entry: Mapping[str, Any]) -> bool:
    """Whether a weight has E4M3 codes, one scale, and activations that are quantized at run time."""
    fmt = entry.get("format", {})
    return entry.get("activations") == "dynamic" and fmt.get("codebook") == "e4m3" and fmt["granularity"]["type"] == "tensor"


def small_floats(low: Lowered) -> None:
    """E4M3 codes times activations that get one E4M3 scale at each run, as torchao's Float8DynamicActivationFloat8Weight per tensor."""
    wanted = {name for name, entry in low.entries.items() if wants_float8(entry)}
    for node, place in products(low.module):
        name = next((name for name in low.names(node.args[place]) if name in wanted), None)
        if name is None or node.target is not aten.linear.default:
            continue
        outputs, inputs = low.entries[name]["shape"]
        if outputs % FLOAT8_STEP or inputs % FLOAT8_STEP:
            low.say(node.args[1], "decoded", f"expanded to float32: float8 products want multiples of {FLOAT8_STEP}, not {inputs} inputs and {outputs} outputs")
            continue
        low.say(node.args[1], "native", "activations in float8 with one scale at each run; summed in float32, given in bfloat16")
        with low.module.graph.inserting_before(node):
            product = float8_product(low.module, node, low.entries[name]["parts"])
        node.replace_all_uses_with(product)
        low.module.graph.erase_node(node)


def float8_product(module: fx.GraphModule, node: fx.Node, parts: Mapping[str, str]) -> fx.Node:
    """The linear layer `node` with the weight whose constants are `parts`."""
    x, bias = node.args[0], node.args[2] if len(node.args) > 2 else None
    call, stored = module.graph.call_function, constant(module, parts["codes"])
    codes = constant_before(module, node, "float8", stored.view(torch.float8_e4m3fn))  # a code of the table is the number's bits
    rows = call(aten.contiguous.default, (call(aten.reshape.default, (x, [-1, stored.shape[1]])),))
    largest = call(aten.amax.default, (call(aten.abs.default, (rows,)),))
    scale = call(aten.clamp_min.default, (call(aten.div.Tensor, (largest, FLOAT8_LARGEST)), SMALLEST_SCALE))
    within = call(aten.clamp.default, (call(aten.div.Tensor, (rows, scale)), -FLOAT8_LARGEST, FLOAT8_LARGEST))
    small = call(aten.to.dtype, (within, torch.float8_e4m3fn))
    scales = module.graph.get_attr(parts["scales"])
    y = call(aten._scaled_mm.default, (small, call(aten.t.default, (codes,)), scale, scales, None, None, torch.bfloat16))
    y = call(aten.view.default, (call(aten.to.dtype, (y, torch.float32)), list(shape(node))))
    return y if bias is None else call(aten.add.Tensor, (y, bias))


def half(low: Lowered, sparse: set[str]) -> None:
    """Products with weights in float16 or bfloat16 in that type, all else in float32. `sparse` names weights of which sparse tensor cores skip half."""
    narrow: dict[tuple[fx.Node, torch.dtype], fx.Node] = {}
    for node, place in products(low.module):
        weight = as_stored(low.module, node, node.args[place])
        if weight is None:
            continue
        target = constants_behind(weight)[0]
        stored = constant(low.module, target)
        skipping = target in sparse and weight.op == "get_attr" and node.target is aten.linear.default
        how = f"products in {str(stored.dtype).removeprefix('torch.')}, summed in float32"
        low.say(weight, "native", f"{how}; sparse tensor cores skip half of them" if skipping else how)
        if skipping:
            weight = constant_before(low.module, node, "sparse", to_sparse_semi_structured(stored))
        node.args = tuple(weight if i == place else narrowed(low.module, node, argument, stored.dtype, narrow) for i, argument in enumerate(node.args))
        in_float32(low.module, node)


def as_stored(module: fx.GraphModule, before: fx.Node, node: Any) -> fx.Node | None:
    """A weight that the graph casts from a half type to float32, without that cast; None for anything else."""
    if not isinstance(node, fx.Node):
        return None
    if node.target is aten.to.dtype and node.args[1] is torch.float32 and node.args[0].op == "get_attr":
        return node.args[0] if constant(module, node.args[0].target).dtype in HALVES else None
    source = as_stored(module, before, node.args[0]) if node.target in MOVED else None
    if source is None:
        return None
    with module.graph.inserting_before(before):
        return module.graph.call_function(node.target, (source, *node.args[1:]), node.kwargs)


def narrowed(module: fx.GraphModule, before: fx.Node, argument: Any, dtype: torch.dtype, known: dict[tuple[fx.Node, torch.dtype], fx.Node]) -> Any:
    """A float32 argument in a half type: a constant at once, an activation once for all its readers; what is no tensor as it is."""
    if not isinstance(argument, fx.Node):
        return argument
    if argument.op == "get_attr":
        return constant_before(module, before, argument.name, constant(module, argument.target).to(dtype))
    if (argument, dtype) not in known:
        with module.graph.inserting_before(before):  # the first reader in the graph's order comes before the others
            known[argument, dtype] = module.graph.call_function(aten.to.dtype, (argument, dtype))
    return known[argument, dtype]


def two_of_four(program: torch.export.ExportedProgram) -> Iterator[str]:
    """Constants in a half type of which every 4 numbers in a row hold at most 2, in a shape that sparse tensor cores take."""
    if not torch.backends.cusparselt.is_available():
        return
    for name, tensor in program.state_dict.items():
        fits = tensor.dtype in HALVES and tensor.dim() == 2 and all(n % step == 0 for n, step in zip(tensor.shape, SPARSE_STEP, strict=True))
        if fits and bool(((tensor.reshape(-1, 4) != 0).sum(1) <= 2).all()):
            yield name
