"""A .pt2 quantized by PT2E with the x86 quantizer's own search, observers and numbers: an arm to compare with."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from compress.errors import Refused
from compress.formats import IntFormat, PerAxis, StaticActivations
from compress.network import COMPRESSIBLE
from compress.numerics.storing import FORMAT
from compress.pipeline import Compressed
from compress.plan import Decision
from exporters import Placed, placements, some
from exporters.to_torch import SOURCES, aliases, batches, float_program, kept_in_float, read, save

__all__ = ["OWN_NUMBERS", "RUNTIME", "SOURCES", "SUFFIX", "place", "read", "write"]

SUFFIX = ".pt2"
RUNTIME = "torch"
OWN_NUMBERS = True

OWN_SCALES = "PT2E's observers pick the scales themselves"
KNOWN = ("torch.nn.modules.conv.Conv2d", "torch.nn.modules.linear.Linear")


def place(decision: Decision, framework: str) -> Placed:
    """How the x86 quantizer stores a tensor if it finds it. Refused for all but static int8."""
    fmt, activations = decision.format, decision.activations
    plain = isinstance(fmt, IntFormat) and fmt.plain and fmt.symmetric and fmt.bits == 8 and isinstance(fmt.granularity, PerAxis)
    if not plain or not isinstance(activations, StaticActivations) or activations.bits != 8:
        with_what = activations or "float activations"
        raise Refused(f"PT2E's x86 quantizer has symmetric int8 weights per channel with static int8 activations, not {fmt} with {with_what}")
    return Placed("native", OWN_SCALES)


def write(small: Compressed, path: Path) -> tuple[str, ...]:
    """Quantizes and writes in one go; what the quantizer left in float is named in the file, with the reason as far as the graph tells it."""
    import torch

    from exporters.torch_graph import find_sites, flat_module

    placed = placements(small.plan, "torch-pt2e", small.network.framework, small.recipe.allow_float)
    wanted = [name for name, found in placed.items() if found.placement != "float"]
    left = [d.name for d in small.plan.decisions if d.kind in COMPRESSIBLE and d.name not in wanted]
    if wanted and left:
        raise Refused(f"PT2E's x86 quantizer treats all layers alike; recipe {small.recipe.name!r} leaves out {some(left)}")
    module, weights = flat_module(float_program(small.network)), small.network.weights()
    stored = kept_in_float(small, module, weights, {name: found.reason for name, found in placed.items() if name not in wanted})
    if wanted:
        sites = find_sites(module, {name: weights[name].value for name in wanted}, aliases(small))
        readers = {site.user.name: (site.name, why_not(site.user)) for site in sites}
        module = quantized(small, module)
        stored |= dict(described(small, module, readers))
    with torch.no_grad():
        save(small, module, stored, path, "torch-pt2e")
    return (OWN_SCALES,) if any(entry["placement"] == "native" for entry in stored.values()) else ()


def quantized(small: Compressed, module: Any) -> Any:
    import torch
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import X86InductorQuantizer, get_default_x86_inductor_quantization_config

    prepared = prepare_pt2e(module, X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config()))
    with torch.no_grad():
        for batch in batches(small):
            prepared(*batch)
    return convert_pt2e(prepared)


def why_not(reader: Any) -> str:
    """Why the quantizer may not find an operator: it looks for those that modules of the types in KNOWN call."""
    owner = next((kind for _, kind in reversed((reader.meta.get("nn_module_stack") or {}).values())), "no module")
    owner = owner if isinstance(owner, str) else f"{owner.__module__}.{owner.__qualname__}"
    if owner in KNOWN:
        return f"PT2E's x86 quantizer knows no pattern around {reader.target}"
    return f"PT2E's x86 quantizer looks for operators of {' and '.join(KNOWN)}, and {reader.target} is called by {owner}"


def described(small: Compressed, module: Any, readers: dict[str, tuple[str, str]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The metadata of every planned weight, by what its reader multiplies with now."""
    import torch

    for node in module.graph.nodes:
        if node.name not in readers:
            continue
        name, reason = readers[node.name]
        weight = node.args[1] if len(node.args) > 1 else None
        if getattr(weight, "target", None) is torch.ops.quantized_decomposed.dequantize_per_channel.default:
            codes, scales, zero_points = (argument.target for argument in weight.args[:3])
            yield (
                name,
                {
                    "file_name": codes,
                    "format": FORMAT.dump_python(small.plan.compressed[name].format, mode="json"),
                    "shape": list(small.plan.compressed[name].shape),
                    "parts": {"codes": codes, "scales": scales, "zero_points": zero_points},
                    "tables": {},
                    "high_first": False,
                    "placement": "native",
                    "reason": OWN_SCALES,
                },
            )
        elif weight is not None and weight.op == "get_attr":
            yield name, {"file_name": weight.target, "placement": "float", "reason": reason}
