"""Codebook formats in the graph: levels picked by code, scales that are codes themselves, and what MatMulBnb4 reads."""

from math import prod
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from compress.formats import PerAxis
from compress.numerics.layouts import LAYOUTS
from compress.numerics.storing import stored_codebook
from exporters import onnx_unpacking as unpack
from exporters.onnx_packing import small_float
from exporters.onnx_schemes import bnb4_block

if TYPE_CHECKING:
    from exporters.onnx_storing import Stored

FLOAT, INT32 = ir.DataType.FLOAT, ir.DataType.INT32


def decoded_scales(stored: "Stored") -> ir.Value:
    """float32 [scales] of double quantization: level * factor + offset."""
    build, name, double, codes = stored.build, f"{stored.name}/scale", stored.encoded.format.double, stored.encoded.scale_codes
    kept = stored.once("scale_codes", lambda: codes.codes)
    if double.dynamic:
        level = unpack.looked_up(build, unpack.table(build, "dynamic8"), build.cast(kept, INT32, f"{name}/index"), name)
    else:
        level = build.cast(kept, FLOAT, f"{name}/level")
    column = build.reshape(stored.once("scale_factors", lambda: codes.factors), (1, -1, 1), f"{name}/factor_column")
    factors = unpack.repeated(build, column, (1, codes.factors.size), double.block, codes.codes.size, f"{name}/factors")
    product = build.node("Mul", [level, build.reshape(factors, (-1,), f"{name}/factors_flat")], f"{name}/scaled")
    return build.node("Add", [product, stored.once("scale_offset", lambda: np.float32(codes.offset))], f"{name}/restored")


def decoded_levels(stored: "Stored") -> ir.Value:
    """float32 in canonical shape."""
    if stored.encoded.codebook is not None:
        return learned_levels(stored)
    values = levels(stored)
    if stored.encoded.scales is None:
        return values
    scaled = [stored.shaped(values, stored.view, "groups"), stored.over_codes(stored.scales, f"{stored.name}/scales_spread")]
    return stored.shaped(stored.build.node("Mul", scaled, f"{stored.name}/decoded"), stored.shape, "whole")


def levels(stored: "Stored") -> ir.Value:
    """float32 levels in canonical shape, before any scale."""
    if small_float(stored.encoded.format) is not None:
        return stored.wide(FLOAT)
    return unpack.looked_up(stored.build, named_entries(stored), stored.wide(INT32), stored.name)


def named_entries(stored: "Stored") -> ir.Value:
    """float32 levels of a codebook with a name, or of a user's."""
    codebook = stored.encoded.format.codebook
    if not isinstance(codebook, str):
        return stored.once("levels", lambda: np.array(codebook, np.float32))
    stored.made["table"] = unpack.table(stored.build, codebook)
    return stored.made["table"]


def learned_levels(stored: "Stored") -> ir.Value:
    """float32 in canonical shape: a code's index is its codebook's start plus itself."""
    build, name, codes = stored.build, stored.name, stored.wide(INT32)
    if prod(stored.scale_shape) > 1:
        spread = stored.over_codes(lambda shape: starts(stored, shape), f"{name}/starts_spread")
        codes = build.node("Add", [stored.shaped(codes, stored.view, "groups"), spread], f"{name}/index")
        codes = stored.shaped(codes, stored.shape, "index_whole")
    return unpack.looked_up(build, learned_entries(stored), codes, name)


def starts(stored: "Stored", shape: tuple[int, ...]) -> ir.Value:
    """int32: where each learned codebook starts among all their entries, which lie one after the other."""
    build, name, entries = stored.build, stored.name, stored.encoded.codebook.shape[-1]
    limits = {"first": 0, "last": prod(stored.scale_shape) * entries, "entries": entries}
    counted = build.node("Range", [build.constant(f"{name}/{what}", np.int32(n)) for what, n in limits.items()], f"{name}/starts")
    return build.reshape(counted, shape, f"{name}/starts_shaped")


def learned_entries(stored: "Stored") -> ir.Value:
    """float32 [codebooks * entries]."""
    build, name, dtype = stored.build, stored.name, stored.encoded.format.codebook.entry_dtype
    arrays = stored_codebook(stored.encoded.codebook, dtype)
    book = stored.once("codebook", lambda: arrays["codebook"])
    if dtype != "float32":
        book = build.cast(book, FLOAT, f"{name}/entries")
    if "codebook_scales" in arrays:
        book = build.node("Mul", [book, stored.once("codebook_scales", lambda: arrays["codebook_scales"])], f"{name}/entries_scaled")
    return build.reshape(book, (-1,), f"{name}/entries_flat")


def bnb4_inputs(stored: "Stored", rows: tuple[int, int]) -> tuple[ir.Value, ir.Value, int]:
    """uint8 [bytes] and float32 [blocks] of MatMulBnb4 for some rows, and the block size."""
    fmt, build, name = stored.encoded.format, stored.build, f"{stored.name}/absmax"
    block = bnb4_block(stored.shape, fmt.granularity)
    order = LAYOUTS["matmulbnb4" if fmt.codebook == "nf4" else "matmulbnb4_fp4"]
    packed = stored.once("bnb4", lambda: order.pack(stored.encoded.codes, 4))
    count, scales = -(-prod(stored.shape) // block), prod(stored.scale_shape)
    if count == scales:
        absmax = stored.scales((count,))
    else:
        reach = count if not stored.scale_shape else (stored.inputs if isinstance(fmt.granularity, PerAxis) else fmt.granularity.size) // block
        absmax = build.reshape(unpack.repeated(build, stored.scales((1, scales, 1)), (1, scales), reach, count, name), (-1,), f"{name}/flat")
    return stored.rows(packed, rows, 2), stored.rows(absmax, rows, block), block
