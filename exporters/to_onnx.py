"""ONNX files for ONNX Runtime's CPU provider, holding the core's own codes and scales.

8 bits: MatMulIntegerToFloat and QDQ convolutions. 2 and 4 bits, groups: MatMulNBits. NF4 and FP4: MatMulBnb4. What no kernel takes, codebooks
among it, is stored in its own bits and expanded to float when the file is loaded.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any

from compress.artifact import Contents
from compress.errors import ExportError, Refused
from compress.formats import CodebookFormat, StaticActivations
from compress.numerics import Encoded
from compress.numerics.sparse import mask_bytes, to_mask, without, worth
from compress.pipeline import Compressed
from compress.plan import Decision
from exporters import METADATA_KEY, Placed, metadata, placements
from exporters.onnx_schemes import FOLDED, scheme_of

SUFFIX = ".onnx"
RUNTIME = "onnxruntime"
SOURCES = ("pytorch", "keras", "onnx")
OWN_NUMBERS = False

STATIC_NOTES = (
    "activations are stored as uint8 (the core's asymmetric int8 plus 128): ONNX Runtime's x86 kernels multiply uint8 by int8",
    "softmax, normalization, GELU and products of two activations stay in float; sums of float tensors read the tensors before they are quantized",
)


OPERATORS = 300  # bytes of nodes, names and metadata for each compressed weight, as measured
DECODING = {"codebook": 500, "double": 1000}  # and of the nodes that decode a codebook, and scales that are codes
SPARSE = 650  # and of those that fill zeros in
FILLED = "the file leaves its zeros out; filled in at load, 0.1 to 0.2 s for a million weights, it takes its full size in memory"


def overhead(decisions: Iterable[Decision], placed: Mapping[str, Placed]) -> int:
    """Bytes that a file has for these weights beside the plan's, less the zeros that are left out."""
    extra = 0
    for decision in decisions:
        extra += (OPERATORS if decision.format else 0) - left_out(decision)
        if isinstance(decision.format, CodebookFormat) and placed[decision.name].placement == "decoded":
            extra += DECODING["codebook"]
        if isinstance(decision.format, CodebookFormat) and decision.format.double:
            extra += DECODING["double"]
    return extra


def left_out(decision: Decision) -> int:
    """Bytes that a pruned weight takes less without its zeros; 0 where a kernel needs it whole. See exporters.onnx_sparse."""
    if decision.prune is None or decision.format and scheme_of(decision).kernel not in FOLDED:
        return 0
    bits, count = decision.format.bits if decision.format else 32, prod(decision.shape)
    dense, sparse = count * bits // 8, sparse_bytes(count, bits, round((1 - decision.prune.share) * count))
    return dense - sparse if worth(sparse, dense) else 0


