"""Reads .pt2 archives of torch.export as what they are, a zip of JSON and raw tensors; nothing is unpickled and torch is not needed."""

import json
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compress.artifact import Contents, StoredTensor, spread
from compress.errors import BrokenFile
from compress.formats import CodebookFormat, FloatFormat, Format, PerTensor
from compress.network import InputSpec
from compress.numerics.codebooks import levels
from compress.numerics.layouts import swap_nibbles
from compress.numerics.storing import FORMAT, from_arrays

METADATA_FILE = "compresskit.json"
DTYPES = {  # torch's serialized scalar types (torch/_export/serde/schema.py): name, and how NumPy reads the bytes
    1: ("uint8", np.uint8),
    2: ("int8", np.int8),
    3: ("int16", np.int16),
    4: ("int32", np.int32),
    5: ("int64", np.int64),
    6: ("float16", np.float16),
    7: ("float32", np.float32),
    8: ("float64", np.float64),
    12: ("bool", np.bool_),
    13: ("bfloat16", np.uint16),
    28: ("uint16", np.uint16),
    29: ("float8_e4m3fn", np.uint8),
    33: ("float8_e8m0fnu", np.uint8),
}


@dataclass(frozen=True, eq=False)
class Raw:
    """A constant of the archive. `record` tells tensors that share storage."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    record: str
    nbytes: int
    value: np.ndarray | None  # None where it is pickled or of an unknown dtype


def read(path: Path) -> Contents:
    """What a .pt2 file holds, whoever wrote it. BrokenFile for one that is damaged or of another kind."""
    try:
        with zipfile.ZipFile(path) as archive:
            if bad := archive.testzip():
                raise BrokenFile(f"{path.name}: {bad} is damaged")
            return contents_of(archive, path.name)
    except (zipfile.BadZipFile, OSError, EOFError, KeyError, IndexError, TypeError, ValueError, json.JSONDecodeError) as error:
        if isinstance(error, BrokenFile | FileNotFoundError):
            raise
        raise BrokenFile(f"{path.name} is no readable .pt2 archive: {error}") from error


def contents_of(archive: zipfile.ZipFile, file_name: str) -> Contents:
    names = archive.namelist()
    model = next((name for name in names if "/models/" in name and name.endswith(".json")), None)
    if model is None:
        raise BrokenFile(f"{file_name} holds no exported program; .pt2 files of torch before 2.8 and compiled packages are not read")
    folder, _, leaf = model.partition("/models/")
    program = json.loads(archive.read(model))["graph_module"]
    extra = f"{folder}/extra/{METADATA_FILE}"
    told = json.loads(archive.read(extra)) if extra in names else {}
    raws = {}
    for kind in ("weights", "constants"):
        config = json.loads(archive.read(f"{folder}/data/{kind}/{leaf.removesuffix('.json')}_{kind}_config.json"))["config"]
        raws |= {name: raw(archive, f"{folder}/data/{kind}", name, entry) for name, entry in config.items()}
    operators = Counter(operator_name(node["target"]) for node in program["graph"]["nodes"])
    inputs, outputs = signature(program, told)
    ranges = operators["quantized_decomposed.quantize_per_tensor"]
    return Contents("pt2", inputs, outputs, tuple(tensors(raws, told)), dict(operators), told, ranges)


def operator_name(target: str) -> str:
    return target.removeprefix("torch.ops.").removesuffix(".default")


def raw(archive: zipfile.ZipFile, folder: str, name: str, entry: Mapping[str, Any]) -> Raw:
    record, meta = f"{folder}/{entry['path_name']}", entry["tensor_meta"]
    size = archive.getinfo(record).file_size
    if entry["use_pickle"] or meta is None or meta["dtype"] not in DTYPES:
        return Raw(name, "pickled", (), record, size, None)
    dtype, numpy_type = DTYPES[meta["dtype"]]
    shape, strides = (tuple(n["as_int"] for n in meta[key]) for key in ("sizes", "strides"))
    start = meta["storage_offset"]["as_int"]
    flat = np.frombuffer(archive.read(record), numpy_type)
    reach = start + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) + 1
    if 0 not in shape and (reach > flat.size or min((start, *strides)) < 0):
        raise BrokenFile(f"{name}: its record holds {flat.size} values, its layout reaches {reach}")
    value = np.lib.stride_tricks.as_strided(flat[start:], shape, [s * flat.itemsize for s in strides]).copy()
    return Raw(name, dtype, shape, record, size, value)


def signature(program: Mapping[str, Any], told: Mapping[str, Any]) -> tuple[tuple[InputSpec, ...], tuple[InputSpec, ...]]:
    values = program["graph"]["tensor_values"]

    def spec(name: str, given: str) -> InputSpec:
        meta = values[name]
        return InputSpec(given, tuple(n.get("as_int", -1) for n in meta["sizes"]), DTYPES[meta["dtype"]][0], name)

    inputs = [name for entry in program["signature"]["input_specs"] if (name := tensor_name(entry, "user_input"))]
    outputs = [name for entry in program["signature"]["output_specs"] if (name := tensor_name(entry, "user_output"))]
    given = [name for name, _, _ in told.get("inputs", [])] or inputs
    return tuple(spec(name, as_named) for name, as_named in zip(inputs, given, strict=True)), tuple(spec(name, name) for name in outputs)


def tensor_name(entry: Mapping[str, Any], kind: str) -> str | None:
    return entry[kind]["arg"]["as_tensor"]["name"] if kind in entry and "as_tensor" in entry[kind]["arg"] else None


def tensors(raws: Mapping[str, Raw], told: Mapping[str, Any]):
    """The planned tensors under their plan names, then every other constant once."""
    seen = set()
    for name, entry in told.get("tensors", {}).items():
        if entry["placement"] != "float":
            seen |= set(entry["parts"].values())
            yield small_tensor(name, entry, raws)
    float_names = {entry["file_name"]: (name, entry["reason"]) for name, entry in told.get("tensors", {}).items() if entry["placement"] == "float"}
    records = set()
    for item in raws.values():
        if item.name in seen or item.record in records:
            continue
        records.add(item.record)
        name, reason = float_names.get(item.name, (item.name, ""))
        foreign = not told and item.dtype in ("int8", "uint8", "float16", "bfloat16", "pickled")
        reason = "not written by compresskit: how its operators use it is not known" if foreign else reason
        facts = spread(item.value) if item.dtype == "float32" else {}
        yield StoredTensor(name, item.name, item.shape, item.dtype, "decoded" if foreign else "float", reason, item.nbytes, **facts)


def small_tensor(name: str, entry: Mapping[str, Any], raws: Mapping[str, Raw]) -> StoredTensor:
    """A planned tensor in canonical layout. BrokenFile where the table behind its scales is not the one that its format names."""
    fmt, shape = FORMAT.validate_python(entry["format"]), tuple(entry["shape"])
    parts = {part: raws[target] for part, target in entry["parts"].items()}
    if "scales" in entry["tables"] and not np.array_equal(raws[entry["tables"]["scales"]].value, levels("dynamic8").values):
        raise BrokenFile(f"{name}: {entry['tables']['scales']} is not the table of its scales")
    encoded = from_arrays(arrays(parts, fmt, entry["high_first"]), fmt, shape)
    table = raws[entry["tables"]["codes"]].value if "codes" in entry["tables"] else parts["codebook"].value if "codebook" in parts else None
    scales = encoded.scales if encoded.global_scale is None else encoded.scales * encoded.global_scale
    zeros, size = encoded.zero_points, {part: raw.nbytes for part, raw in parts.items()}
    if "zero_points" in parts and zeros is None:
        zeros = parts["zero_points"].value
    return StoredTensor(
        name,
        entry["file_name"],
        shape,
        dtype_name(fmt),
        entry["placement"],
        entry["reason"],
        payload_bytes=size.pop("codes"),
        zero_point_bytes=size.pop("zero_points", 0),
        scale_bytes=sum(size.values()),
        codes=encoded.codes,
        scales=scales,
        zero_points=zeros if zeros is not None and zeros.any() else None,
        codebook=table if encoded.codebook is None else encoded.codebook,
    )


def dtype_name(fmt: Format) -> str:
    if isinstance(fmt, FloatFormat):
        return fmt.dtype
    return f"{'uint' if isinstance(fmt, CodebookFormat) or not fmt.signed else 'int'}{fmt.bits}"


def arrays(parts: Mapping[str, Raw], fmt: Format, high_first: bool) -> dict[str, np.ndarray]:
    """What `from_arrays` reads, of what operators read."""
    found = {part: np.atleast_1d(raw.value) for part, raw in parts.items()}
    if high_first:
        found["codes"] = swap_nibbles(found["codes"].ravel())
    if isinstance(fmt, FloatFormat):
        return found
    if not isinstance(fmt, CodebookFormat) and fmt.symmetric:
        found.pop("zero_points", None)  # of a kernel that wants them although they are 0
    one = isinstance(fmt.granularity, PerTensor)
    if one and "scales" in found and np.all(found["scales"] == found["scales"][0]):
        found["scales"] = found["scales"][:1]  # a kernel wants it repeated for every channel
    return found
