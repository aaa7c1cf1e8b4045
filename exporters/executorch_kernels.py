"""Writes readers of a small weight as XNNPACK's partitioner recognises them: integer codes behind operators that dequantize them."""

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import torch
from torch import fx
from torch.ao.quantization.fx import _decomposed  # noqa: F401  registers the quantized_decomposed operators

from compress.formats import PerGroup
from compress.numerics import Encoded
from exporters.torch_graph import Builder, Site, aten, constant

decomposed = torch.ops.quantized_decomposed
INT8 = (-128, 127, torch.int8)
INT4 = (-8, 7, torch.int8)  # what tells the partitioner that codes have 4 bits
EPSILON = torch.finfo(torch.float32).eps
CONVOLUTIONS = (aten.conv1d.default, aten.conv2d.default, aten.conv_transpose2d.input)


@dataclass(frozen=True)
class Held:
    """A weight that XNNPACK computes with, as a file holds it: each part under the hash of its bytes.

    axes  of the canonical weight, in the order of the file: XNNPACK's kernels want input channels last, of depthwise convolutions the output channels
    bias  the plan's name of the bias that the same layer adds; a static one becomes an int32 in the file
    """

    codes: str
    scales: str
    axes: tuple[int, ...]
    bias: str


def reads_weight(site: Site) -> bool:
    """Whether the reader is a layer that XNNPACK could run."""
    user = site.user
    if len(user.args) < 2 or user.args[1] is not site.source:
        return False
    if user.target is aten.conv_transpose2d.input:
        ungrouped = len(user.args) < 7 or user.args[6] == 1
        return ungrouped and site.layout.groups == 1 and site.layout.axes == (1, 0, 2, 3)
    return user.target in (aten.linear.default, *CONVOLUTIONS) and site.layout.identity


def held(encoded: Encoded, user: fx.Node, named: Mapping[str, str]) -> Held:
    """`named` has the plan's names of float constants by the graph's."""
    axes = stored_axes(user, encoded.shape)
    codes, bias = encoded.codes.transpose(axes), user.args[2] if len(user.args) > 2 else None
    payload = packed(codes) if encoded.format.bits == 4 else codes
    return Held(key(payload), f"scale_{key(scale_bits(encoded))}", axes, "" if bias is None else named.get(bias.target, ""))


def stored_axes(user: fx.Node, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The order in which XNNPACK's layers hold the axes of a canonical weight."""
    if user.target not in CONVOLUTIONS:
        return tuple(range(len(shape)))
    kernel = tuple(range(2, len(shape)))
    depthwise = shape[1] == 1 and user.target is not aten.conv_transpose2d.input
    return (1, *kernel, 0) if depthwise else (0, *kernel, 1)


def float_key(module: fx.GraphModule, user: fx.Node, target: str) -> str:
    """The name under which a file has a float constant that `user` reads."""
    value = constant(module, target).detach().numpy()
    if value.ndim > 2 and user.target is aten.conv_transpose2d.input:
        value = value.swapaxes(0, 1)
    return key(value.transpose(stored_axes(user, value.shape)) if value.ndim > 2 else value)


def packed(codes: np.ndarray) -> np.ndarray:
    """uint8 [out, in / 2]: of two codes the first in the low nibble, 8 added to each; a row of odd length ends with a 0."""
    even = np.pad(codes, ((0, 0), (0, codes.shape[1] % 2))).astype(np.uint8) + 8
    return (even[:, 0::2] & 15) | (even[:, 1::2] << 4)


def scale_bits(encoded: Encoded) -> np.ndarray:
    """Scales as a file holds them: float32 for each output channel, or bfloat16 for each group."""
    if isinstance(encoded.format.granularity, PerGroup):
        return (np.ascontiguousarray(encoded.scales).view(np.uint32) >> 16).astype(np.uint16)
    return np.ascontiguousarray(np.broadcast_to(encoded.scales.ravel(), encoded.shape[:1]))


def key(array: np.ndarray) -> str:
    """The name under which ExecuTorch keeps constants in a file."""
    return sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def dequantized(builder: Builder, site: Site) -> fx.Node:
    """The weight as its reader wants it, from codes and scales."""
    encoded, axis = builder.encoded[site.name], site.layout.axes.index(0)
    parts = {"codes": torch.from_numpy(np.ascontiguousarray(site.layout.apply(encoded.codes)))}
    span = INT4 if encoded.format.bits == 4 else INT8
    groups = isinstance(encoded.format.granularity, PerGroup)
    scales = encoded.scales if groups else np.broadcast_to(encoded.scales.ravel(), encoded.shape[:1])
    parts["scales"] = torch.from_numpy(np.array(scales, np.float32))
    parts["zero_points"] = torch.zeros(scales.shape, dtype=torch.int32)
    constants = [builder.attribute(builder.register(site.name, f"{site.user.name}_{part}", value)) for part, value in parts.items()]
    if groups:
        return builder.call(decomposed.dequantize_per_channel_group.default, *constants, *span, encoded.format.granularity.size, torch.float32)
    return builder.call(decomposed.dequantize_per_channel.default, *constants, axis, *span)


def in_int8(builder: Builder, x: fx.Node) -> fx.Node:
    """x through int8 codes whose scale and zero point follow from it; XNNPACK has one of each for every token."""
    chosen = builder.call(decomposed.choose_qparams.tensor, x, -128, 127, EPSILON, torch.int8)
    scale, zero = (builder.call(operator.getitem, chosen, index) for index in (0, 1))
    codes = builder.call(decomposed.quantize_per_tensor.tensor, x, scale, zero, *INT8)
    return builder.call(decomposed.dequantize_per_tensor.tensor, codes, scale, zero, *INT8)


def place_dynamic(builder: Builder, site: Site) -> None:
    """The reader with int8 activations."""
    x = builder.once(in_int8, site.user.args[0])
    with builder.module.graph.inserting_before(site.user):
        site.user.args = (x, dequantized(builder, site), *site.user.args[2:])
