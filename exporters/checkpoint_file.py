"""safetensors files as arrays of their own dtypes, bfloat16 and 8-bit floats included. Needs no framework."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compress.errors import BrokenFile

DTYPES = {  # safetensors' names: what its writer calls them, and how NumPy holds them (bfloat16 and small floats as bit patterns)
    "F64": ("float64", np.float64),
    "F32": ("float32", np.float32),
    "F16": ("float16", np.float16),
    "BF16": ("bfloat16", np.uint16),
    "F8_E4M3": ("float8_e4m3fn", np.uint8),
    "F8_E5M2": ("float8_e5m2", np.uint8),
    "I64": ("int64", np.int64),
    "I32": ("int32", np.int32),
    "I16": ("int16", np.int16),
    "I8": ("int8", np.int8),
    "U8": ("uint8", np.uint8),
    "BOOL": ("bool", np.bool_),
}


@dataclass(frozen=True, eq=False)
class Raw:
    """A tensor of the file; `dtype` is safetensors' name of it."""

    dtype: str
    value: np.ndarray

    @property
    def name(self) -> str:
        return DTYPES[self.dtype][0] if self.dtype in DTYPES else self.dtype.lower()

    @classmethod
    def of(cls, value: np.ndarray, dtype: str = "") -> "Raw":
        """An array under the dtype that NumPy gives it, or bit patterns under the one that is named."""
        plain = {np.dtype(held): name for name, (written, held) in DTYPES.items() if np.dtype(held).name == written}
        return cls(dtype or plain[value.dtype], np.ascontiguousarray(value).reshape(value.shape))


def write_file(path: Path, tensors: dict[str, Raw], metadata: dict[str, str]) -> None:
    from safetensors import TensorSpec, serialize_file

    specs = {
        name: TensorSpec(dtype=DTYPES[raw.dtype][0], shape=raw.value.shape, data_ptr=raw.value.ctypes.data, data_len=raw.value.nbytes)
        for name, raw in tensors.items()
    }
    serialize_file(specs, path, metadata)


def read_file(path: Path) -> tuple[dict[str, Raw], dict[str, str]]:
    """Every tensor and the metadata. BrokenFile for a file that is truncated or of another kind."""
    from safetensors import SafetensorError, deserialize

    data = path.read_bytes()
    try:
        found = deserialize(data)
    except SafetensorError as error:
        raise BrokenFile(f"{path.name}: truncated, or not a safetensors file: {error}") from error
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return {name: raw(entry) for name, entry in found}, header.get("__metadata__", {})


def raw(entry: dict) -> Raw:
    """Dtypes that NumPy cannot hold are seen as bytes."""
    known = entry["dtype"] in DTYPES
    flat = np.frombuffer(entry["data"], DTYPES[entry["dtype"]][1] if known else np.uint8)
    return Raw(entry["dtype"], flat.reshape(entry["shape"]) if known else flat)
