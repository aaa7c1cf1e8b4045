"""LiteRT .tflite files with the core's own codes and scales."""

from collections.abc import Iterable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from compress.artifact import Contents
from compress.errors import ExportError, Refused
from compress.formats import CodebookFormat, DynamicActivations, FloatFormat, Format, IntFormat, PerAxis, PerBlock, PerGroup, PerTensor, StaticActivations
from compress.network import Network
from compress.numerics.sparse import best_axis, rows_bytes, worth
from compress.pipeline import Compressed
from compress.plan import Decision
from compress.samples import samples
from exporters import METADATA_KEY, Placed, placements, refuse_exotic

SUFFIX = ".tflite"
RUNTIME = "litert"
SOURCES = ("pytorch", "keras", "onnx", "litert")
OWN_NUMBERS = False
INTERFACES = ("float32", "float16", "int8", "uint8")

EXPANDED = "DEQUANTIZE expands it to float32 when the model loads"
UNPACKED = "operators of the graph decode it to float32 at the first run, too late for XNNPACK to prepare it as it does constant weights"
UNPACKED_ROWS = "operators of the graph decode its rows to float32 as they are looked up, at every run"
BLOCKS = (32, 64, 128, 256)
FOLDED = "the converter folded constants around these layers into their biases, with the float weights: "
LOOKED_UP = "rows are expanded to float32 as they are looked up"


def place(decision: Decision, framework: str) -> Placed:
    """How LiteRT computes with one tensor of the plan. Refused, with the reason, where it cannot."""
    lacking = lacks(decision, framework)
    if lacking is None:
        return place_in_own_types(decision, framework)
    if decision.activations is not None:
        raise Refused(lacking)
    rows = decision.kind == "embedding" and rows_are_whole(decision.format, decision.shape)
    return Placed("decoded", f"{UNPACKED_ROWS if rows else UNPACKED}; {lacking}")


OPERATORS = 750  # bytes of operators, names and metadata for each compressed weight, as measured
DECODING = {"codebook": 2200, "double": 1400}  # and of the operators that decode a codebook, and scales that are codes
SPARSE = 350  # and of DENSIFY, what it writes, and the axes of a weight without zeros


def overhead(decisions: Iterable[Decision], placed: Mapping[str, Placed]) -> int:
    """Bytes that a file has for these weights beside the plan's: graph, and what LiteRT demands, less the zeros that are left out.

    It wants an int64 zero point for each scale of a channel, also where all are 0 (equal vectors are stored once), and a scale for each int32 bias.
    """
    total, zeros = 0, set()
    for decision in decisions:
        fmt = decision.format
        total += (OPERATORS if fmt else 0) - left_out(decision)
        if isinstance(fmt, CodebookFormat):
            total += DECODING["codebook"] + (DECODING["double"] if fmt.double else 0)
        if isinstance(fmt, IntFormat) and isinstance(fmt.granularity, PerAxis):
            zeros.add(decision.shape[0])
        if isinstance(decision.activations, StaticActivations):
            total += 4 * decision.shape[0]
    return total + 8 * sum(zeros)


def left_out(decision: Decision) -> int:
    """Bytes that a pruned weight takes less without its zeros; 0 where LiteRT needs it whole. See exporters.litert_sparse."""
    fmt, shape = decision.format, decision.shape
    static = fmt is not None and fmt.bits == 8 and isinstance(decision.activations, StaticActivations) and decision.kind.startswith(("conv", "depthwise"))
    if decision.prune is None or not (static or fmt is None) or decision.kind.endswith("3d"):
        return 0
    size = 4 if fmt is None else 1
    stored = round((1 - decision.prune.share) * prod(shape))
    dense, sparse = size * prod(shape), sparse_bytes(shape, size, stored)
    return dense - sparse if worth(sparse, dense) else 0


def sparse_bytes(shape: tuple[int, ...], size: int, stored: int) -> int:
    """What a weight takes of which `stored` values of `size` bytes are not 0, with the operator that puts the zeros back."""
    return size * stored + rows_bytes(shape, best_axis(shape, stored), stored) + SPARSE


def rows_are_whole(fmt: Format, shape: tuple[int, ...]) -> bool:
    """Whether each row of a table lies in bytes and scales of its own, so that lookups can decode just the rows that they need."""
    if len(shape) != 2 or shape[1] * fmt.bits % 8:
        return False
    granularity = None if isinstance(fmt, FloatFormat) else fmt.granularity
    return not isinstance(granularity, PerBlock) or shape[1] % granularity.size == 0


