"""The core's numbers as ONNX constants, and their way to what a kernel reads: nodes that are folded when a file is loaded."""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_ir as ir

from compress.formats import FloatFormat, IntFormat, PerAxis, PerGroup, PerTensor
from compress.numerics import Encoded, reach
from compress.numerics.sparse import to_mask, without
from exporters import onnx_codebooks as codebooks
from exporters import onnx_unpacking as unpack
from exporters.onnx_graph import Builder
from exporters.onnx_layouts import Layout
from exporters.onnx_packing import HALF, block_reach, is_signed, packed_block_zero_points, packed_blocks, packed_codes, packed_scales
from exporters.onnx_schemes import block_of, columns, width
from exporters.onnx_sparse import filled

FLOAT = ir.DataType.FLOAT
Maker = Callable[[tuple[int, ...]], ir.Value | None]
"""A node's output in a shape of as many values."""


@dataclass(eq=False)
class Stored:
    """One weight in the file. Constants are made when first asked for, so that every kernel that reads the weight shares them."""

    build: Builder
    name: str
    encoded: Encoded
    sparse: bool = False  # whether the file leaves its most frequent code out

    def __post_init__(self):
        self.made: dict[str, ir.Value] = {}

    def once(self, role: str, array) -> ir.Value:
        if role not in self.made:
            self.made[role] = self.build.constant(f"{self.name}/{role}", array())
        return self.made[role]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.encoded.codes.shape

    @property
    def inputs(self) -> int:
        return prod(self.shape[1:])

    # --- codes ---

    def codes(self) -> ir.Value:
        """As they are stored: in canonical shape where ONNX has integers of that width, else densely in bytes."""
        return self.once("codes", lambda: self.typed(self.encoded.codes))

    def typed(self, codes: np.ndarray) -> np.ndarray:
        fmt = self.encoded.format
        return codes.view(HALF[fmt.dtype]) if isinstance(fmt, FloatFormat) else packed_codes(codes, fmt)

    def wide(self, dtype: ir.DataType) -> ir.Value:
        """Codes in canonical shape and `dtype`."""
        if self.sparse:
            return self.filled(dtype)
        return self.cast(self.codes(), self.shape, dtype)

    def cast(self, codes: ir.Value, shape: tuple[int, ...], dtype: ir.DataType) -> ir.Value:
        fmt, name = self.encoded.format, f"{self.name}/codes"
        return self.build.cast(codes, dtype, f"{name}/wide") if isinstance(fmt, FloatFormat) else unpack.integers(self.build, codes, fmt, shape, dtype, name)

    def filled(self, dtype: ir.DataType) -> ir.Value:
        values, kept = without(self.encoded.codes)
        codes, mask = self.once("codes", lambda: self.typed(values)), self.once("mask", lambda: to_mask(kept))
        return filled(self.build, self.cast(codes, values.shape, dtype), mask, self.shape, f"{self.name}/sparse")

    def bytes(self, rows: tuple[int, int]) -> ir.Value:
        """int8 or uint8 codes."""
        return self.rows(self.wide(unpack.byte_type(self.encoded.format)), rows)

    def rows(self, value: ir.Value, rows: tuple[int, int], each: int = 1) -> ir.Value:
        """Rows [start, stop) of a value; of a flat one, which has an entry for `each` inputs, what belongs to these rows."""
        if rows == (0, self.shape[0]):
            return value
        flat = self.inputs if each > 1 else 1
        places = {"start": rows[0] * flat // each, "stop": -(-rows[1] * flat // each), "axis": 0}
        ends = (self.build.integers(f"{self.name}/{what}", n) for what, n in places.items())
        return self.build.node("Slice", [value, *ends], f"{self.name}/rows")

    # --- scales and zero points ---

    def scales(self, shape: tuple[int, ...]) -> ir.Value:
        """float32 scales in a shape of as many values."""
        encoded, build, name = self.encoded, self.build, f"{self.name}/scales"
        dtype = encoded.format.scale_dtype
        if encoded.scale_codes is not None:
            found, own = codebooks.decoded_scales(self), (encoded.scales.size,)
        else:
            found, own = self.once("scales", lambda: packed_scales(encoded.scales, dtype)), encoded.scales.shape
            if dtype == "float8_e8m0":
                found = unpack.power_of_two(build, found, name)
            elif dtype != "float32":
                found = build.cast(found, FLOAT, f"{name}_float")
        if encoded.global_scale is not None:
            found = build.node("Mul", [found, self.once("global_scale", lambda: np.float32(encoded.global_scale))], f"{name}_global")
        return found if shape == own else build.reshape(found, shape, f"{name}_shaped")

    def zero_points(self, shape: tuple[int, ...], dtype: ir.DataType = FLOAT) -> ir.Value | None:
        """Zero points or offsets in `dtype` and a shape of as many values; None where there are none."""
        fmt, zero, name = self.encoded.format, self.encoded.zero_points, f"{self.name}/zero_points"
        if zero is None:
            return None
        if fmt.zero_point != "integer":
            found = self.once("zero_points", lambda: packed_scales(zero, fmt.scale_dtype))
            found = found if fmt.scale_dtype == "float32" else self.build.cast(found, FLOAT, f"{name}_float")
        else:  # cast before anything else: ONNX Runtime reshapes no 4-bit tensors
            found = unpack.integers(self.build, self.once("zero_points", lambda: packed_codes(zero, fmt)), fmt, zero.shape, dtype, name)
        return found if shape == zero.shape else self.build.reshape(found, shape, f"{name}_shaped")

    # --- decoded to float32 ---

    @property
    def scale_shape(self) -> tuple[int, ...]:
        """Of scales or learned codebooks."""
        fmt = self.encoded.format
        return () if isinstance(fmt, FloatFormat) else reach.scale_shape(self.shape, fmt.granularity)

    @property
    def view(self) -> tuple[int, ...]:
        """The shape in which codes meet scales: [..., values of one scale] where groups or blocks are all whole, else the tensor's own."""
        scales, granularity = self.scale_shape, self.encoded.format.granularity
        if isinstance(granularity, PerTensor | PerAxis) or prod(scales) * granularity.size != prod(self.shape):
            return self.shape
        return (*scales, granularity.size)

    def over_codes(self, make: Maker, name: str) -> ir.Value | None:
        """What belongs to each scale, in a shape that meets codes in `view`."""
        scales, granularity = self.scale_shape, self.encoded.format.granularity
        if isinstance(granularity, PerTensor):
            return make(())
        if isinstance(granularity, PerAxis):
            return make((self.shape[0], *[1] * (len(self.shape) - 1)))
        column = make((*scales, 1))
        if column is None or self.view != self.shape:
            return column
        rows = self.shape[0] if isinstance(granularity, PerGroup) else 1
        column = self.build.reshape(column, (rows, scales[-1], 1), f"{name}/column")
        spread = unpack.repeated(self.build, column, (rows, scales[-1]), granularity.size, prod(self.shape) // rows, name)
        return self.build.reshape(spread, self.shape, f"{name}/spread")

    def shaped(self, value: ir.Value, shape: tuple[int, ...], what: str) -> ir.Value:
        return value if self.view == self.shape else self.build.reshape(value, shape, f"{self.name}/{what}")

    def decoded(self) -> ir.Value:
        """float32 in canonical shape: constant folding computes it when the file is loaded."""
        fmt = self.encoded.format
        if isinstance(fmt, FloatFormat):
            return self.wide(FLOAT)
        return self.decoded_integers() if isinstance(fmt, IntFormat) else codebooks.decoded_levels(self)

    def decoded_integers(self) -> ir.Value:
        build, name, fmt = self.build, self.name, self.encoded.format
        values = self.shaped(self.wide(FLOAT), self.view, "groups")
        zero = self.over_codes(self.zero_points, f"{name}/zero_points_spread")
        scales = self.over_codes(self.scales, f"{name}/scales_spread")
        if zero is not None and fmt.zero_point != "offset":
            values = build.node("Sub", [values, zero], f"{name}/centred")
        values = build.node("Mul", [values, scales], f"{name}/decoded")
        if zero is not None and fmt.zero_point == "offset":
            values = build.node("Add", [values, zero], f"{name}/moved")
        return self.shaped(values, self.shape, "whole")

    # --- blocks of kernels ---

    @property
    def block(self) -> int:
        return block_of(self.shape, self.encoded.format)

    @property
    def blocks(self) -> int:
        return -(-self.inputs // self.block)

    def packed(self) -> ir.Value:
        """uint8 [rows, blocks, bytes] of MatMulNBits."""
        stored = self.once("blocks", lambda: packed_blocks(self.encoded, self.block))
        return unpack.kernel_blocks(self.build, stored, self.encoded.format, self.block, f"{self.name}/blocks")

    def in_blocks(self, make: Maker, name: str) -> ir.Value:
        """[rows, blocks]: what reaches over several blocks is repeated when the file is loaded."""
        rows, count = self.shape[0], columns(self.shape, self.encoded.format.granularity)
        if prod(self.scale_shape) == rows * self.blocks:
            return make((rows, self.blocks))
        column = make((rows if self.scale_shape else 1, count, 1))
        return unpack.repeated(self.build, column, (rows, count), block_reach(self.shape, self.encoded.format, self.block), self.blocks, name)

    def block_scales(self) -> ir.Value:
        return self.in_blocks(self.scales, f"{self.name}/block_scales")

    def block_zero_points(self) -> ir.Value | None:
        """uint8 [rows, bytes], packed as the codes are; float32 [rows, blocks] for float zero points and offsets. None: the middle of the codes."""
        fmt, build, name = self.encoded.format, self.build, f"{self.name}/block_zero_points"
        if fmt.symmetric:
            return None if is_signed(fmt) else unpack.zero_codes(build, (self.shape[0], -(-self.blocks * width(fmt) // 8)), name)
        if fmt.zero_point == "integer":
            return self.once("block_zero_points", lambda: packed_block_zero_points(self.encoded, self.block))
        zero = self.in_blocks(self.zero_points, name)
        if fmt.zero_point == "offset":
            zero = build.node("Neg", [build.node("Div", [zero, self.block_scales()], f"{name}/ratio")], f"{name}/negated")
        middle = 1 << width(fmt) - 1
        return build.node("Add", [zero, build.constant(f"{name}/middle", np.float32(middle))], f"{name}/moved") if is_signed(fmt) else zero


def in_layout(build: Builder, value: ir.Value, shape: tuple[int, ...], layout: Layout, name: str) -> ir.Value:
    """A tensor of canonical `shape` as the graph's own initializer had it."""
    if layout.split != shape:
        value = build.reshape(value, layout.split, f"{name}/split")
    if layout.order != tuple(sorted(layout.order)):
        value = build.node("Transpose", [value], f"{name}/ordered", perm=list(layout.order))
    moved = tuple(layout.split[axis] for axis in layout.order)
    return value if moved == layout.shape else build.reshape(value, layout.shape, f"{name}/joined")