def sparse_bytes(count: int, bits: int, stored: int) -> int:
    """What `count` weights take of which `stored` are not 0, with the nodes that fill the zeros in."""
    return mask_bytes(count) + -(-(stored + 1) * bits // 8) + SPARSE


def place(decision: Decision, framework: str) -> Placed:
    """How the tensor will be stored; see exporters.onnx_schemes. Refused where ONNX Runtime cannot compute with it."""
    found = scheme_of(decision)
    return Placed(found.placement, found.reason)


def write(small: Compressed, path: Path) -> tuple[str, ...]:
    """Writes the file and returns what was done the runtime's own way. ExportError, Refused: the tensors that cannot be placed, each named."""
    from exporters.onnx_float import float_model
    from exporters.onnx_graph import Builder, uses_of
    from exporters.onnx_static import quantize_activations

    placed = placements(small.plan, "onnx", small.network.framework, small.recipe.allow_float)
    model, found = float_model(small.network)
    stored = unplaced(small, placed, found)
    values = {name: model.graph.initializers[found[name][0]] for name in placed if name not in stored}
    uses = {name: uses_of(value, found[name][1], small.plan.compressed[name].shape) for name, value in values.items()}
    stored |= without_kernel(small, uses, found)
    wanted = {name: decision for name, decision in small.plan.compressed.items() if name not in stored}
    layers = static_layers(wanted, uses)
    build = Builder(model.graph)
    ranges = quantize_activations(small, model, build, layers) if layers else 0
    for name, decision in wanted.items():
        stored[name] = placed_weight(build, values[name], found[name][1], small.encoded[name], decision, uses[name])
    stored |= sparse_floats(small, build, found)
    build.finish(model)
    save(small, model, stored, path)
    return STATIC_NOTES if ranges else ()


def unplaced(small: Compressed, placed: dict[str, Placed], found) -> dict[str, dict[str, Any]]:
    """Tensors that stay float because no kernel takes their format, or that the graph does not show. ExportError for the latter, unless allowed."""
    absent = [name for name in placed if name not in found]
    if absent and not small.recipe.allow_float:
        raise ExportError(f"the exported graph does not use {', '.join(absent)}: leave them out with a selector, or set allow_float: true")
    kept = {name: in_float(found[name][0], how.reason) for name, how in placed.items() if how.placement == "float" and name in found}
    return kept | {name: in_float("", "the exported graph does not use it") for name in absent}


def without_kernel(small: Compressed, uses, found) -> dict[str, dict[str, Any]]:
    """Tensors that a node of the graph cannot take, which their kind alone did not tell: tied ones. Refused names them, unless allowed in float."""
    from exporters.onnx_placing import schemes_for

    refused = {}
    for name, own in uses.items():
        try:
            schemes_for(small.plan.compressed[name], own)
        except Refused as error:
            refused[name] = str(error)
    if refused and not small.recipe.allow_float:
        raise Refused("; ".join(f"{name}: {reason}" for name, reason in refused.items()))
    return {name: in_float(found[name][0], reason) for name, reason in refused.items()}


def in_float(file_name: str, reason: str) -> dict[str, Any]:
    return {"file_name": file_name, "placement": "float", "reason": reason}


def static_layers(wanted: dict[str, Decision], uses) -> dict:
    """The nodes whose activations are quantized with calibrated ranges, and their settings."""
    from exporters.onnx_placing import schemes_for

    static = {name: decision for name, decision in wanted.items() if isinstance(decision.activations, StaticActivations)}
    return {
        use.node: decision.activations
        for name, decision in static.items()
        for use, found in zip(uses[name], schemes_for(decision, uses[name]), strict=True)
        if found.kernel in ("integer", "qlinear_conv")
    }


def placed_weight(build, value, layout, encoded: Encoded, decision: Decision, uses) -> dict[str, Any]:
    """Puts one weight into the graph; what `read` needs to know of it."""
    from exporters.onnx_placing import place, schemes_for
    from exporters.onnx_sparse import is_smaller
    from exporters.onnx_storing import Stored

    folded = all(scheme.kernel in FOLDED for scheme in schemes_for(decision, uses))
    stored = Stored(build, decision.name, encoded, sparse=folded and is_smaller(encoded.codes, encoded.format.bits))
    scheme = place(build, value, layout, stored, decision, uses)
    reason = "; ".join(filter(None, [scheme.reason, FILLED if stored.sparse else ""]))
    made = {role: constant.name for role, constant in (build.common | stored.made).items()}  # what tensors share belongs to each of them
    return {
        "file_name": next(made[role] for role in ("codes", "blocks", "bnb4", "rows") if role in made),
        "placement": scheme.placement,
        "reason": reason,
        "constants": made,
        "shape": list(stored.shape),
        "scale_shape": list(stored.scale_shape),
        "format": asdict(encoded.format),
    }


def sparse_floats(small: Compressed, build, found) -> dict[str, dict[str, Any]]:
    """Leaves the zeros out of weights without a format, where that is smaller; what `read` needs to know of them."""
    from exporters.onnx_sparse import filled, is_smaller
    from exporters.onnx_storing import in_layout

    stored = {}
    for decision in small.plan.decisions:
        if decision.format is not None or decision.name not in found:
            continue
        name, shape, (initializer, layout) = decision.name, decision.shape, found[decision.name]
        value = build.graph.initializers[initializer]
        dense = layout.canonical(value.const_value.numpy(), shape)
        if not is_smaller(dense, 32):
            continue
        values, kept = without(dense)
        codes, mask = build.constant(f"{name}/codes", values), build.constant(f"{name}/mask", to_mask(kept))
        build.replace(value, in_layout(build, filled(build, codes, mask, shape, name), shape, layout, name))
        constants = {"codes": codes.name, "mask": mask.name}
        stored[name] = {"file_name": codes.name, "placement": "decoded", "reason": FILLED, "constants": constants, "shape": list(shape)}
    return stored


def save(small: Compressed, model, stored: dict[str, dict[str, Any]], path: Path) -> None:
    import onnx
    import onnx_ir as ir

    from exporters.onnx_shortening import shorten

    model.metadata_props[METADATA_KEY] = metadata(small, "onnx", stored)
    proto = ir.to_proto(model)
    shorten(proto.graph, stored, {name for about in stored.values() for name in (about["file_name"], *about.get("constants", {}).values())})
    onnx.checker.check_model(proto)
    path.write_bytes(proto.SerializeToString())


def read(path: Path) -> Contents:
    """What any .onnx file holds. BrokenFile for one that is damaged."""
    from exporters.onnx_file import read

    return read(path)