def lacks(decision: Decision, framework: str) -> str | None:
    """Why LiteRT's own tensor types and kernels cannot take a weight; None where they can."""
    try:
        place_in_own_types(decision, framework)
    except Refused as error:
        return str(error)
    return None


def place_in_own_types(decision: Decision, framework: str) -> Placed:
    fmt = decision.format
    if isinstance(fmt, FloatFormat):
        return place_float(fmt, decision)
    refuse_exotic(fmt, "LiteRT")
    if fmt.negative_scales:
        raise Refused("LiteRT's scales are positive; rule 'signed' makes negative ones")
    if fmt.bits not in (2, 4, 8):
        raise Refused(f"LiteRT stores weights as int8, int4 or int2, not int{fmt.bits}")
    if isinstance(fmt.granularity, PerGroup):
        return place_blocks(fmt, decision)
    return place_channels(fmt, decision, framework)


def place_float(fmt: FloatFormat, decision: Decision) -> Placed:
    if fmt.dtype != "float16":
        raise Refused(f"LiteRT has no {fmt.dtype} weights; use float16")
    if decision.activations is not None:
        raise Refused(f"LiteRT has integer activations with integer weights only, not with {fmt}")
    return Placed("decoded", EXPANDED)


def place_blocks(fmt: IntFormat, decision: Decision) -> Placed:
    size = fmt.granularity.size
    if fmt.bits != 4 or size not in BLOCKS:
        raise Refused(f"LiteRT has groups for int4 only, of {', '.join(map(str, BLOCKS))} inputs, not int{fmt.bits} of {size}")
    if decision.kind not in ("linear", "attention", "embedding"):
        raise Refused(f"LiteRT has int4 groups for linear layers and embeddings only, not for a {decision.kind}")
    if not fmt.symmetric:
        raise Refused(f"LiteRT's groups have no zero points; rule {fmt.rule!r} needs them")
    if fmt.scale_dtype != "bfloat16":
        raise Refused(f"LiteRT keeps a group's scale as a float16 with bfloat16's mantissa: set scale_dtype: bfloat16, not {fmt.scale_dtype}")
    if isinstance(decision.activations, StaticActivations):
        raise Refused("LiteRT's int4 group kernel quantizes activations at run time; it takes no static ranges")
    if decision.kind == "embedding":
        return Placed("native", LOOKED_UP)
    return Placed("native", "" if decision.activations else "XNNPACK's int4 group kernel quantizes activations to int8 at run time")


def place_channels(fmt: IntFormat, decision: Decision, framework: str) -> Placed:
    kind, activations = decision.kind, decision.activations
    if kind == "embedding":  # TFLiteConverter makes GATHER of Keras's, which has no integer form with a scale for each row
        return Placed("native", LOOKED_UP) if fmt.symmetric and framework == "pytorch" else Placed("decoded", EXPANDED)
    if activations is None:
        return Placed("decoded", EXPANDED)
    if not fmt.symmetric:
        raise Refused(f"LiteRT computes with integer weights of zero point 0 only; rule {fmt.rule!r} is possible without activations")
    if kind.endswith("3d"):
        raise Refused(f"LiteRT's {kind} computes in float only; leave activations out")
    if kind.startswith("depthwise") and isinstance(activations, DynamicActivations) and isinstance(fmt.granularity, PerTensor):
        raise Refused("LiteRT's depthwise kernel for dynamic activations is wrong for one scale per tensor; use granularity axis")
    if fmt.bits == 4 and not kind.startswith(("linear", "attention", "recurrent", "conv1d", "conv2d")):
        raise Refused(f"LiteRT has no int4 kernel for a {kind}; use int8, or leave activations out")
    if fmt.bits == 2 and (kind not in ("linear", "attention") or isinstance(activations, StaticActivations)):
        raise Refused("LiteRT computes with int2 in linear layers and with dynamic activations only; elsewhere leave activations out")
    return Placed("native")


def delegates(network: Network) -> dict[str, str]:
    """What each delegate would take of a model's operators, from its float32 file alone: known before anything is compressed."""
    from exporters import litert_delegates
    from exporters.litert_float import float_file

    return litert_delegates.coverage(float_file(network).as_converted())


def read(path: Path) -> Contents:
    """What any .tflite holds, codes in canonical layout where compresskit wrote it. BrokenFile for one that is damaged."""
    from exporters import litert_reading

    return litert_reading.read(path)


