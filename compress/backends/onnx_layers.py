"""What the constants of an ONNX graph are to the operators that read them, and how they lie there."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

NORMS = ("BatchNormalization", "InstanceNormalization", "LayerNormalization", "GroupNormalization", "RMSNormalization", "SkipLayerNormalization")
RECURRENT = ("LSTM", "GRU", "RNN")


@dataclass(frozen=True)
class Role:
    """A kind of weight and its place in the file.

    same        canonical
    transposed  [in, out]
    grouped     [in, out / groups, *kernel] of a transposed convolution
    stacked     [directions, rows, in] of a recurrent layer; canonical is [directions * rows, in]
    """

    kind: str
    lies: Literal["same", "transposed", "grouped", "stacked"] = "same"
    groups: int = 1


def role_of(value: ir.Value) -> Role:
    """A constant's role; one that several operators read counts as what the first layer says."""
    rank = len(value.shape)
    found = [role for role in readers(value, rank, False) if role is not None]
    return next(iter(found), Role("bias" if rank < 2 else "parameter"))


def readers(value: ir.Value, rank: int, turned: bool) -> Iterator[Role | None]:
    for node, slot in value.uses():
        if node.op_type == "Identity" or node.op_type == "Transpose" and rank == 2:
            yield from readers(node.outputs[0], rank, turned != (node.op_type == "Transpose"))
        elif node.domain in ("", "ai.onnx") or node.op_type in NORMS:
            yield reader(node, slot, value, rank, turned)


def reader(node: ir.Node, slot: int, value: ir.Value, rank: int, turned: bool) -> Role | None:
    """The role that one operator gives a constant, or None where it tells nothing."""
    op = node.op_type
    if rank == 2 and slot == 1 and op in ("MatMul", "Gemm"):
        as_rows = bool(attribute(node, "transB", 0)) != turned
        return Role("linear", "same" if as_rows else "transposed")
    if op == "Conv" and slot == 1:
        depthwise = attribute(node, "group", 1) > 1 and value.shape[1] == 1
        return Role(f"{'depthwise_' if depthwise else ''}conv{rank - 2}d")
    if op == "ConvTranspose" and slot == 1:
        return Role(f"conv_transpose{rank - 2}d", "grouped", attribute(node, "group", 1))
    if op == "Gather" and slot == 0 and rank == 2 and attribute(node, "axis", 0) == 0 and not turned:
        return Role("embedding")
    if op in RECURRENT and slot in (1, 2):
        return Role("recurrent", "stacked")
    return Role("norm") if op in NORMS else None


def attribute(node: ir.Node, name: str, default: int) -> int:
    return node.attributes[name].as_int() if name in node.attributes else default


def canonical(value: np.ndarray, role: Role) -> np.ndarray:
    if role.lies == "transposed":
        return np.ascontiguousarray(value.T)
    if role.lies == "stacked":
        return value.reshape(-1, value.shape[-1])
    if role.lies == "grouped":
        split = value.reshape(role.groups, value.shape[0] // role.groups, *value.shape[1:])
        return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(-1, value.shape[0] // role.groups, *value.shape[2:])
    return value


def file_layout(value: np.ndarray, role: Role, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of `canonical`, for an initializer of this shape."""
    if role.lies == "transposed":
        return np.ascontiguousarray(value.T)
    if role.lies == "grouped":
        split = value.reshape(role.groups, value.shape[0] // role.groups, *value.shape[1:])
        return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(shape)
    return np.ascontiguousarray(value).reshape(shape)
