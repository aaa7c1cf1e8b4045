"""Reads .pte files of ExecuTorch: the program, the graphs of its XNNPACK delegates, and every constant that they hold."""

import hashlib
import json
import re
import struct
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from compress.artifact import Contents, StoredTensor, spread
from compress.errors import BrokenFile
from compress.formats import IntFormat, PerGroup, PerTensor
from compress.network import InputSpec
from compress.numerics.storing import FORMAT
from exporters import METADATA_KEY
from exporters.pt2_file import DTYPES, Raw, dtype_name, small_tensor

XNNPACK = "XnnpackBackend"
MARK = b"ET12"
DAMAGE = (struct.error, IndexError, KeyError, ValueError, TypeError, OverflowError, AttributeError, MemoryError, AssertionError, subprocess.CalledProcessError)
"""What ExecuTorch's readers raise where offsets and lengths point out of the file or at something else."""
SCALARS = {0: 1, 1: 2, 2: 3, 3: 4, 4: 5, 5: 6, 6: 7, 7: 8, 11: 12, 15: 13}  # ScalarType by number: the number of torch's serialized types
XNN_TYPES = {
    **{"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"},
    **{"qint8": "int8", "qcint8": "int8", "qcint4": "int4", "qbint4": "int4", "qint32": "int32", "qcint32": "int32"},
}


@dataclass(frozen=True)
class Value:
    """A tensor of an XNNPACK graph. `key` names the constant that it reads, `scales` its scales where it has one for each channel or group."""

    dtype: str
    shape: tuple[int, ...]
    key: str
    scales: str
    quantized: bool
    weight: tuple[str, str] | None = None  # of a bias: key and scales of the weight of the same layer


@dataclass(frozen=True)
class File:
    """What a .pte holds. Constants of XNNPACK are named by the hash of their bytes, and so are those of the program here."""

    program: Any
    plan: Any
    values: list[Value]
    layers: Counter
    blobs: Mapping[str, bytes]


def read(path: Path) -> Contents:
    """What a .pte file holds, whoever wrote it. BrokenFile for one that is damaged or of another kind."""
    data = path.read_bytes()
    if data[4:8] != MARK:
        raise BrokenFile(f"{path.name} is no ExecuTorch program")
    try:
        return contents_of(opened(data))
    except DAMAGE as error:
        raise BrokenFile(f"{path.name} is no readable ExecuTorch program: {error}") from error


def opened(data: bytes) -> File:
    from executorch.exir._serialize._program import deserialize_pte_binary

    found = deserialize_pte_binary(data)
    plan = next((plan for plan in found.program.execution_plan if plan.name == "forward"), None)
    if plan is None:
        raise ValueError("it has no method named forward")
    named = {} if found.named_data is None else {key: found.named_data.buffers[entry.buffer_index] for key, entry in found.named_data.pte_data.items()}
    values, layers, blobs = [], Counter(), dict(named)
    for delegate in plan.delegates:
        if delegate.id == XNNPACK:
            payload = found.program.backend_delegate_data[delegate.processed.index].data
            found_values, found_layers = held_by(payload, blobs)
            values += found_values
            layers.update(found_layers)
    return File(found.program, plan, values, layers, blobs)


def xnnpack_graph(payload: bytes, header: Any) -> dict[str, Any]:
    """A delegate's graph, read by flatc with the schema that ExecuTorch ships."""
    from executorch.exir._serialize._flatbuffer import _flatc_decompile

    with tempfile.TemporaryDirectory() as folder:
        schema, graph = Path(folder) / "schema.fbs", Path(folder) / "graph.bin"
        schema.write_bytes(files("executorch.backends.xnnpack.serialization").joinpath("schema.fbs").read_bytes())
        graph.write_bytes(payload[header.flatbuffer_offset : header.flatbuffer_offset + header.flatbuffer_size])
        _flatc_decompile(folder, str(schema), str(graph), ["--raw-binary"])
        text = (Path(folder) / "graph.json").read_bytes()
    return json.loads(re.sub(rb": (-?)inf\b", rb": \1Infinity", text))  # ranges of fused activations


