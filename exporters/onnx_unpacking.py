"""Graph pieces between constants as they are stored and what a kernel reads; all are folded when a file is loaded."""

from math import prod

import numpy as np
import onnx_ir as ir

from compress.formats import Format
from compress.numerics.codebooks import levels
from exporters.onnx_graph import Builder
from exporters.onnx_packing import WHOLE, half_range, is_signed, small_float
from exporters.onnx_schemes import width

FLOAT, INT32, UINT8 = ir.DataType.FLOAT, ir.DataType.INT32, ir.DataType.UINT8


def integers(build: Builder, stored: ir.Value, fmt: Format, shape: tuple[int, ...], dtype: ir.DataType, name: str) -> ir.Value:
    """Codes or zero points in `shape` and `dtype`, from what onnx_packing.packed_codes makes of them."""
    if small_float(fmt) is not None or fmt.bits in WHOLE:
        return stored if stored.dtype == dtype else build.cast(stored, dtype, f"{name}/{dtype.name.lower()}")
    wide = dense(build, stored, fmt.bits, prod(shape), name)
    if half_range(fmt):
        wide = build.node("Sub", [wide, build.constant(f"{name}/half_range", np.int32(half_range(fmt)))], f"{name}/centred_codes")
    wide = build.reshape(wide, shape, f"{name}/codes_shaped")
    return wide if dtype == INT32 else build.cast(wide, dtype, f"{name}/{dtype.name.lower()}")


def dense(build: Builder, packed: ir.Value, bits: int, count: int, name: str) -> ir.Value:
    """int32 [count] or [count, 1] from bytes that hold codes of `bits` bits, low bits first. Those that straddle bytes: bit by bit, then their sum."""
    if 8 % bits == 0:
        codes = build.reshape(split_bytes(build, packed, bits, name), (-1,), f"{name}/codes_flat")
        return first(build, codes, count, 0, f"{name}/codes_used") if count * bits % 8 else codes
    column = build.reshape(packed, (-1, 1), f"{name}/bytes")
    shifts, one = build.shared("shifts_1", np.arange(8, dtype=np.uint8)), build.shared("mask_1", np.array([1], np.uint8))
    single = build.node("BitwiseAnd", [build.node("BitShift", [column, shifts], f"{name}/shifted", direction="RIGHT"), one], f"{name}/bits")
    if count * bits % 8:
        single = first(build, build.reshape(single, (-1,), f"{name}/bits_flat"), count * bits, 0, f"{name}/bits_used")
    worth = build.shared(f"bit_worth_{bits}", (1 << np.arange(bits)).astype(np.uint8).reshape(-1, 1))
    return build.node("MatMulInteger", [build.reshape(single, (-1, bits), f"{name}/bits_apart"), worth], f"{name}/unpacked")


def split_bytes(build: Builder, packed: ir.Value, bits: int, name: str) -> ir.Value:
    """int32 [bytes, codes in a byte] of 1, 2 or 4 bits."""
    column = build.reshape(packed, (-1, 1), f"{name}/bytes")
    shifts, mask = build.shared(f"shifts_{bits}", np.arange(0, 8, bits, dtype=np.uint8)), build.shared(f"mask_{bits}", np.array([(1 << bits) - 1], np.uint8))
    shifted = build.node("BitShift", [column, shifts], f"{name}/shifted", direction="RIGHT")
    return build.cast(build.node("BitwiseAnd", [shifted, mask], f"{name}/masked"), INT32, f"{name}/codes_int32")


def first(build: Builder, value: ir.Value, count: int, axis: int, name: str) -> ir.Value:
    """The first `count` entries along an axis."""
    ends = [build.integers(f"{name}_{what}", n) for what, n in (("start", 0), ("stop", count), ("axis", axis))]
    return build.node("Slice", [value, *ends], name)


def repeated(build: Builder, column: ir.Value, shape: tuple[int, ...], times: int, count: int, name: str) -> ir.Value:
    """[rows, count] from [rows, columns, 1], or [1, 1, 1] for all: each column `times` times, as far as `count`."""
    rows, columns = shape
    wide = build.node("Expand", [column, build.integers(f"{name}_wide", rows, columns, times)], f"{name}/wide")
    flat = build.reshape(wide, (rows, columns * times), f"{name}/flat")
    return flat if columns * times == count else first(build, flat, count, 1, f"{name}/used")


def kernel_blocks(build: Builder, packed: ir.Value, fmt: Format, block: int, name: str) -> ir.Value:
    """uint8 [rows, blocks, bytes] in the kernel's width: itself, or codes of 1, 3, 5, 6 or 7 bits repacked with the kernel's own zero."""
    bits = width(fmt)
    if bits == fmt.bits:
        return packed
    rows, blocks, size = packed.shape
    codes = dense(build, packed, fmt.bits, rows * blocks * size * 8 // fmt.bits, name)
    if half_range(fmt):
        codes = build.node("Add", [codes, build.constant(f"{name}/kernel_zero", np.int32((1 << bits - 1) - half_range(fmt)))], f"{name}/kernel_codes")
    if bits < 8:
        worth = build.shared(f"code_worth_{bits}", (1 << np.arange(0, 8, bits)).astype(np.int32))
        weighed = build.node("Mul", [build.reshape(codes, (-1, 8 // bits), f"{name}/codes_apart"), worth], f"{name}/codes_weighed")
        codes = build.node("ReduceSum", [weighed, build.integers(f"{name}/axis", 1)], f"{name}/kernel_bytes")
    return build.reshape(build.cast(codes, UINT8, f"{name}/kernel_uint8"), (rows, blocks, block * bits // 8), f"{name}/kernel_blocks")


def power_of_two(build: Builder, exponents: ir.Value, name: str) -> ir.Value:
    """float32 from E8M0's uint8 exponents."""
    centred = build.node("Sub", [build.cast(exponents, FLOAT, f"{name}/exponents"), build.shared("e8m0_bias", np.float32(127))], f"{name}/exponents_centred")
    return build.node("Pow", [build.shared("two", np.float32(2)), centred], f"{name}/powers")


def table(build: Builder, codebook: str) -> ir.Value:
    """float32 levels of a codebook with a name: once in a file."""
    return build.shared(f"codebook_{codebook}", levels(codebook).values)


def looked_up(build: Builder, entries: ir.Value, codes: ir.Value, name: str) -> ir.Value:
    return build.node("Gather", [entries, codes], f"{name}/levels", axis=0)


def zero_codes(build: Builder, shape: tuple[int, ...], name: str) -> ir.Value:
    """uint8 zeros: the zero points of unsigned codes that have none."""
    value = ir.tensor(np.zeros(1, np.uint8))
    return build.node("ConstantOfShape", [build.integers(f"{name}/zero_shape", *shape)], f"{name}/no_zero_points", value=value)


def byte_type(fmt: Format) -> ir.DataType:
    return ir.DataType.INT8 if is_signed(fmt) else UINT8
