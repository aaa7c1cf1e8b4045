"""What expands a small weight to float32, in ATen operators: bit for bit what Encoded.decode gives."""

from math import prod

import torch
from torch import fx

from compress.formats import CodebookFormat, FloatFormat, IntFormat, PerAxis, PerBlock, PerGroup
from exporters.torch_graph import Builder, aten


def decoded(b: Builder, name: str) -> fx.Node:
    """float32 values in canonical shape."""
    fmt = b.encoded[name].format
    if isinstance(fmt, FloatFormat):
        return as_float(b, b.part(name, "codes"))
    return codebook_values(b, name) if isinstance(fmt, CodebookFormat) else integer_values(b, name)


def as_float(b: Builder, node: fx.Node) -> fx.Node:
    return b.call(aten.to.dtype, node, torch.float32)


def codes(b: Builder, name: str) -> fx.Node:
    """Codes in canonical shape: as stored, or below 8 bits as uint8, to which 2^(bits-1) is added where they are signed."""
    encoded, stored = b.encoded[name], b.store(name)
    signed = isinstance(encoded.format, IntFormat) and encoded.format.signed
    return unpacked(b, b.attribute(stored.parts["codes"]), encoded.format.bits, encoded.shape, signed, stored.high_first)


def unpacked(b: Builder, packed: fx.Node, bits: int, shape: tuple[int, ...], signed: bool, high_first: bool = False) -> fx.Node:
    """The inverse of pack_low_first in `shape`; signed codes come with 2^(bits-1) added."""
    if bits >= 8:
        return packed
    count = prod(shape)
    if 8 % bits == 0:
        flat = split(b, packed, bits, count, high_first)
    else:  # codes straddle bytes: single bits, gathered again
        rows = b.call(aten.view.default, split(b, packed, 1, count * bits), [count, bits])
        weights = b.call(aten.arange.start_step, 0, bits, 1, dtype=torch.uint8, device=torch.device("cpu"))
        flat = b.call(aten.sum.dim_IntList, b.call(aten.bitwise_left_shift.Tensor, rows, weights), [-1], dtype=torch.uint8)
    if signed:
        flat = b.call(aten.bitwise_xor.Scalar, flat, 1 << (bits - 1))
    return b.call(aten.view.default, flat, list(shape))


def split(b: Builder, packed: fx.Node, bits: int, count: int, high_first: bool = False) -> fx.Node:
    """uint8 [count]: every byte in pieces of a width that divides 8."""
    ends = (8 - bits, -1, -bits) if high_first else (0, 8, bits)
    shifts = b.call(aten.arange.start_step, *ends, dtype=torch.uint8, device=torch.device("cpu"))
    column = b.call(aten.view.default, packed, [-1, 1])
    pieces = b.call(aten.bitwise_and.Scalar, b.call(aten.bitwise_right_shift.Tensor, column, shifts), 2**bits - 1)
    return b.call(aten.slice.Tensor, b.call(aten.view.default, pieces, [-1]), 0, 0, count)


def integer_values(b: Builder, name: str) -> fx.Node:
    encoded, fmt = b.encoded[name], b.encoded[name].format
    values = centred(b, codes(b, name), fmt)
    zeros = None if encoded.zero_points is None else per_value(b, name, zero_points(b, name))
    if zeros is not None and fmt.zero_point != "offset":
        values = b.call(aten.sub.Tensor, values, zeros)
    values = b.call(aten.mul.Tensor, values, per_value(b, name, scales(b, name)))
    return b.call(aten.add.Tensor, values, zeros) if zeros is not None and fmt.zero_point == "offset" else values


def centred(b: Builder, unpacked_codes: fx.Node, fmt: IntFormat) -> fx.Node:
    """float32 codes, without what `unpacked` adds to them."""
    values = as_float(b, unpacked_codes)
    return b.call(aten.sub.Tensor, values, 1 << (fmt.bits - 1)) if fmt.signed and fmt.bits < 8 else values