def held_by(payload: bytes, blobs: dict[str, bytes]) -> tuple[list[Value], Counter]:
    """The tensors and the number of operators of a delegate; constants that lie in its own bytes are added to `blobs`."""
    from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import XNNHeader

    header = XNNHeader.from_bytes(payload[: XNNHeader.EXPECTED_LENGTH])
    graph, keys = xnnpack_graph(payload, header), []
    for entry in graph["constant_data"]:
        name, start = entry.get("named_key", ""), header.constant_data_offset + entry["offset"]
        if not name and entry["size"]:  # files of ExecuTorch before named data
            inside = payload[start : start + entry["size"]]
            name = hashlib.sha256(inside).hexdigest()
            blobs[name] = inside
        keys.append(name)
    values = {entry["xvalue_union"].get("tensor_value", entry["xvalue_union"])["id_out"]: value_of(entry, keys) for entry in graph["xvalues"]}
    for node in graph["xnodes"]:
        bias, weight = (values.get(node["xnode_union"].get(f"{which}_id")) for which in ("bias", "filter"))
        if bias is not None and weight is not None:
            values[node["xnode_union"]["bias_id"]] = replace(bias, weight=(weight.key, weight.scales))
    return list(values.values()), Counter(node["xnode_union_type"] for node in graph["xnodes"])


def value_of(entry: Mapping[str, Any], keys: list[str]) -> Value:
    union, quantized = entry["xvalue_union"], entry["xvalue_union_type"] == "XNNQuantizedTensorValue"
    tensor = union["tensor_value"] if quantized else union
    scales = union["quant_params"].get("scale_buffer_idx", 0) if quantized else 0
    constant = tensor["constant_buffer_idx"]
    dtype = XNN_TYPES.get(tensor["datatype"].removeprefix("xnn_datatype_"), tensor["datatype"])
    return Value(dtype, tuple(tensor["dims"]), keys[constant] if constant else "", keys[scales] if scales else "", quantized)


def contents_of(file: File) -> Contents:
    told = json.loads(next((plan.values[plan.outputs[0]].val.string_val for plan in file.program.execution_plan if plan.name == METADATA_KEY), "{}"))
    operators = Counter({f"xnnpack.{name}": count for name, count in file.layers.items()})
    for chain in file.plan.chains:
        calls = [step.instr_args.op_index for step in chain.instructions if type(step.instr_args).__name__ == "KernelCall"]
        operators.update(operator_name(file.plan.operators[index]) for index in calls)
    given = [name for name, _, _ in told.get("inputs", [])]
    ranges = sum(value.quantized and not value.key and value.dtype == "int8" for value in file.values)
    inputs, outputs = specs(file.plan, file.plan.inputs, given), specs(file.plan, file.plan.outputs, [])
    return Contents("pte", inputs, outputs, tuple(tensors(file, told)), dict(operators), told, ranges)


def operator_name(operator: Any) -> str:
    return f"{operator.name}.{operator.overload}" if operator.overload else operator.name


def specs(plan: Any, indices: list[int], given: list[str]) -> tuple[InputSpec, ...]:
    """Inputs and outputs have no names in a .pte: their positions are the file's names."""
    found = [plan.values[index].val for index in indices]
    names = given or [str(position) for position in range(len(found))]
    pairs = zip(names, found, strict=True)
    return tuple(InputSpec(name, tuple(tensor.sizes), scalar(tensor)[0], str(position)) for position, (name, tensor) in enumerate(pairs))


def scalar(tensor: Any) -> tuple[str, Any]:
    return DTYPES[SCALARS[int(tensor.scalar_type)]]


def program_constants(file: File) -> dict[str, Raw]:
    """The constants that portable kernels read, by the hash of their bytes."""
    found = {}
    for value in file.plan.values:
        tensor = value.val
        if type(tensor).__name__ == "Tensor" and tensor.data_buffer_idx and tensor.allocation_info is None:
            dtype, numpy_type = scalar(tensor)
            data = bytes(file.program.constant_buffer[tensor.data_buffer_idx].storage)[: prod(tensor.sizes) * np.dtype(numpy_type).itemsize]
            name = hashlib.sha256(data).hexdigest()
            found[name] = Raw(name, dtype, tuple(tensor.sizes), name, len(data), np.frombuffer(data, numpy_type).reshape(tensor.sizes).copy())
    return found


