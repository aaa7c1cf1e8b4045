"""Graphs as XNNPACK's partitioner knows them: constants that lie as operators want them, products as linear layers, biases inside, few permutations."""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import fx

from exporters.torch_graph import LAYOUT_OPS, Builder, aten, constant, drop_dead_operators
from exporters.torch_kernels import PADDED, plain_convolution

PRODUCTS = (aten.matmul.default, aten.mm.default)
IN_PLACE = {aten.relu_.default: aten.relu.default, aten.hardtanh_.default: aten.hardtanh.default}
CONVOLUTIONS = (aten.conv1d.default, aten.conv2d.default)
ELEMENTWISE = (aten.relu.default, aten.hardtanh.default, aten.sigmoid.default, aten.tanh.default, aten.gelu.default, aten.silu.default, aten.elu.default)
ELEMENTWISE += (aten.leaky_relu.default, aten.hardswish.default, aten.clamp.default)


def simplified(module: fx.GraphModule) -> dict[str, str]:
    """Rewrites the graph to one that computes the same. Returns where each new constant comes from: its name to the name that it was made of."""
    origins = fold_layouts(module)
    for node in list(module.graph.nodes):
        if node.target is aten.contiguous.default:
            node.replace_all_uses_with(node.args[0])
        elif node.target is aten.view.default:
            node.target = aten.reshape.default
        elif node.target is aten.relu6.default:
            node.target, node.args = aten.hardtanh.default, (node.args[0], 0.0, 6.0)
        elif node.target in IN_PLACE and len(node.args[0].users) == 1:
            node.target = IN_PLACE[node.target]
    for node in list(module.graph.nodes):
        if node.target in PADDED:
            with module.graph.inserting_before(node):
                in_numbers = plain_convolution(Builder(module, {}), node, node.args[1])
            in_numbers.meta["val"] = node.meta["val"]
            node.replace_all_uses_with(in_numbers)
            module.graph.erase_node(node)
        elif node.target in PRODUCTS or node.target is aten.addmm.default:
            as_linear(module, node, origins)
    for node in list(module.graph.nodes):
        join_bias(module, node, origins)
    for rule in (permute_later, mean_before_permutation, whole_mean):
        for node in list(module.graph.nodes):
            rule(module, node)
    drop_dead_operators(module)
    return origins


def replaced(node: fx.Node, target, *args, **kwargs) -> fx.Node:
    """A new node in the place of this one, with its metadata."""
    with node.graph.inserting_before(node):
        fresh = node.graph.call_function(target, args, kwargs)
    fresh.meta["val"] = node.meta["val"]
    node.replace_all_uses_with(fresh)
    node.graph.erase_node(node)
    return fresh


def register(module: fx.GraphModule, before: fx.Node, source: str, value: torch.Tensor, origins: dict[str, str]) -> fx.Node:
    """A node that reads a new constant, made of the one named `source`."""
    name = f"{source.replace('.', '_')}__{len(origins)}"
    module.register_buffer(name, value.contiguous())
    origins[name] = origins.get(source, source)
    with module.graph.inserting_before(before):
        node = module.graph.get_attr(name)
    node.meta["val"] = value
    return node


def fold_layouts(module: fx.GraphModule) -> dict[str, str]:
    """Moves the elements of constants now instead of at every run."""
    origins: dict[str, str] = {}
    for node in list(module.graph.nodes):
        if node.target in LAYOUT_OPS and node.args[0].op == "get_attr":
            source = node.args[0].target
            value = node.target(constant(module, source).detach(), *node.args[1:], **node.kwargs)
            node.replace_all_uses_with(register(module, node, source, value, origins))
            module.graph.erase_node(node)
    return origins


def as_linear(module: fx.GraphModule, node: fx.Node, origins: dict[str, str]) -> None:
    """x @ constant as a linear layer of its transpose."""
    bias, x, weight = node.args if node.target is aten.addmm.default else (None, *node.args)
    if node.kwargs or weight.op != "get_attr" or len(weight.meta["val"].shape) != 2:
        return
    turned = register(module, node, weight.target, constant(module, weight.target).detach().t(), origins)
    replaced(node, aten.linear.default, x, turned, *(() if bias is None else (bias,)))


def axes_of(node: fx.Node) -> list[int]:
    rank = len(node.meta["val"].shape)
    return [axis % rank for axis in node.args[1]]


def is_permutation(node: object) -> bool:
    return isinstance(node, fx.Node) and node.target is aten.permute.default


def join_bias(module: fx.GraphModule, node: fx.Node, origins: dict[str, str]) -> None:
    """layer + constant as the layer with a bias; the layer's output may be permuted in between."""
    if node.target is not aten.add.Tensor or node.kwargs or not all(isinstance(argument, fx.Node) for argument in node.args):
        return
    given, bias = node.args
    layer = given.args[0] if is_permutation(given) else given
    if bias.op != "get_attr" or layer.target not in (aten.linear.default, *CONVOLUTIONS) or len(layer.users) > 1 or len(given.users) > 1:
        return
    axis = len(layer.meta["val"].shape) - 1 if layer.target is aten.linear.default else 1
    at = axes_of(given).index(axis) if is_permutation(given) else axis
    shape, rank = tuple(bias.meta["val"].shape), len(node.meta["val"].shape)
    wanted = tuple(node.meta["val"].shape[at] if i == at else 1 for i in range(rank))
    if (1,) * (rank - len(shape)) + shape != wanted or (len(layer.args) > 2 and layer.args[2] is not None):
        return
    flat = register(module, layer, bias.target, constant(module, bias.target).detach().reshape(-1), origins)
    layer.args = (*layer.args[:2], flat, *layer.args[3:])
    node.replace_all_uses_with(given)
    module.graph.erase_node(node)