def zero_points(b: Builder, name: str) -> fx.Node:
    """float32, shaped like scales."""
    fmt, stored = b.encoded[name].format, b.part(name, "zero_points")
    if fmt.zero_point != "integer":
        return as_float(b, stored)
    return centred(b, unpacked(b, stored, fmt.bits, b.scale_shape(name), fmt.signed), fmt)


def codebook_values(b: Builder, name: str) -> fx.Node:
    encoded, fmt = b.encoded[name], b.encoded[name].format
    indices = b.call(aten.to.dtype, codes(b, name), torch.int32)
    if fmt.learned:
        return learned_values(b, name, indices)
    table = b.table(name, "codes", fmt.codebook) if isinstance(fmt.codebook, str) else b.part(name, "codebook")
    values = b.call(aten.index.Tensor, table, [indices])
    if encoded.scales is None:
        return values
    factors = scales(b, name)
    if encoded.global_scale is not None:
        factors = b.call(aten.mul.Tensor, factors, b.part(name, "global_scale"))
    return b.call(aten.mul.Tensor, values, per_value(b, name, factors))


def learned_values(b: Builder, name: str, indices: fx.Node) -> fx.Node:
    """Entries of each scale's own codebook: all of them in one row, each code moved to where its codebook begins."""
    shape, entries = b.scale_shape(name), b.encoded[name].format.codebook.entries
    books = as_float(b, b.part(name, "codebook"))
    if "codebook_scales" in b.store(name).parts:
        books = b.call(aten.mul.Tensor, books, b.part(name, "codebook_scales"))
    if shape:
        begins = b.call(aten.arange.start_step, 0, prod(shape) * entries, entries, dtype=torch.int32, device=torch.device("cpu"))
        indices = b.call(aten.add.Tensor, indices, per_value(b, name, b.call(aten.view.default, begins, list(shape))))
    return b.call(aten.index.Tensor, b.call(aten.view.default, books, [-1]), [indices])


def scales(b: Builder, name: str) -> fx.Node:
    """float32 scales, without a global one."""
    double = getattr(b.encoded[name].format, "double", None)
    if double is None:
        stored = b.part(name, "scales")
        return stored if b.encoded[name].format.scale_dtype == "float32" else as_float(b, stored)
    stored, count = b.part(name, "scale_codes"), prod(b.scale_shape(name))
    if double.dynamic:
        levels = b.call(aten.index.Tensor, b.table(name, "scales", "dynamic8"), [b.call(aten.to.dtype, stored, torch.int32)])
    else:
        levels = as_float(b, stored)
    levels = b.call(aten.mul.Tensor, levels, repeated(b, b.part(name, "scale_factors"), 1, double.block, count))
    return b.call(aten.view.default, b.call(aten.add.Tensor, levels, b.part(name, "scale_offset")), list(b.scale_shape(name)))


def per_value(b: Builder, name: str, node: fx.Node) -> fx.Node:
    """What each scale has, in a shape that broadcasts over the codes; the last group of a row or of the tensor may be shorter."""
    granularity, shape = b.encoded[name].format.granularity, b.encoded[name].shape
    if isinstance(granularity, PerGroup | PerBlock):
        rows = shape[0] if isinstance(granularity, PerGroup) else 1
        return b.call(aten.view.default, repeated(b, node, rows, granularity.size, prod(shape) // rows), list(shape))
    if isinstance(granularity, PerAxis) or b.scale_shape(name):
        return b.call(aten.view.default, node, [shape[0]] + [1] * (len(shape) - 1))
    return node


def repeated(b: Builder, node: fx.Node, rows: int, times: int, count: int) -> fx.Node:
    """[rows, n] with each entry `times` in a row, the first `count` of every row, flat."""
    groups = -(-count // times)
    column = b.call(aten.expand.default, b.call(aten.view.default, node, [rows, groups, 1]), [rows, groups, times])
    whole = b.call(aten.reshape.default, column, [rows, groups * times])
    return b.call(aten.reshape.default, b.call(aten.slice.Tensor, whole, 1, 0, count), [-1])
