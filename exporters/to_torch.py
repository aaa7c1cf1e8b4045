"""Writes a .pt2 by torch.export: the core's codes and scales with the operators that compute on them."""

import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compress.errors import ExportError, Refused
from compress.network import Weight
from compress.numerics.storing import FORMAT
from compress.pipeline import Compressed
from compress.plan import Decision
from compress.samples import samples
from exporters import metadata, placements
from exporters.pt2_file import METADATA_FILE
from exporters.pt2_file import read as read
from exporters.torch_placing import place as place

SUFFIX = ".pt2"
RUNTIME = "torch"
SOURCES = ("pytorch", "keras", "onnx")
OWN_NUMBERS = False

programs: "weakref.WeakKeyDictionary[Any, Any]" = weakref.WeakKeyDictionary()  # a network's float program: several recipes export it once


def write(small: Compressed, path: Path) -> tuple[str, ...]:
    """Writes the file; ExportError names weights that the exported graph does not read as the plan says."""
    import torch

    from exporters.torch_graph import flat_module

    module = flat_module(float_program(small.network))
    with torch.no_grad():
        module, stored = with_small_weights(small, module)
    save(small, module, stored, path, "torch")
    return notes(small)


def notes(small: Compressed) -> tuple[str, ...]:
    placed = placements(small.plan, "torch", small.network.framework, small.recipe.allow_float)
    ways = {choice.way for choice in placed.values() if choice.placement != "float"}
    found = {
        "dynamic": "dynamic int8 activations have one symmetric scale per token, as in torchao's Int8DynamicActivationInt8Weight",
        "static": "static int8 is PT2E's dequantize-operator-quantize graph: both runtimes lower it to oneDNN's int8 kernels when they load it",
        "int4": "int4 layers compute in bfloat16, the only activation type in which ATen's int4 kernel is fast; everything else stays in float32",
        "bitsandbytes": "the file calls bitsandbytes.gemm_4bit: bitsandbytes must be installed where it runs",
        "load": "weights that no kernel computes with are stored small; compresskit's runtimes expand them to float32 once, others at each run",
    }
    return tuple(text for way, text in found.items() if way in ways)


def float_program(network: Any) -> Any:
    """torch.export's program of the network in float32, exported once per network object."""
    if network not in programs:
        programs[network] = {"pytorch": pytorch_program, "keras": keras_program, "onnx": onnx_program}[network.framework](network)
    return programs[network]


def pytorch_program(network: Any) -> Any:
    import torch

    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its one fused operator hides the projections that recipes compress
    try:
        with torch.no_grad():
            return torch.export.export(network.model, network.example)
    except Exception as error:
        raise ExportError(f"torch.export refused {type(network.model).__name__}: {error}") from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


def onnx_program(network: Any) -> Any:
    from compress.backends.onnx_in_torch import in_torch

    return pytorch_program(in_torch(network))


def keras_program(network: Any) -> Any:
    import tempfile

    import torch

    from compress.backends.keras_in_torch import to_exported_program

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "float.pt2"
        to_exported_program(network.model, network.inputs, path)
        return torch.export.load(path)


def with_small_weights(small: Compressed, module: Any) -> tuple[Any, dict[str, dict[str, Any]]]:
    """The module computing with the core's codes, and what the file's metadata says about each planned tensor."""
    from exporters.torch_graph import Builder, find_sites
    from exporters.torch_kernels import place_site, static_site

    placed = placements(small.plan, "torch", small.network.framework, small.recipe.allow_float)
    choices = {name: found for name, found in placed.items() if found.placement != "float"}
    weights = small.network.weights()
    kept = kept_in_float(small, module, weights, {name: found.reason for name, found in placed.items() if name not in choices})
    sites = find_sites(module, {name: weights[name].value for name in choices}, aliases(small))
    repeated = frozenset(name for name, choice in choices.items() if choice.way == "static" and not small.encoded[name].scales.ndim)
    builder, static = Builder(module, small.encoded, repeated), {}
    for site in sites:
        node = static_site(builder, site) if choices[site.name].way == "static" else None
        if node is None:
            place_site(builder, site, choices[site.name])
        else:
            static[node.name] = site.name
    if static:
        from exporters.torch_pt2e import PlannedQuantizer, place_codes, quantize_static

        module.recompile()
        quantizer = PlannedQuantizer(set(static), the_static_activations(small, set(static.values())))
        module = quantize_static(builder, static, quantizer, place_codes, batches(small))
    return module, kept | {name: described(builder, small.plan.compressed[name], choice.at_load) for name, choice in choices.items()}


def aliases(small: Compressed) -> dict[str, str] | None:
    """A weight's name by every name that its graph has for it; None where the graph's names are not the model's."""
    return {alias: w.name for w in small.network.weights().values() for alias in (w.name, *w.tied)} if small.network.framework == "pytorch" else None


def kept_in_float(small: Compressed, module: Any, weights: Mapping[str, Weight], refused: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The metadata of tensors that stay in float: those that were refused, and every other one where the graph does not use the plan's names."""
    from exporters.torch_graph import names_by_value

    names = {name: name for name in refused}
    if small.network.framework != "pytorch":
        names = names_by_value(module, {d.name: weights[d.name].value for d in small.plan.decisions if d.format is None or d.name in refused})
    return {name: {"file_name": target, "placement": "float", "reason": refused.get(name, "")} for name, target in names.items()}


def the_static_activations(small: Compressed, names: set[str]) -> Any:
    found = {small.plan.compressed[name].activations for name in names}
    if len(found) > 1:
        raise Refused(f"a PyTorch file takes one way of static activations, not {', '.join(sorted(map(str, found)))}")
    return found.pop()


def batches(small: Compressed):
    import numpy as np
    import torch

    for sample in samples(small.calibration, small.network.inputs):
        yield tuple(torch.from_numpy(np.ascontiguousarray(array)) for array in sample.values())


def described(builder: Any, decision: Decision, at_load: bool) -> dict[str, Any]:
    """What `read` and runtimes need to know about one stored weight; `at_load`: that they compute what follows from it alone when they load the file."""
    stored, encoded = builder.store(decision.name), builder.encoded[decision.name]
    decoded = list(dict.fromkeys(stored.decoded))
    reasons = decoded or list(dict.fromkeys(filter(None, stored.native))) or ([] if stored.native else ["no operator reads it"])
    return {
        "file_name": stored.parts["codes"],
        "format": FORMAT.dump_python(encoded.format, mode="json"),
        "shape": list(encoded.shape),
        "parts": stored.parts,
        "tables": stored.tables,
        "high_first": stored.high_first,
        "at_load": at_load,
        "activations": decision.activations and decision.activations.type,
        "placement": "native" if stored.native and not decoded else "decoded",
        "reason": "; ".join(reasons),
    }


def save(small: Compressed, module: Any, stored: dict[str, dict[str, Any]], path: Path, exporter: str) -> None:
    """Exports the module again and writes it without dead constants, example inputs and source locations."""
    import torch

    from exporters.torch_graph import drop_dead_constants, drop_dead_operators, strip

    kept = {target for entry in stored.values() for target in (entry["file_name"], *entry.get("parts", {}).values())}
    drop_dead_operators(module)
    drop_dead_constants(module, kept)
    with torch.no_grad():
        program = torch.export.export(module, example(small.network))
    strip(program)
    torch.export.save(program, path, extra_files={METADATA_FILE: metadata(small, exporter, stored)})


def example(network: Any) -> tuple[Any, ...]:
    import torch

    return tuple(torch.zeros(spec.shape, dtype=getattr(torch, spec.dtype)) for spec in network.inputs)
