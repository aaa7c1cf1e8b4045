"""Rows of a table in a codebook format: gathered as codes, then decoded, so that the table stays small in memory too."""

import onnx_ir as ir

from compress.formats import PerTensor
from compress.plan import Decision
from exporters import onnx_unpacking as unpack
from exporters.onnx_codebooks import learned_entries, named_entries, starts
from exporters.onnx_graph import Builder, Use
from exporters.onnx_packing import packed_rows
from exporters.onnx_schemes import columns
from exporters.onnx_storing import Stored

INT32 = ir.DataType.INT32


def gather_levels(build: Builder, stored: Stored, use: Use, decision: Decision) -> None:
    name, ids, fmt = stored.name, use.node.inputs[1], stored.encoded.format
    flat = build.reshape(ids, (-1,), f"{name}/ids")
    count, single = columns(stored.shape, fmt.granularity), isinstance(fmt.granularity, PerTensor)
    view = (-1, count, stored.inputs // count)

    def of_rows(value: ir.Value, what: str) -> ir.Value:
        """[rows, columns, 1] of the gathered rows from [table rows, columns]."""
        return build.reshape(build.node("Gather", [value, flat], f"{name}/{what}", axis=0), (-1, count, 1), f"{name}/{what}_column")

    codes = build.reshape(row_codes(build, stored, flat), view, f"{name}/row_codes")
    if stored.encoded.codebook is None:
        values = unpack.looked_up(build, named_entries(stored), codes, f"{name}/row")
    else:
        if not single:
            codes = build.node("Add", [codes, of_rows(starts(stored, (stored.shape[0], count)), "row_starts")], f"{name}/row_index")
        values = unpack.looked_up(build, learned_entries(stored), codes, f"{name}/row")
    if stored.encoded.scales is not None:
        scales = stored.scales(()) if single else of_rows(stored.scales((stored.shape[0], count)), "row_scales")
        values = build.node("Mul", [values, scales], f"{name}/rows_scaled")
    sizes = [build.node("Shape", [ids], f"{name}/ids_shape"), build.integers(f"{name}/inputs", *stored.shape[1:])]
    whole = build.node("Concat", sizes, f"{name}/rows_shape", axis=0)
    build.replace(use.node.outputs[0], build.node("Reshape", [values, whole], f"{name}/rows_decoded"))


def row_codes(build: Builder, stored: Stored, flat: ir.Value) -> ir.Value:
    """int32 codes of the gathered rows, in any shape."""
    bits = stored.encoded.format.bits
    packed = stored.once("rows", lambda: packed_rows(stored.encoded))
    picked = build.node("Gather", [packed, flat], f"{stored.name}/rows_packed", axis=0)
    return build.cast(picked, INT32, f"{stored.name}/rows_int32") if bits == 8 else unpack.split_bytes(build, picked, bits, f"{stored.name}/rows")
