"""Convolutions whose weight is expanded at each run, as products of matrices: XNNPACK's own take constants only, and the portable one is a plain loop."""

from itertools import product
from math import prod

from torch import fx

from exporters.torch_graph import CONVOLUTIONS, Builder, aten
from exporters.torch_kernels import per_axis

DEFAULTS = (None, [1], [0], [1], 1)  # bias, stride, padding, dilation, groups


def is_convolution(node: fx.Node) -> bool:
    return node.target in CONVOLUTIONS


def as_product(b: Builder, node: fx.Node, shape: tuple[int, ...]) -> None:
    """Replaces a convolution of x [N, C, ...] by a weight of `shape` [O, C / groups, ...] that is computed.

    In each group the weights [O / groups, C / groups * taps] multiply what each tap of the kernel sees, slices of padded x.
    """
    with node.graph.inserting_before(node):
        y = multiplied(b, node, shape)
    y.meta["val"] = node.meta["val"]
    node.replace_all_uses_with(y)
    node.graph.erase_node(node)


def multiplied(b: Builder, node: fx.Node, shape: tuple[int, ...]) -> fx.Node:
    x, weight, *rest = node.args
    bias, stride, padding, dilation, groups = (*rest, *DEFAULTS[len(rest) :])
    outputs, inputs, *kernel = shape
    (batch, _, *sizes), positions = x.meta["val"].shape, node.meta["val"].shape[2:]
    stride, padding, dilation = (per_axis(values, kernel) for values in (stride, padding, dilation))
    if any(padding):
        x = b.call(aten.pad.default, x, [amount for amount in reversed(padding) for _ in range(2)])
    taps = [x] * prod(kernel)
    for index, tap in enumerate(product(*map(range, kernel))):
        for axis, (at, step, apart, count) in enumerate(zip(tap, stride, dilation, positions, strict=True)):
            first, whole = at * apart, sizes[axis] + 2 * padding[axis]
            if (first, step, count) != (0, 1, whole):
                taps[index] = b.call(aten.slice.Tensor, taps[index], axis + 2, first, first + step * (count - 1) + 1, step)
    columns = taps[0] if len(taps) == 1 else b.call(aten.stack.default, taps, 2)
    columns = b.call(aten.reshape.default, columns, [batch * groups, inputs * len(taps), prod(positions)])
    rows = b.call(aten.reshape.default, weight, [groups, outputs // groups, inputs * len(taps)])
    if batch > 1:
        rows = b.call(aten.repeat.default, rows, [batch, 1, 1])
    y = b.call(aten.reshape.default, b.call(aten.bmm.default, rows, columns), [batch, outputs, *positions])
    return y if bias is None else b.call(aten.add.Tensor, y, b.call(aten.reshape.default, bias, [1, outputs, *[1] * len(positions)]))
