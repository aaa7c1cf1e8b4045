"""What a .tflite file holds, whoever wrote it."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from compress.artifact import Contents, Placement, StoredTensor, spread
from compress.errors import BrokenFile
from compress.network import InputSpec
from compress.numerics.storing import FORMAT, from_arrays
from compress.pipeline import Compressed
from exporters import METADATA_KEY, litert_delegates, litert_once, litert_sparse, metadata, tflite_file, tflite_sparse
from exporters.litert_matching import Layout
from exporters.to_litert import EXPANDED


def read(path: Path) -> Contents:
    """Constants, operators, inputs and outputs of a .tflite file. BrokenFile where it is damaged."""
    model = tflite_file.parse(path.read_bytes(), path.name)
    try:
        about = told_by(model, path.name)
        ends, found = (inputs(model, about), outputs(model, about)), tuple(tensors(model, about))
        return Contents("tflite", *ends, found, tflite_file.operators(model), about, ranges(model), litert_delegates.coverage(model))
    except BrokenFile:
        raise
    except (*tflite_file.DAMAGE, KeyError) as error:
        raise BrokenFile(f"{path.name}: its tensors, quantization and metadata do not fit together: {error!r}") from error


def told(
    small: Compressed,
    exporter: str,
    layouts: Mapping[str, tuple[Layout, ...]],
    positions: tuple[Any, Any],
    reasons: Mapping[str, str],
    packed: Iterable[str] = (),
) -> bytes:
    """The metadata that `read` understands: every layer weight with its places in the file, and the positions of inputs and outputs."""
    shapes = {d.name: d.shape for d in small.plan.decisions}
    stored = {
        name: {"places": [layout.as_dict() for layout in found], "reason": reasons.get(name, ""), "canonical": shapes[name]} for name, found in layouts.items()
    }
    for name in packed:
        stored[name] |= {"packed": litert_once.about(small.encoded[name]), "places": []}
    order = dict(zip(("input_positions", "output_positions"), positions, strict=True))
    return json.dumps(json.loads(metadata(small, exporter, stored)) | order, separators=(",", ":")).encode()


def told_by(model: Any, name: str) -> dict:
    content = tflite_file.metadata(model, METADATA_KEY)
    if content is None:
        return {}
    try:
        return json.loads(content)
    except ValueError as error:
        raise BrokenFile(f"{name}: its compresskit metadata is not JSON: {error}") from error


def inputs(model: Any, about: Mapping) -> tuple[InputSpec, ...]:
    graph = model.subgraphs[0]
    found = [tflite_file.Place(graph, i) for i in graph.inputs]
    if not about:
        return tuple(InputSpec(place.name, place.shape, place.dtype, place.name) for place in found)
    named = zip(about["inputs"], about["input_positions"], strict=True)
    return tuple(
        InputSpec(name, found[i].shape, found[i].dtype, found[i].name) if i >= 0 else InputSpec(name, tuple(shape), dtype) for (name, shape, dtype), i in named
    )


def outputs(model: Any, about: Mapping) -> tuple[InputSpec, ...]:
    graph = model.subgraphs[0]
    found = [tflite_file.Place(graph, i) for i in graph.outputs]
    order = about.get("output_positions", range(len(found)))
    return tuple(InputSpec(found[i].name, found[i].shape, found[i].dtype, found[i].name) for i in order)


def tensors(model: Any, about: Mapping) -> Iterable[StoredTensor]:
    """Every float or quantized constant once, weights of the plan under its names, scales of blocks with their weights."""
    names = defaultdict(list)
    for name, entry in about.get("tensors", {}).items():
        if "packed" in entry:
            yield unpacked(model, name, entry)
        elif not entry["places"]:
            yield StoredTensor(name, "", tuple(entry["canonical"]), "float32", "float", entry["reason"])
        for place in entry["places"]:
            names[place["file_name"]].append((name, entry, Layout.of(place)))
    places = tflite_file.constants(model)
    scales = {(id(place.graph), index) for place in places if (index := tflite_file.block_scales(place)) is not None}
    named, counted, vectors = set(), set(), set()
    for place in places:
        if (id(place.graph), place.index) in scales or not is_weight(place) or tflite_file.text(place.graph.name) == litert_once.SUBGRAPH:
            continue
        bare = place.tensor.buffer in counted
        counted.add(place.tensor.buffer)
        for name, entry, layout in names.get(place.name, [(place.name, {}, None)]):
            yield stored(model, place, place.name if name in named else name, entry.get("reason", ""), layout, bare, vectors)
            named.add(name)
            bare = True


def unpacked(model: Any, name: str, entry: Mapping) -> StoredTensor:
    """A weight that operators of the graph decode, from its arrays."""
    fmt = FORMAT.validate_python(entry["packed"]["format"])
    arrays = litert_once.stored_arrays(model, name, entry["packed"]["arrays"])
    encoded = from_arrays({noun: bits(noun, array) for noun, array in arrays.items()}, fmt, tuple(entry["canonical"]))
    scales = encoded.scales if encoded.global_scale is None else encoded.scales * encoded.global_scale
    sizes = {noun: array.nbytes for noun, array in arrays.items()}
    payload, zeros = sizes.pop("codes"), sizes.pop("zero_points", 0)
    facts = {"payload_bytes": payload, "scale_bytes": sum(sizes.values()), "zero_point_bytes": zeros}
    facts |= {"codes": encoded.codes, "scales": scales, "zero_points": encoded.zero_points, "codebook": encoded.codebook}
    return StoredTensor(name, f"{name}/codes", encoded.shape, str(fmt), "decoded", entry["reason"], **facts)


def bits(noun: str, array: np.ndarray) -> np.ndarray:
    """Codes as `storing` keeps them, in bytes, whatever type lets LiteRT decode them."""
    return array.view(np.uint8).ravel() if noun == "codes" else array


def is_weight(place: tflite_file.Place) -> bool:
    return place.dtype in ("float32", "float16", "bfloat16") or tflite_file.scales_of(place) is not None or tflite_file.block_scales(place) is not None


def stored(model: Any, place: tflite_file.Place, name: str, reason: str, layout: Layout | None, bare: bool, counted: set[int]) -> StoredTensor:
    """One constant; `bare` where its bytes are another tensor's as well and were counted there."""
    placement, cause = placement_of(model, place)
    payload, scale_bytes, zero_bytes = (0, 0, 0) if bare else sizes(model, place, counted)
    facts = {"payload_bytes": payload, "scale_bytes": scale_bytes, "zero_point_bytes": zero_bytes, "filled_in": place.tensor.sparsity is not None}
    if place.dtype == "float32":
        values = tflite_file.values(model, place) if tflite_file.is_known(place) else None
        facts |= {} if values is None else spread(values)
        if layout and facts["filled_in"]:
            facts["values"] = layout.to_canonical(values)
        return StoredTensor(name, place.name, layout.canonical if layout else place.shape, place.dtype, placement, cause or reason, **facts)
    codes = tflite_file.values(model, place) if tflite_file.is_known(place) else None
    codes = None if codes is None else np.array(layout.to_canonical(codes) if layout else codes)  # a copy: the file's bytes are not kept
    shape = place.shape if codes is None else codes.shape
    scales, zero_points = numbers(model, place)
    return StoredTensor(name, place.name, shape, place.dtype, placement, cause or reason, **facts, codes=codes, scales=scales, zero_points=zero_points)


