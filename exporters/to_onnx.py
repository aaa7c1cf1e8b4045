"""ONNX files for ONNX Runtime's CPU provider, holding the core's own codes and scales.

8 bits: MatMulIntegerToFloat and QDQ convolutions. 2 and 4 bits, groups: MatMulNBits. What no kernel takes is expanded to float when the file is loaded.
"""

from pathlib import Path
from typing import Any

from compress.artifact import Contents
from compress.errors import ExportError, Refused
from compress.formats import StaticActivations
from compress.pipeline import Compressed
from compress.plan import Decision
from exporters import METADATA_KEY, Placed, metadata, placements
from exporters.onnx_schemes import Scheme, scheme_of

SUFFIX = ".onnx"
RUNTIME = "onnxruntime"
OWN_NUMBERS = False

STATIC_NOTES = (
    "activations are stored as uint8 (the core's asymmetric int8 plus 128): ONNX Runtime's x86 kernels multiply uint8 by int8",
    "softmax, normalization, GELU and products of two activations stay in float; sums of float tensors read the tensors before they are quantized",
)


def place(decision: Decision, framework: str) -> Placed:
    """How the tensor will be stored; see exporters.onnx_schemes. Refused where ONNX Runtime cannot compute with it."""
    found = scheme_of(decision)
    return Placed(found.placement, found.reason)


def write(small: Compressed, path: Path) -> tuple[str, ...]:
    """Writes the file and returns what was done the runtime's own way. ExportError names the tensors that the graph does not show."""
    from exporters.onnx_float import float_model
    from exporters.onnx_graph import Builder

    placed = placements(small.plan, "onnx", small.network.framework, small.recipe.allow_float)
    model, found = float_model(small.network)
    absent = [name for name in small.plan.compressed if name not in found]
    if absent and not small.recipe.allow_float:
        raise ExportError(f"the exported graph does not use {', '.join(absent)}: leave them out with a selector, or set allow_float: true")
    build = Builder(model.graph)
    wanted = {name: d for name, d in small.plan.compressed.items() if placed[name].placement != "float" and name in found}
    notes = list(small.network.notes)
    stored, ranges = rewrite(small, model, build, found, wanted)
    if ranges:
        notes += STATIC_NOTES
    stored |= {name: {"file_name": found[name][0], "placement": "float", "reason": placed[name].reason} for name in placed if name in found and name not in wanted}
    stored |= {name: {"file_name": "", "placement": "float", "reason": "the exported graph does not use it"} for name in absent}
    build.finish(model)
    save(small, model, stored, path)
    return tuple(notes)


def rewrite(small: Compressed, model, build, found, wanted: dict[str, Decision]) -> tuple[dict[str, dict[str, Any]], int]:
    """Places every wanted tensor in the graph; what `read` needs to know of each, and the number of calibrated ranges."""
    from exporters.onnx_graph import uses_of
    from exporters.onnx_placing import kernel_for, place
    from exporters.onnx_static import quantize_activations
    from exporters.onnx_storing import Stored

    values = {name: model.graph.initializers[found[name][0]] for name in wanted}
    uses = {name: uses_of(values[name], found[name][1], decision.shape) for name, decision in wanted.items()}
    layers = {}
    for name, decision in wanted.items():
        if isinstance(decision.activations, StaticActivations):
            layers |= {use.node: decision.activations for use in uses[name] if kernel_for(use, decision).kernel in ("integer", "qlinear_conv")}
    ranges = quantize_activations(small, model, build, layers) if layers else 0
    described = {}
    for name, decision in wanted.items():
        stored = Stored(build, name, small.encoded[name])
        try:
            scheme = place(build, values[name], found[name][1], stored, decision, uses[name])
        except Refused as error:
            raise ExportError(f"{name}: {error}") from error
        described[name] = describe(stored, scheme)
    return described, ranges


def describe(stored, scheme: Scheme) -> dict[str, Any]:
    from dataclasses import asdict

    made = {role: value.name for role, value in stored.made.items()}
    return {
        "file_name": made.get("codes", made.get("blocks")),
        "placement": scheme.placement,
        "reason": scheme.reason,
        "constants": made,
        "shape": list(stored.shape),
        "scale_shape": None if stored.encoded.scales is None else list(stored.encoded.scales.shape),
        "format": asdict(stored.encoded.format),
    }


def save(small: Compressed, model, stored: dict[str, dict[str, Any]], path: Path) -> None:
    import onnx
    import onnx_ir as ir

    model.metadata_props[METADATA_KEY] = metadata(small, "onnx", stored)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    path.write_bytes(proto.SerializeToString())


def read(path: Path) -> Contents:
    """What any .onnx file holds. BrokenFile for one that is damaged."""
    from exporters.onnx_file import read

    return read(path)