def tensors(file: File, told: Mapping[str, Any]) -> Iterator[StoredTensor]:
    """The planned tensors under their plan names, then every other constant once."""
    raws, seen, floats, biases = program_constants(file), set(), {}, {}
    for name, entry in told.get("tensors", {}).items():
        biases |= {(held["codes"], held["scales"]): held["bias"] for held in entry.get("native", ())}
        if entry["placement"] == "float":
            floats[entry["file_name"]] = name, entry["reason"]
        elif entry["parts"]:
            seen |= set(entry["parts"].values())
            yield small_tensor(name, {"tables": {}, "high_first": False, **entry}, raws)
        else:
            yield from native(file, name, entry, seen)
    for value in file.values:
        if value.key and value.key not in seen:
            seen |= {value.key, value.scales}
            name, reason = floats.get(value.key, (value.key, "")) if value.dtype != "int32" else (biases.get(value.weight) or value.key, "")
            yield other(value, file.blobs, name, reason)
    for key, raw in raws.items():
        if key not in seen:
            name, reason = floats.get(key, (key, ""))
            facts = spread(raw.value) if raw.dtype == "float32" else {}
            yield StoredTensor(name, key, raw.shape, raw.dtype, "float", reason, raw.nbytes, **facts)


def native(file: File, name: str, entry: Mapping[str, Any], seen: set[str]) -> Iterator[StoredTensor]:
    """A planned tensor that XNNPACK computes with; nothing where a layer does not read its codes with its scales."""
    fmt, shape = FORMAT.validate_python(entry["format"]), tuple(entry["shape"])
    dtype = dtype_name(fmt)
    found = {(value.key, value.scales) for value in file.values if value.quantized and value.dtype == dtype}
    if not entry["native"] or not found.issuperset((held["codes"], held["scales"]) for held in entry["native"]):
        return
    for key in (held[part] for held in entry["native"] for part in ("codes", "scales")):
        if hashlib.sha256(file.blobs[key]).hexdigest() != key.removeprefix("scale_"):
            raise ValueError(f"the bytes of {name} are not those that their name tells")
    sizes = [sum(len(file.blobs[key]) for key in {held[part] for held in entry["native"]} - seen) for part in ("codes", "scales")]
    seen |= {held[part] for held in entry["native"] for part in ("codes", "scales")}
    held = entry["native"][0]
    codes, scales = codes_of(file.blobs[held["codes"]], fmt, shape, tuple(held["axes"])), scales_of(file.blobs[held["scales"]], fmt, shape)
    yield StoredTensor(name, held["codes"], shape, dtype, entry["placement"], entry["reason"], *sizes, codes=codes, scales=scales)


def codes_of(data: bytes, fmt: IntFormat, shape: tuple[int, ...], axes: tuple[int, ...]) -> np.ndarray:
    """int8 codes in canonical layout."""
    if fmt.bits == 4:
        return unpacked(np.frombuffer(data, np.uint8).reshape(shape[0], -1), shape[1])
    stored = np.frombuffer(data, np.int8).reshape([shape[axis] for axis in axes])
    return stored.transpose(np.argsort(axes)).copy(order="C")  # the file's bytes are not kept


def unpacked(data: np.ndarray, columns: int) -> np.ndarray:
    """int8 [rows, columns] of bytes that hold the first of two codes in the low nibble, and 8 added to each."""
    return np.stack([data & 15, data >> 4], -1).reshape(len(data), -1)[:, :columns].astype(np.int8) - 8


def scales_of(data: bytes, fmt: IntFormat, shape: tuple[int, ...]) -> np.ndarray:
    """float32 like Encoded.scales."""
    if isinstance(fmt.granularity, PerGroup):
        return (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(shape[0], -1)
    scales = np.frombuffer(data, np.float32)
    repeated = isinstance(fmt.granularity, PerTensor) and np.all(scales == scales[0])
    return scales[0] if repeated else scales


def other(value: Value, blobs: Mapping[str, bytes], name: str, reason: str) -> StoredTensor:
    """A constant of XNNPACK that the plan says nothing of, in XNNPACK's own layout: a bias, a float weight, or one of another program's file."""
    data, scales = blobs[value.key], blobs.get(value.scales, b"")
    if value.dtype == "float32":
        return StoredTensor(name, value.key, value.shape, value.dtype, "float", reason, len(data), **spread(np.frombuffer(data, np.float32)))
    placement = "native" if value.quantized else "float"
    return StoredTensor(name, value.key, value.shape, value.dtype, placement, reason, len(data), len(scales))
