"""Exported graphs with small weights: finds where a graph reads a weight and puts the core's codes there, with what computes on them.

The whole file works on the flat graph of `torch.export`, so that every module type, and Keras through its torch backend, is written the same way.
"""

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any

import numpy as np
import torch
from torch import fx

from compress.errors import ExportError
from compress.numerics import Encoded, reach
from compress.numerics.codebooks import levels
from exporters.torch_storing import constants

aten = torch.ops.aten
LAYOUT_OPS = (aten.permute.default, aten.transpose.int, aten.t.default, aten.view.default, aten.reshape.default, aten.contiguous.default)
LAYOUT_OPS += (aten.clone.default, aten.alias.default, aten.detach.default, aten.numpy_T.default, aten.unsqueeze.default, aten.squeeze.dim)
CASTS = (aten.to.dtype, aten.to.dtype_layout)  # Keras casts everything to what it is already
CONVOLUTIONS = (aten.conv1d.default, aten.conv2d.default)  # those with an int8 kernel


@dataclass(frozen=True)
class Layout:
    """How a graph's tensor lies relative to the canonical one: axes permuted, and output channels split by group first (transposed convolutions)."""

    axes: tuple[int, ...]
    groups: int = 1

    @property
    def identity(self) -> bool:
        return self.groups == 1 and self.axes == tuple(range(len(self.axes)))

    def apply(self, value: np.ndarray) -> np.ndarray:
        if self.groups == 1:
            return value.transpose(self.axes)
        out, inputs, *kernel = value.shape
        return value.reshape(self.groups, out // self.groups, inputs, *kernel).swapaxes(1, 2).reshape(self.groups * inputs, -1, *kernel)


@dataclass(frozen=True)
class Site:
    """One place where the graph reads a weight: `user` takes the tensor that `source` gives, which lies as `layout` says."""

    name: str
    user: fx.Node
    source: fx.Node
    layout: Layout


def flat_module(program: torch.export.ExportedProgram) -> fx.GraphModule:
    """The program as a module of positional tensors to a tuple of tensors, whatever containers the model itself returns."""
    module = program.module(check_guards=False)
    output = next(node for node in module.graph.nodes if node.op == "output")
    output.args = (tuple(node for node in torch.utils._pytree.tree_leaves(output.args[0]) if isinstance(node, fx.Node)),)
    module.graph.set_codegen(fx.graph.CodeGen())
    for node in module.graph.nodes:
        if node.target in CASTS and node.meta["val"].dtype == node.args[0].meta["val"].dtype:
            node.replace_all_uses_with(node.args[0])
    drop_dead_operators(module)
    return module


def constant(module: fx.GraphModule, target: str) -> Any:
    return operator.attrgetter(target)(module)


def layouts(shape: tuple[int, ...], target: tuple[int, ...]) -> Iterator[Layout]:
    """Layouts that could turn a canonical shape into a graph's, the plainest first."""
    if len(shape) == len(target):
        for axes in permutations(range(len(shape))):
            if tuple(shape[a] for a in axes) == target:
                yield Layout(axes)
        if len(shape) > 2 and shape[0] % target[1] == 0:
            groups = shape[0] // target[1]
            if groups > 1 and (groups * shape[1], *shape[2:]) == (target[0], *target[2:]):
                yield Layout(tuple(range(len(shape))), groups)


def layout_of(weight: np.ndarray, value: np.ndarray) -> Layout | None:
    """The layout in which `value` is the canonical `weight`, up to rounding; None where it is another tensor."""
    for layout in layouts(weight.shape, value.shape):
        if np.allclose(layout.apply(weight), value, rtol=1e-5, atol=1e-8):
            return layout
    return None


def uses(node: fx.Node, value: torch.Tensor) -> Iterator[tuple[fx.Node, fx.Node, torch.Tensor]]:
    """(user, source, value) of every operator that reads a constant, seen through operators that only move its elements."""
    for user in node.users:
        if user.target in LAYOUT_OPS and user.args[0] is node:
            yield from uses(user, user.target(value, *user.args[1:], **user.kwargs))
        else:
            yield user, node, value


def find_sites(module: fx.GraphModule, weights: Mapping[str, np.ndarray], aliases: Mapping[str, str] | None) -> list[Site]:
    """Every place that reads one of `weights` (canonical float values by name). ExportError where a constant has no known layout.

    aliases  the graph's constant names to weight names; None where names tell nothing, and values decide
    """
    sites = []
    for node in module.graph.find_nodes(op="get_attr"):
        value = constant(module, node.target)
        if not isinstance(value, torch.Tensor) or (aliases is not None and aliases.get(node.target) not in weights):
            continue
        names = [aliases[node.target]] if aliases is not None else [name for name, weight in weights.items() if weight.size == value.numel()]
        for user, source, seen in uses(node, value.detach()):
            found = match(names, weights, seen.numpy())
            if found is None and aliases is not None:
                raise ExportError(f"{names[0]}: {user.target} reads it as {list(seen.shape)}, which is no known layout of {list(weights[names[0]].shape)}")
            if found is not None:
                sites.append(Site(found[0], user, source, found[1]))
    return sites


def match(names: list[str], weights: Mapping[str, np.ndarray], value: np.ndarray) -> tuple[str, Layout] | None:
    for name in names:
        layout = layout_of(weights[name], value)
        if layout is not None:
            return name, layout
    return None


@dataclass(frozen=True)
class LinearCall:
    """x @ weight.T + bias, however the graph spells it."""

    x: fx.Node
    bias: fx.Node | None


def linear_call(site: Site) -> LinearCall | None:
    node, args = site.user, site.user.args
    if node.target is aten.linear.default and args[1] is site.source and site.layout.identity:
        return LinearCall(args[0], args[2] if len(args) > 2 else None)
    if site.layout.axes != (1, 0) or node.kwargs:
        return None
    if node.target in (aten.matmul.default, aten.mm.default) and args[1] is site.source:
        return LinearCall(args[0], None)
    if node.target is aten.addmm.default and args[2] is site.source:
        return LinearCall(args[1], args[0])
    return None


@dataclass
class Stored:
    """One weight in the module: the constants that hold it, named as the file will name them."""

    parts: dict[str, str]  # by what they are: "codes", "scales", ... as compress.numerics.storing names them
    tables: dict[str, str] = field(default_factory=dict)  # those with a name, which other weights may share: of "codes" and of "scales"
    high_first: bool = False  # of two 4-bit codes the first lies in the high nibble, as bitsandbytes has it
    native: list[str] = field(default_factory=list)  # what is to be said of each reader that computes in the format
    decoded: list[str] = field(default_factory=list)  # why each other reader expands it


class Builder:
    """Adds constants and operators to a module's graph, each constant once."""

    def __init__(self, module: fx.GraphModule, encoded: Mapping[str, Encoded], repeated: frozenset[str] = frozenset()):
        """`repeated` names tensors whose single scale is stored once per output channel, as the static kernels want it."""
        self.module, self.encoded, self.repeated = module, encoded, repeated
        self.stored: dict[str, Stored] = {}
        self.prepared: dict[tuple[Any, fx.Node | str], Any] = {}

    def once(self, prepare: Callable[["Builder", fx.Node], Any], x: fx.Node) -> Any:
        """`prepare(self, x)`, done once for all layers that read x, right behind it."""
        if (prepare, x) not in self.prepared:
            behind = x.next
            while behind.op in ("placeholder", "get_attr"):
                behind = behind.next
            with self.module.graph.inserting_before(behind):
                self.prepared[prepare, x] = prepare(self, x)
        return self.prepared[prepare, x]

    def ahead(self, prepare: Callable[["Builder", str], fx.Node], name: str) -> fx.Node:
        """`prepare(self, name)`, which depends on constants alone, done once for all readers of a weight, before every operator."""
        if (prepare, name) not in self.prepared:
            first = next(node for node in self.module.graph.nodes if node.op not in ("placeholder", "get_attr"))
            with self.module.graph.inserting_before(first):
                self.prepared[prepare, name] = prepare(self, name)
        return self.prepared[prepare, name]

    def scale_shape(self, name: str) -> tuple[int, ...]:
        encoded = self.encoded[name]
        return encoded.shape[:1] if name in self.repeated else reach.scale_shape(encoded.shape, encoded.format.granularity)

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return self.module.graph.call_function(target, args, kwargs)

    def attribute(self, target: str) -> fx.Node:
        return self.module.graph.get_attr(target)

    def register(self, name: str, part: str, value: torch.Tensor) -> str:
        target = f"{name.replace('.', '_').replace('/', '_')}__{part}"
        self.module.register_buffer(target, value)
        return target

    def store(self, name: str, high_first: bool = False) -> Stored:
        """The constants of a weight, registered when first asked for."""
        if name not in self.stored:
            found = constants(self.encoded[name], high_first)
            if name in self.repeated:
                found["scales"] = found["scales"].repeat(self.scale_shape(name))
            self.stored[name] = Stored({part: self.register(name, part, value) for part, value in found.items()}, high_first=high_first)
        return self.stored[name]

    def part(self, name: str, part: str) -> fx.Node:
        return self.attribute(self.store(name).parts[part])

    def table(self, name: str, of: str, codebook: str) -> fx.Node:
        """float32 [entries]: the table of a weight's codes or scales that has a name, held once for all weights that use it."""
        target = self.store(name).tables[of] = f"codebook__{codebook}"
        if not hasattr(self.module, target):
            self.module.register_buffer(target, torch.from_numpy(levels(codebook).values.copy()))
        return self.attribute(target)

    def in_layout(self, value: fx.Node, shape: tuple[int, ...], layout: Layout) -> fx.Node:
        """A canonical value as the graph's operator wants it."""
        if layout.identity:
            return value
        if layout.groups == 1:
            return self.call(aten.permute.default, value, list(layout.axes))
        out, inputs, *kernel = shape
        split = self.call(aten.view.default, value, [layout.groups, out // layout.groups, inputs, *kernel])
        return self.call(aten.reshape.default, self.call(aten.transpose.int, split, 1, 2), [layout.groups * inputs, out // layout.groups, *kernel])


def names_by_value(module: fx.GraphModule, weights: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Weight names to the graph's constants of the same values in any layout, each constant once: for graphs whose own names tell nothing."""
    found, left = {}, dict(weights)
    for node in module.graph.find_nodes(op="get_attr"):
        value = constant(module, node.target).detach().numpy()
        name = next((n for n, w in left.items() if w.size == value.size and (layout_of(w, value) or np.allclose(w.ravel(), value.ravel(), rtol=1e-5))), None)
        if name is not None:
            found[name] = node.target
            del left[name]
    return found


def drop_dead_operators(module: fx.GraphModule) -> None:
    """Removes operators whose result nobody reads, and the assertions that keep some of them alive."""
    for node in module.graph.find_nodes(op="call_function", target=aten._assert_tensor_metadata.default):
        module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    module.recompile()


def drop_dead_constants(module: fx.GraphModule, kept: set[str]) -> None:
    """Removes constants that nothing reads, except those named in `kept`."""
    read = {node.target for node in module.graph.nodes if node.op == "get_attr"} | kept
    for name in [*dict(module.named_parameters(remove_duplicate=False)), *dict(module.named_buffers(remove_duplicate=False))]:
        if name not in read:
            path, _, leaf = name.rpartition(".")
            delattr(module.get_submodule(path), leaf)


def strip(program: torch.export.ExportedProgram) -> None:
    """Takes out what running does not need: dtype assertions, example inputs, and traces that name local files."""
    graph = program.graph_module.graph
    for node in graph.find_nodes(op="call_function", target=aten._assert_tensor_metadata.default):
        graph.erase_node(node)
    for node in graph.nodes:
        for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node"):
            node.meta.pop(key, None)
    program.graph_module.recompile()
    program.example_inputs = None
