"""Writes an ExecuTorch .pte: XNNPACK's kernels with the core's own codes and scales, portable kernels for what XNNPACK does not take."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any

from compress.errors import ExportError, Refused
from compress.formats import IntFormat, PerTensor
from compress.numerics.storing import FORMAT
from compress.pipeline import Compressed
from compress.plan import Decision
from exporters import METADATA_KEY, metadata, placements
from exporters.executorch_placing import PRODUCTS, QUANTIZES, Choice
from exporters.executorch_placing import place as place
from exporters.pte_file import contents_of, opened
from exporters.pte_file import read as read
from exporters.to_torch import batches, example, float_program, the_static_activations

SUFFIX = ".pte"
RUNTIME = "executorch"
SOURCES = ("pytorch", "keras", "onnx")
OWN_NUMBERS = False

OPERATORS = {"dynamic": 1000, "static": 1100, "decode": 1000}  # bytes of operators, names and metadata for each compressed weight, as measured
SCALING = 800  # and of what multiplies expanded codes by their scales
TAP = 290  # and, of a convolution that is a product, of what takes the inputs under each tap of its kernel


def overhead(decisions: Iterable[Decision], placed: Mapping[str, Choice]) -> int:
    """Bytes that a file has for these weights beside the plan's: a scale for each output channel, also of one for all, and for each int32 bias."""
    total = 0
    for decision in (d for d in decisions if d.format):
        way, integers = placed[decision.name].way, isinstance(decision.format, IntFormat)
        total += OPERATORS[way] + (SCALING if integers and way == "decode" else 0)
        if way == "decode" and decision.kind in PRODUCTS:
            total += TAP * prod(decision.shape[2:])
        if way != "decode" and isinstance(decision.format.granularity, PerTensor):
            total += 4 * decision.shape[0]
        if way == "static":
            total += 4 * decision.shape[0]
    return total


def write(small: Compressed, path: Path) -> tuple[str, ...]:
    """Writes the file; ExportError names weights that XNNPACK's partitioner left to portable kernels although the plan wants them native."""
    import torch

    from exporters.torch_graph import flat_module

    module = flat_module(float_program(small.network))
    with torch.no_grad():
        module, stored = with_small_weights(small, module)
        data, outside = lowered(small, module, metadata(small, "executorch", stored))
    check_loads(data)
    path.write_bytes(data)
    return notes(stored, outside)


def with_small_weights(small: Compressed, module: Any) -> tuple[Any, dict[str, dict[str, Any]]]:
    """The module reading the core's codes, and what the file's metadata says about each tensor of the plan."""
    from exporters.executorch_graph import simplified
    from exporters.executorch_kernels import held, place_dynamic, reads_weight
    from exporters.executorch_products import as_product, is_convolution
    from exporters.torch_graph import Builder, find_sites
    from exporters.torch_kernels import place_site

    placed = placements(small.plan, "executorch", small.network.framework, small.recipe.allow_float)
    choices = {name: found for name, found in placed.items() if found.placement != "float"}
    weights, aliases = small.network.weights(), names_of_constants(small, simplified(module))
    refused = {name: found.reason for name, found in placed.items() if name not in choices}
    named = names_of_floats(small, module, aliases, refused)
    left = floats(module, named, refused)
    builder, native, static = Builder(module, small.encoded), {}, {}
    for site in find_sites(module, {name: weights[name].value for name in choices}, aliases):
        choice = choices[site.name]
        if choice.way == "decode" or not reads_weight(site):
            place_site(builder, site, choice if choice.way == "decode" else read_by(site.user.target))
            if is_convolution(site.user):
                as_product(builder, site.user, tuple(site.source.meta["val"].shape))
            continue
        native.setdefault(site.name, []).append(held(small.encoded[site.name], site.user, named))
        if choice.way == "static":
            static[site.user.name] = site
        else:
            place_dynamic(builder, site)
    if static:
        module = in_static_int8(small, builder, static)
    return module, left | {name: described(builder, name, choice, native.get(name, [])) for name, choice in choices.items()}


def names_of_constants(small: Compressed, origins: Mapping[str, str]) -> dict[str, str] | None:
    """The plan's names by the graph's; None where the graph's own names tell nothing."""
    if small.network.framework != "pytorch":
        return None
    named = {alias: weight.name for weight in small.network.weights().values() for alias in (weight.name, *weight.tied)}
    return named | {fresh: named[old] for fresh, old in origins.items() if old in named}


def in_static_int8(small: Compressed, builder: Any, static: Mapping[str, Any]) -> Any:
    """The module with these layers, and what lies between them, in calibrated int8."""
    from functools import partial

    from exporters.executorch_static import PlannedQuantizer, place_codes
    from exporters.torch_pt2e import quantize_static

    builder.module.recompile()
    names = {node: site.name for node, site in static.items()}
    quantizer = PlannedQuantizer(set(static), the_static_activations(small, set(names.values())))
    return quantize_static(builder, names, quantizer, partial(place_codes, static), batches(small))