def permute_later(module: fx.GraphModule, node: fx.Node) -> None:
    """f(permuted x) as permuted f(x), and two permutations that cancel as none."""
    if not node.args or not is_permutation(node.args[0]):
        return
    x, axes = node.args[0].args[0], axes_of(node.args[0])
    if is_permutation(node) and [axes[axis] for axis in axes_of(node)] == sorted(axes):
        node.replace_all_uses_with(x)
        module.graph.erase_node(node)
    elif node.target in ELEMENTWISE and len(node.args[0].users) == 1:
        with module.graph.inserting_before(node):
            value = module.graph.call_function(node.target, (x, *node.args[1:]), node.kwargs)
        value.meta["val"] = x.meta["val"]
        replaced(node, aten.permute.default, value, axes)


def mean_before_permutation(module: fx.GraphModule, node: fx.Node) -> None:
    """The mean over axes of permuted x as the mean over those axes of x, where what stays is in the same order."""
    if node.target is not aten.mean.dim or not is_permutation(node.args[0]) or not isinstance(node.args[1], Sequence) or len(node.args) > 2:
        return
    axes = axes_of(node.args[0])
    over = [axes[axis] for axis in node.args[1]]
    if (left := [axis for axis in axes if axis not in over]) == sorted(left):
        node.args = (node.args[0].args[0], sorted(over))


def whole_mean(module: fx.GraphModule, node: fx.Node) -> None:
    """The mean of each channel of an image as XNNPACK has it: with axes of size 1 left, which a reshape takes away."""
    if node.target is not aten.mean.dim or len(node.args) != 2 or node.kwargs or len(node.args[0].meta["val"].shape) != 4:
        return
    if sorted(axis % 4 for axis in node.args[1]) == [2, 3]:
        with module.graph.inserting_before(node):
            means = module.graph.call_function(aten.mean.dim, (node.args[0], [2, 3], True))
        means.meta["val"] = node.meta["val"][..., None, None]
        replaced(node, aten.reshape.default, means, list(node.meta["val"].shape))


def attention_in_parts(module: fx.GraphModule) -> bool:
    """Writes attention as the products and the softmax that XNNPACK has; whether there was any.

    torch's decomposition also takes care of queries with no key to attend to: they give zeros there, the mean of all values here, as where models add a mask.
    """
    found = [node for node in module.graph.find_nodes(op="call_function", target=aten.scaled_dot_product_attention.default) if in_heads(node)]
    for node in found:
        given = arguments(node)
        with module.graph.inserting_before(node):
            value = attention(Builder(module, {}), *node.args[:3], given.get("attn_mask"), given.get("scale"))
        node.replace_all_uses_with(value)
        module.graph.erase_node(node)
    module.recompile()
    return bool(found)


def arguments(node: fx.Node) -> dict[str, Any]:
    """By name, those that the graph gives."""
    return {argument.name: value for argument, value in zip(node.target._schema.arguments, node.args, strict=False)} | node.kwargs


def in_heads(node: fx.Node) -> bool:
    """Whether all heads attend in the same way, each with keys of its own."""
    given, (q, k) = arguments(node), node.args[:2]
    return not given.get("is_causal") and not given.get("enable_gqa") and q.meta["val"].shape[:-2] == k.meta["val"].shape[:-2]


def attention(b: Builder, q: fx.Node, k: fx.Node, v: fx.Node, mask: fx.Node | None, scale: float | None) -> fx.Node:
    """softmax(q k' scale + mask) v, of q [..., queries, size], k and v [..., keys, size]."""
    (*heads, queries, size), keys = q.meta["val"].shape, k.meta["val"].shape[-2]
    scaled = b.call(aten.mul.Tensor, q, size**-0.5 if scale is None else scale)
    flat = [b.call(aten.reshape.default, x, [prod(heads), *x.meta["val"].shape[-2:]]) for x in (k, v)]
    scores = b.call(aten.bmm.default, b.call(aten.reshape.default, scaled, [prod(heads), queries, size]), b.call(aten.transpose.int, flat[0], 1, 2))
    scores = b.call(aten.reshape.default, scores, [*heads, queries, keys])
    if mask is not None:
        scores = b.call(aten.add.Tensor, scores, added(b, mask))
    shares = b.call(aten.reshape.default, b.call(aten.softmax.int, scores, -1), [prod(heads), queries, keys])
    return b.call(aten.reshape.default, b.call(aten.bmm.default, shares, flat[1]), [*heads, queries, v.meta["val"].shape[-1]])


def added(b: Builder, mask: fx.Node) -> fx.Node:
    """A mask as numbers to be added: the lowest float where it says no."""
    if mask.meta["val"].dtype != torch.bool:
        return mask
    no = b.call(aten.to.dtype, b.call(aten.logical_not.default, mask), torch.float32)
    return b.call(aten.mul.Tensor, no, torch.finfo(torch.float32).min)
