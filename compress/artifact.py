"""What an exporter returns and a runtime loads: the file, what it was seen to hold, and where its bytes go."""

import hashlib
import zlib
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np

from compress.network import InputSpec

Placement = Literal["native", "decoded", "simulated", "float"]
"""How a runtime computes with a stored weight.

native      a kernel computes in that format
decoded     stored small, expanded to float at load or run time
simulated   float values on the format's grid: no smaller, no faster
float       untouched
"""


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor as read from a file: codes, scales, zero points and codebook in canonical layout, None where it is plain float."""

    name: str  # the plan's name where the file carries one, else the file's own
    file_name: str  # the file's own name of the tensor
    shape: tuple[int, ...]
    dtype: str  # as stored: "int4", "int8", "float16", "float32", ...
    placement: Placement
    reason: str = ""  # why it is decoded, simulated or float although the plan wanted it native
    payload_bytes: int = 0
    scale_bytes: int = 0  # scales and codebooks of this tensor alone
    zero_point_bytes: int = 0
    codes: np.ndarray | None = field(default=None, repr=False)
    scales: np.ndarray | None = field(default=None, repr=False)  # float32 like Encoded.scales, times its global scale where it has one
    zero_points: np.ndarray | None = field(default=None, repr=False)  # like scales; None where every zero point is 0
    codebook: np.ndarray | None = field(default=None, repr=False)  # float32 like Encoded.codebook, or [entries] of a table with a name that the file holds
    values: np.ndarray | None = field(default=None, repr=False)  # float32 in canonical layout, of a weight without format whose zeros the file leaves out
    filled_in: bool = False  # whether the file leaves zeros out, which the runtime fills in when it loads the file
    zeros: float | None = None  # share of the values that are 0; None where the file's values are not looked at
    distinct: int | None = None  # different values of a float tensor, or codes in use; None where they are more than 256

    @property
    def size_bytes(self) -> int:
        return self.payload_bytes + self.scale_bytes + self.zero_point_bytes


def spread(values: np.ndarray) -> dict[str, Any]:
    """`zeros` and `distinct` of a float tensor."""
    flat = values.ravel()
    many = len(np.unique(flat[:1024])) > 256 or len(found := np.unique(flat)) > 256
    return {"zeros": float((flat == 0).mean()) if flat.size else None, "distinct": None if many else len(found)}


def codes_in_use(codes: np.ndarray) -> int | None:
    """How many different codes there are, None for more than 256."""
    if codes.dtype.itemsize == 1:
        used = np.zeros(256, bool)
        used[codes.ravel().view(np.uint8)] = True
        return int(used.sum())
    return spread(codes)["distinct"]


def counted(tensor: StoredTensor) -> StoredTensor:
    """The tensor with `zeros` and `distinct` from its codes, where it has some."""
    codes = tensor.codes
    if codes is None or tensor.zeros is not None or not codes.size or codes.dtype.kind not in "iu":
        return tensor
    used = codes_in_use(codes)
    if tensor.codebook is not None:
        zero = tensor.codebook[codes] == 0 if tensor.codebook.ndim == 1 else None
    elif tensor.zero_points is None:
        return replace(tensor, zeros=1 - np.count_nonzero(codes) / codes.size, distinct=used)
    else:
        zero = codes == tensor.zero_points if tensor.zero_points.ndim == 0 else None
    return replace(tensor, zeros=None if zero is None else float(zero.mean()), distinct=used)


@dataclass(frozen=True)
class Ledger:
    """Where the bytes of a file go; the parts add up to `file_bytes`."""

    file_bytes: int
    payload: int  # codes and half floats of compressed weights
    scales: int
    zero_points: int
    float_bytes: int  # tensors left in float32: biases, norms, layers that no step selects
    graph: int  # all the rest: operators, names, activation ranges, metadata, padding

    @classmethod
    def of(cls, path: Path, tensors: tuple[StoredTensor, ...]) -> "Ledger":
        size = path.stat().st_size
        small = [t for t in tensors if t.placement in ("native", "decoded")]
        parts = {
            "payload": sum(t.payload_bytes for t in small),
            "scales": sum(t.scale_bytes for t in small),
            "zero_points": sum(t.zero_point_bytes for t in small),
            "float_bytes": sum(t.size_bytes for t in tensors if t.placement in ("float", "simulated")),
        }
        return cls(size, **parts, graph=size - sum(parts.values()))


def in_memory(tensors: tuple[StoredTensor, ...]) -> dict[str, int]:
    """Bytes of compressed weights once a file is loaded and has run, scales aside: what a kernel reads as it is stored, and what was expanded for it."""
    native = [t for t in tensors if t.placement == "native"]
    return {
        "as in the file": sum(t.payload_bytes for t in native if not t.filled_in),
        "with their zeros filled in": sum(prod(t.shape) for t in native if t.filled_in),  # integers of 8 bits
        "expanded to float32, if not row by row": sum(4 * prod(t.shape) for t in tensors if t.placement == "decoded"),
    }


@dataclass(frozen=True)
class Contents:
    """What `read` of an exporter finds in a file, whoever wrote it."""

    format: str  # "tflite", "onnx", "pt2", "safetensors" or "gguf"
    inputs: tuple[InputSpec, ...]  # in the network's order, under the network's names where the file carries them
    outputs: tuple[InputSpec, ...]
    tensors: tuple[StoredTensor, ...]  # constants
    operators: dict[str, int]  # operator name to count
    metadata: dict  # what compresskit wrote into the file (see exporters.metadata), {} for other files
    activation_ranges: int = 0  # tensors with static activation quantization
    delegates: dict[str, str] = field(default_factory=dict)  # by name: what each would take of the operators, and what not, by its rules


@dataclass(frozen=True)
class Artifact:
    """A file that a runtime loads. `tensors` is the plan as read back from that very file."""

    path: Path
    exporter: str
    recipe: str
    recipe_id: str
    contents: Contents
    ledger: Ledger
    notes: tuple[str, ...]  # what the exporter did its own way, and what stayed in float with the reason
    sha256: str

    def without_codes(self) -> "Artifact":
        """The same facts without the arrays: what crosses to a measuring process."""
        tensors = tuple(replace(t, codes=None, scales=None, zero_points=None, codebook=None, values=None) for t in self.tensors)
        return replace(self, contents=replace(self.contents, tensors=tensors))

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        return self.contents.tensors


def deflated_bytes(path: Path) -> int:
    """Bytes of the file after zlib's level 9: about what a user of an app downloads. Takes half a second for 20 MB."""
    return len(zlib.compress(path.read_bytes(), 9))


def file_hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