def names_of_floats(small: Compressed, module: Any, aliases: Mapping[str, str] | None, refused: Mapping[str, str]) -> dict[str, str]:
    """The plan's names of tensors that stay in float, by the graph's."""
    from exporters.torch_graph import names_by_value

    weights = small.network.weights()
    wanted = {d.name: weights[d.name].value for d in small.plan.decisions if d.format is None or d.name in refused}
    if aliases is None:
        return {target: name for name, target in names_by_value(module, wanted).items()}
    return {node.target: aliases[node.target] for node in module.graph.find_nodes(op="get_attr") if aliases.get(node.target) in wanted}


def floats(module: Any, named: Mapping[str, str], refused: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The metadata of tensors that stay in float."""
    from exporters.executorch_kernels import float_key

    found = {}
    for node in module.graph.find_nodes(op="get_attr"):
        name = named.get(node.target)
        if name is not None:
            found[name] = {"file_name": float_key(module, next(iter(node.users)), node.target), "placement": "float", "reason": refused.get(name, "")}
    return found


def described(builder: Any, name: str, choice: Choice, native: list[Any]) -> dict[str, Any]:
    """What `read` needs to know about one stored weight."""
    from exporters.executorch_kernels import key
    from exporters.torch_graph import constant

    encoded, stored = builder.encoded[name], builder.stored.get(name)
    parts = {} if stored is None else {part: key(bits(constant(builder.module, target))) for part, target in stored.parts.items()}
    reasons = [choice.reason] if stored is None else list(dict.fromkeys(stored.decoded))
    return {
        "file_name": native[0].codes if native else parts.get("codes", ""),
        "format": FORMAT.dump_python(encoded.format, mode="json"),
        "shape": list(encoded.shape),
        "native": [asdict(held) for held in native],
        "parts": parts,
        "placement": "native" if native and not parts else "decoded",
        "reason": "; ".join(reasons) if native or parts else "no operator reads it",
    }


def bits(tensor: Any) -> Any:
    """The tensor's bytes."""
    import torch

    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()


def lowered(small: Compressed, module: Any, about: str) -> tuple[bytes, Counter]:
    """The file's bytes, and how often it calls each operator outside of XNNPACK."""
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

    from exporters.executorch_graph import attention_in_parts
    from exporters.torch_graph import drop_dead_constants, drop_dead_operators, flat_module, strip

    drop_dead_operators(module)
    drop_dead_constants(module, set())
    program = torch.export.export(module, example(small.network))
    if attention_in_parts(module := flat_module(program)):
        program = torch.export.export(module, example(small.network))
    strip(program)
    try:
        edge = to_edge_transform_and_lower(
            program, partitioner=[XnnpackPartitioner()], constant_methods={METADATA_KEY: about}, compile_config=EdgeCompileConfig(_check_ir_validity=False)
        )
    except Exception as error:
        raise ExportError(f"ExecuTorch could not lower the model: {error}") from error
    outside = [node for node in edge.exported_program().graph.nodes if hasattr(node.target, "_op")]
    lost = [str(node.args[0]) for node in outside if node.target.name().startswith("quantized_decomposed")]
    if lost:
        raise ExportError(f"XNNPACK's partitioner left in float what the plan wants in integers: {', '.join(lost)}")
    return edge.to_executorch().buffer, Counter(node.target.name() for node in outside)


def check_loads(data: bytes) -> None:
    """Refused where the runtime cannot load the file, with the operators that it lacks or in its own words."""
    from executorch.runtime import Runtime

    runtime = Runtime.get()
    try:
        runtime.load_program(data).load_method("forward")
    except RuntimeError as error:
        kernels = runtime.operator_registry.operator_names
        lacking = [name for name in contents_of(opened(data)).operators if "::" in name and name not in kernels]
        raise Refused(f"ExecuTorch has no kernels for {', '.join(lacking)}" if lacking else f"ExecuTorch cannot load this model: {error}") from error


def notes(stored: Mapping[str, Mapping[str, Any]], outside: Mapping[str, int]) -> tuple[str, ...]:
    found = []
    if outside:
        listed = [f"{name.removesuffix('.default')}{f' ({count})' if count > 1 else ''}" for name, count in outside.items()]
        found.append(f"XNNPACK does not take these operators, ExecuTorch's portable kernels run them: {', '.join(listed)}")
    if any(entry["reason"] == QUANTIZES for entry in stored.values()):
        found.append(f"{QUANTIZES}, one scale and zero point for each token")
    return tuple(found)


def read_by(operator: Any) -> Choice:
    return Choice("decoded", f"{operator} reads it, which XNNPACK does not compute with integer weights", way="decode")