def numbers(model: Any, place: tflite_file.Place) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Scales and zero points; None where there are none, or where every zero point is 0."""
    block = tflite_file.block_scales(place)
    if block is not None:
        return tflite_file.values(model, tflite_file.Place(place.graph, block)).astype(np.float32), None
    scales = tflite_file.scales_of(place)
    if scales is None:
        return None, None
    zero = np.asarray(place.tensor.quantization.zeroPoint, np.int64)
    return (scales.reshape(()) if scales.size == 1 else scales), (zero if zero.any() else None)


def sizes(model: Any, place: tflite_file.Place, counted: set[int]) -> tuple[int, int, int]:
    """Bytes that the codes, scales and zero points take in the file: zero points are int64 in a flatbuffer, even where all are 0.

    Tensors can share a vector, which is then at one address: it counts where `counted` lacks it.
    """
    payload = len(model.buffers[place.tensor.buffer].data)
    if place.tensor.sparsity is not None:
        payload += sum(numbers.nbytes for numbers in tflite_sparse.index_vectors(place.tensor))
    block = tflite_file.block_scales(place)
    if block is not None:
        return payload, len(model.buffers[place.graph.tensors[block].buffer].data), 0
    scales = tflite_file.scales_of(place)
    if scales is None:
        return payload, 0, 0
    return payload, own_bytes(place.tensor.quantization.scale, counted), own_bytes(place.tensor.quantization.zeroPoint, counted)


def own_bytes(vector: Any, counted: set[int]) -> int:
    if not isinstance(vector, np.ndarray) or vector.ctypes.data in counted:
        return 0
    counted.add(vector.ctypes.data)
    return vector.nbytes


def placement_of(model: Any, place: tflite_file.Place) -> tuple[Placement, str]:
    """How the runtime computes with a constant, from the operators that read it, and why where it is expanded."""
    if place.tensor.sparsity is not None:
        return "decoded" if place.dtype == "float32" else "native", litert_sparse.REASON
    if place.dtype == "float32":
        return "float", ""
    if any(tflite_file.operator_name(model, operator) == "DEQUANTIZE" for operator in tflite_file.consumers(place)):
        return "decoded", EXPANDED
    return "native", ""


def ranges(model: Any) -> int:
    """Tensors computed at run time whose quantization is in the file."""
    fixed = {(id(place.graph), place.index) for place in tflite_file.constants(model)}
    return sum(
        tflite_file.scales_of(place) is not None and (id(place.graph), place.index) not in fixed and bool(prod(place.shape))
        for place in tflite_file.all_tensors(model)
    )
