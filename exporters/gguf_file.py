"""GGUF files as tensors: Q4_0, Q4_1 and Q8_0 blocks, half floats, float32."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from compress.artifact import Contents, StoredTensor
from compress.errors import BrokenFile, InputError, MissingExtra
from compress.formats import FloatFormat, Format, IntFormat, PerGroup
from compress.network import InputSpec
from compress.numerics import Encoded
from compress.numerics.layouts_blocks import BLOCK_LAYOUTS
from exporters.gguf_llama import row_order

METADATA_KEY = "compresskit.metadata"
BLOCK = 32
FLOATS = {"float16": "F16", "bfloat16": "BF16"}


def type_of(fmt: Format) -> str | None:
    """ggml's type of a format; None where it has none."""
    if isinstance(fmt, FloatFormat):
        return FLOATS[fmt.dtype]
    if not isinstance(fmt, IntFormat) or not isinstance(fmt.granularity, PerGroup) or fmt.granularity.size != BLOCK or fmt.scale_dtype != "float16":
        return None
    if fmt.symmetric:
        return {4: "Q4_0", 8: "Q8_0"}.get(fmt.bits) if fmt.signed else None
    return "Q4_1" if fmt.bits == 4 and not fmt.signed and fmt.zero_point == "offset" else None


def to_bytes(encoded: Encoded, heads: int | None) -> np.ndarray:
    """uint8 [rows, bytes of a row]: the tensor in its type."""
    order = slice(None) if heads is None else row_order(encoded.shape[0], heads)
    codes = encoded.codes[order]
    if isinstance(encoded.format, FloatFormat):
        return np.ascontiguousarray(codes).view(np.uint8)
    layout = BLOCK_LAYOUTS[f"gguf_{type_of(encoded.format).lower()}"]
    scales, minimums = (None if part is None else part[order].astype(np.float16).ravel() for part in (encoded.scales, encoded.zero_points))
    return layout.pack(codes.reshape(-1, BLOCK), scales, minimums).reshape(len(codes), -1)


def library() -> Any:
    """The gguf package; MissingExtra where it is not installed."""
    try:
        import gguf
    except ModuleNotFoundError as error:
        raise MissingExtra("GGUF files need gguf, which is not installed: pip install 'compresskit[checkpoints]'") from error
    return gguf


def read_contents(path: Path) -> Contents:
    """What a .gguf file holds, whoever wrote it. BrokenFile for one that is damaged."""
    gguf = library()
    try:
        reader = gguf.GGUFReader(path)
        field = reader.get_field(METADATA_KEY)
        told = json.loads(field.contents()) if field else {}
        tensors = tuple(stored_tensors(reader, told))
    except (ValueError, KeyError, IndexError, TypeError, OverflowError, InputError) as error:
        raise BrokenFile(f"{path.name}: truncated, or not a GGUF file: {error}") from error
    inputs = tuple(InputSpec(name, tuple(shape), dtype) for name, shape, dtype in told.get("inputs", []))
    return Contents("gguf", inputs, (), tensors, {}, told)


def stored_tensors(reader: Any, told: dict[str, Any]):
    """The planned tensors, then every other one."""
    found = {tensor.name: tensor for tensor in reader.tensors}
    for tensor in found.values():
        if tensor.data.nbytes != tensor.n_bytes:
            raise ValueError(f"{tensor.name} has {tensor.data.nbytes} of {tensor.n_bytes} bytes")
    entries = {entry["file_name"]: (name, entry) for name, entry in told.get("tensors", {}).items()}
    for file_name, tensor in found.items():
        name, entry = entries.get(file_name, (file_name, {"placement": "float", "reason": "", "heads": None}))
        kind = tensor.tensor_type.name
        if kind == "F32" or (kind in FLOATS.values() and entry["placement"] == "float"):
            yield StoredTensor(name, file_name, shape(tensor), kind, "float", entry["reason"], tensor.n_bytes)
        elif entry["placement"] == "float":
            yield StoredTensor(name, file_name, shape(tensor), kind, "decoded", "not written by compresskit: its blocks are not read", tensor.n_bytes)
        else:
            yield small_tensor(name, entry, tensor)


def shape(tensor: Any) -> tuple[int, ...]:
    return tuple(int(n) for n in reversed(tensor.shape))


def small_tensor(name: str, entry: dict[str, Any], tensor: Any) -> StoredTensor:
    """A planned tensor, its rows in the network's order again."""
    kind, rows = tensor.tensor_type.name, shape(tensor)[0]
    order = slice(None) if entry["heads"] is None else np.argsort(row_order(rows, entry["heads"]))
    about = (name, tensor.name, shape(tensor), kind, entry["placement"], entry["reason"])
    data = np.ascontiguousarray(tensor.data)
    if kind in FLOATS.values():
        codes = data.view(np.float16 if kind == "F16" else np.uint16).reshape(shape(tensor))
        return StoredTensor(*about, data.nbytes, codes=codes[order])
    layout = BLOCK_LAYOUTS[f"gguf_{kind.lower()}"]
    codes, scales, minimums = layout.unpack(data.reshape(-1, layout.nbytes))
    halves = {"scales": scales, "zero_points": minimums}
    arrays = {part: None if half is None else half.astype(np.float32).reshape(rows, -1)[order] for part, half in halves.items()}
    zero_bytes = 0 if minimums is None else minimums.nbytes
    payload = data.nbytes - scales.nbytes - zero_bytes
    return StoredTensor(*about, payload, scales.nbytes, zero_bytes, codes=codes.reshape(shape(tensor))[order], **arrays)