def write(small: Compressed, path: Path) -> tuple[str, ...]:
    """Converts to float, lets litert-quantizer place the operators around the core's numbers, and embeds what `read` needs."""
    from exporters import litert_card, litert_interface, litert_once, litert_placing, litert_sparse, tflite_file
    from exporters.litert_calibration import calibrate, with_decoded
    from exporters.litert_float import float_file
    from exporters.litert_reading import told
    from exporters.litert_sums import narrow_sums

    network, plan = small.network, small.plan
    placed = placements(plan, "litert", network.framework, small.recipe.allow_float)
    converted = float_file(network)
    wanted = {name: d for name, d in plan.compressed.items() if placed[name].placement != "float"}
    lost = [name for name in wanted if not converted.layouts[name]]
    if lost and not small.recipe.allow_float:
        raise ExportError(f"the LiteRT converter changed or dropped {', '.join(lost)}: not found in the float file; set allow_float: true to leave it in float")
    given = {found.layout.file_name: found for found in numbers(small, converted, wanted)}
    packed = {file_name: found for file_name, found in given.items() if found.packed}
    untouched = network.framework == "litert" and not small.recipe.steps
    reasons = {d.name: placed[d.name].reason if d.name in placed else d.reason for d in plan.decisions}
    reasons |= dict.fromkeys((name for name, found in converted.layouts.items() if not found), "the LiteRT converter changed or dropped it")
    model = converted.unfolded if given else converted.as_converted()
    about = told(small, "litert", converted.layouts, (converted.inputs, converted.outputs), reasons, {found.name for found in packed.values()})
    model = tflite_file.with_metadata(model, METADATA_KEY, about)
    if untouched:  # litert-quantizer takes no quantized files
        path.write_bytes(tflite_file.serialized(model))
        return ("the file is the model's own, with metadata added",)
    activations = static_activations(small)
    calibrated = None
    if activations is not None:
        calibrated = calibrate(with_decoded(model, given), file_batches(small, converted, model), activations)
    written, notes = litert_placing.quantize(model, given, calibrated)
    if activations is not None and activations.bits == 16:
        written, wide = narrow_sums(written)
        notes = (*notes, *wide)
    if packed:
        written = litert_once.pack(written, packed)
    names = {layout.file_name: name for name, found in converted.layouts.items() for layout in found}
    written, whole = litert_sparse.pack(written, names)
    if small.recipe.interface != "float32":
        written = litert_interface.given(written, small.recipe.interface)
    written, notes = tflite_file.compacted(written), (*notes, *whole)
    if small.card:
        written = litert_card.attached(written, small.card)
    check_loads(written)
    path.write_bytes(written)
    unclear = [name for name in wanted if any(layout.file_name in converted.unclear for layout in converted.layouts[name])]
    return (*notes, FOLDED + ", ".join(unclear)) if unclear else notes


def numbers(small: Compressed, converted: Any, wanted: Mapping[str, Decision]) -> Iterator[Any]:
    """A Given for each place in the file of each wanted tensor."""
    from exporters.litert_given import Given

    for name, decision in wanted.items():
        packed = lacks(decision, small.network.framework) is not None
        for layout in converted.layouts[name]:
            yield Given(name, small.encoded[name], layout, decision.activations, packed)


def check_loads(data: bytes) -> None:
    """Refused, with the runtime's own words, where it cannot load the file."""
    from ai_edge_litert.interpreter import Interpreter

    try:
        Interpreter(model_content=data, num_threads=1).allocate_tensors()
    except (RuntimeError, ValueError) as error:
        raise Refused(f"LiteRT cannot load this model: {' '.join(str(error).split())[:300]}") from error


def static_activations(small: Compressed) -> StaticActivations | None:
    found = {d.activations for d in small.plan.compressed.values() if isinstance(d.activations, StaticActivations)}
    if len(found) > 1:
        raise Refused(f"a LiteRT file has one kind of static activations; the recipe has {', '.join(map(str, found))}")
    return next(iter(found), None)


def file_batches(small: Compressed, converted: Any, model: Any):
    """Calibration samples in the order and dtypes of the file's inputs."""
    from exporters import tflite_file

    graph = model.subgraphs[0]
    names = {position: spec.name for spec, position in zip(small.network.inputs, converted.inputs, strict=True) if position >= 0}
    dtypes = [tflite_file.TYPE_NAMES[graph.tensors[i].type] for i in graph.inputs]
    for sample in samples(small.calibration, small.network.inputs):
        yield [np.ascontiguousarray(sample[names[i]].astype(dtype, copy=False)) for i, dtype in enumerate(dtypes)]
