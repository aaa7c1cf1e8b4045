"""The libraries that own presets, one file each.

A peer is a module with `PACKAGE`, the distribution whose version is told, and `CLAIMS`: what it computes, asked of the live library.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from compress.conformance.matrix import Theirs
from compress.formats import Format
from compress.presets import preset
from compress.registry import Entry, Registry


@dataclass(frozen=True)
class Claim:
    """A preset, and the library's own function that computes it.

    ask      values [out, in] to what the library makes of them; CannotTake with the reason where it refuses
    how      the function, by its name in the library; (preset, how) is one row of the matrix
    reason   why the answers are not ours, where they are not
    changes  fields of the preset's format that this function has otherwise
    half     such fields for float16 vectors, where the library computes in its input's dtype
    """

    preset: str
    how: str
    ask: Callable[[np.ndarray], Theirs]
    reason: str = ""
    changes: dict[str, Any] = field(default_factory=dict)
    half: dict[str, Any] = field(default_factory=dict)

    @property
    def told(self) -> str:
        """The reason, and what the answers are compared with instead of the preset itself."""
        sides = (("Compared", self.changes), ("Float16 vectors are compared", self.half))
        said = [f"{what} with {', '.join(f'{name} {value}' for name, value in fields.items())}" for what, fields in sides if fields]
        return ". ".join([*filter(None, [self.reason]), *said])

    def format(self, dtype: np.dtype) -> Format:
        """What the answer for values of a dtype is compared with."""
        return replace(preset(self.preset).format, **self.changes | (self.half if dtype == np.float16 else {}))


PEERS = Registry(
    "peer",
    {
        "bitsandbytes": Entry("compress.conformance.peers.bnb", "peers"),
        "torchao": Entry("compress.conformance.peers.torch_ao", "torch"),
        "compressed-tensors": Entry("compress.conformance.peers.vllm", "peers"),
        "gguf": Entry("compress.conformance.peers.llama_cpp", "peers"),
        "hqq": Entry("compress.conformance.peers.half_quadratic", "peers"),
        "optimum-quanto": Entry("compress.conformance.peers.quanto", "peers"),
        "torch": Entry("compress.conformance.peers.fake_quantize", "torch"),
        "onnxruntime": Entry("compress.conformance.peers.ort", "onnx"),
        "onnx": Entry("compress.conformance.peers.onnx_reference", "onnx"),
        "litert-quantizer": Entry("compress.conformance.peers.litert", "tensorflow"),
        "tensorflow": Entry("compress.conformance.peers.tflite_converter", "tensorflow"),
    },
)
