"""The core's numbers as ONNX constants, and their way to what a kernel reads: reshapes, casts and slices that are folded when a file is loaded."""

from dataclasses import dataclass
from math import prod

import ml_dtypes
import numpy as np
import onnx_ir as ir

from compress.formats import FloatFormat
from compress.numerics import Encoded, pack_low_first
from exporters.onnx_graph import Builder
from exporters.onnx_layouts import Layout
from exporters.onnx_schemes import block_of

HALF = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
CODES = {4: ml_dtypes.int4, 8: np.int8, 16: np.int16}
FLOAT, INT8 = ir.DataType.FLOAT, ir.DataType.INT8


@dataclass(eq=False)
class Stored:
    """One weight in the file. Constants are made when first asked for, so that every kernel that reads the weight shares them."""

    build: Builder
    name: str
    encoded: Encoded

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
    def block(self) -> int:
        return block_of(self.shape, self.encoded.format)

    def codes(self) -> ir.Value:
        """Codes in their own dtype and canonical shape."""
        fmt, codes = self.encoded.format, self.encoded.codes
        if isinstance(fmt, FloatFormat):
            return self.once("codes", lambda: codes.view(HALF[fmt.dtype]))
        return self.once("codes", lambda: codes.astype(CODES[fmt.bits]))

    def int8(self, rows: tuple[int, int]) -> ir.Value:
        codes = self.codes()
        if self.encoded.format.bits == 4:
            codes = self.build.cast(codes, INT8, f"{self.name}/int8")
        return self.rows(codes, rows)

    def rows(self, value: ir.Value, rows: tuple[int, int]) -> ir.Value:
        if rows == (0, self.shape[0]):
            return value
        start, stop, axis = (self.build.integers(f"{self.name}/{what}", n) for what, n in (("start", rows[0]), ("stop", rows[1]), ("axis", 0)))
        return self.build.node("Slice", [value, start, stop, axis], f"{self.name}/rows")

    def scales(self, shape: tuple[int, ...]) -> ir.Value:
        """float32 scales in a shape of as many values."""
        dtype, scales = self.encoded.format.scale_dtype, self.encoded.scales
        found = self.once("scales", lambda: scales if dtype == "float32" else scales.astype(HALF[dtype]))
        if dtype != "float32":
            found = self.build.cast(found, FLOAT, f"{self.name}/scales_float")
        return found if shape == scales.shape else self.build.reshape(found, shape, f"{self.name}/scales_shaped")

    def zero_points(self, shape: tuple[int, ...]) -> ir.Value | None:
        """Zero points, int8 or int16, in a shape of as many values; None where there are none."""
        zero = self.encoded.zero_points
        if zero is None:
            return None
        found = self.once("zero_points", lambda: zero.astype(CODES[self.encoded.format.bits]))
        if self.encoded.format.bits == 4:  # before anything else: ONNX Runtime reshapes no 4-bit tensors
            found = self.build.cast(found, INT8, f"{self.name}/zero_points_int8")
        return found if shape == zero.shape else self.build.reshape(found, shape, f"{self.name}/zero_points_shaped")

    def decoded(self) -> ir.Value:
        """float32 in canonical shape: constant folding computes it when the file is loaded."""
        build, name = self.build, self.name
        values = build.cast(self.codes(), FLOAT, f"{name}/float")
        if isinstance(self.encoded.format, FloatFormat):
            return values
        scales = self.encoded.scales
        grouped = scales.ndim == 2
        rows = (*scales.shape, -1) if grouped else self.shape
        reach = (*scales.shape, *[1] * (len(rows) - scales.ndim)) if scales.ndim else ()
        if grouped:
            values = build.reshape(values, rows, f"{name}/groups")
        zero = self.zero_points(reach)
        if zero is not None:
            values = build.node("Sub", [values, build.cast(zero, FLOAT, f"{name}/zero_points_float")], f"{name}/centred")
        values = build.node("Mul", [values, self.scales(reach)], f"{name}/decoded")
        return build.reshape(values, self.shape, f"{name}/whole") if grouped else values

    def packed(self) -> ir.Value:
        """uint8 [rows, blocks, bytes]: codes plus 2^(bits-1), low bits first; rows are padded with zeros to whole blocks."""
        return self.once("blocks", lambda: packed_blocks(self.encoded, self.block))

    @property
    def blocks(self) -> int:
        return -(-prod(self.shape[1:]) // self.block)

    def block_scales(self) -> ir.Value:
        """float32 [rows, blocks]: a scale that reaches over several blocks is repeated when the file is loaded."""
        scales, build = self.encoded.scales, self.build
        if scales.shape == (self.shape[0], self.blocks):
            return self.scales(scales.shape)
        columns = scales.shape[1] if scales.ndim == 2 else 1
        column = self.scales((-1 if scales.ndim else 1, columns, 1))
        repeat = build.integers(f"{self.name}/repeat", self.shape[0], columns, self.blocks // columns)
        wide = build.node("Expand", [column, repeat], f"{self.name}/scales_repeated")
        return build.reshape(wide, (self.shape[0], self.blocks), f"{self.name}/block_scales")

    def block_zero_points(self) -> ir.Value | None:
        """uint8 [rows, bytes], packed as the codes are."""
        if self.encoded.zero_points is None:
            return None
        return self.once("block_zero_points", lambda: packed_zero_points(self.encoded, self.blocks))


def packed_blocks(encoded: Encoded, block: int) -> np.ndarray:
    bits = encoded.format.bits
    rows = encoded.codes.reshape(len(encoded.codes), -1).astype(np.int16) + (1 << (bits - 1))
    rows = np.pad(rows, ((0, 0), (0, -rows.shape[1] % block)), constant_values=1 << (bits - 1)).astype(np.uint8)
    return pack_low_first(rows, bits).reshape(len(rows), -1, block * bits // 8)


def packed_zero_points(encoded: Encoded, blocks: int) -> np.ndarray:
    bits = encoded.format.bits
    zero = (encoded.zero_points + (1 << (bits - 1))).astype(np.uint8).reshape(-1, encoded.zero_points.shape[1] if encoded.zero_points.ndim == 2 else 1)
    wide = np.broadcast_to(np.repeat(zero, blocks // zero.shape[1], axis=1), (len(encoded.codes), blocks))
    each = 8 // bits
    return pack_low_first(np.pad(wide, ((0, 0), (0, -blocks % each))), bits).reshape(len(wide), -1)


def in_layout(build: Builder, value: ir.Value, shape: tuple[int, ...], layout: Layout, name: str) -> ir.Value:
    """A tensor of canonical `shape` as the graph's own initializer had it."""
    if layout.split != shape:
        value = build.reshape(value, layout.split, f"{name}/split")
    if layout.order != tuple(sorted(layout.order)):
        value = build.node("Transpose", [value], f"{name}/ordered", perm=list(layout.order))
    moved = tuple(layout.split[axis] for axis in layout.order)
    return value if moved == layout.shape else build.reshape(value, layout.shape, f"{name}/joined")
