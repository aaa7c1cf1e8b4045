"""gguf, whose quantize is bit-equal to llama.cpp's reference."""

import numpy as np
from gguf import GGMLQuantizationType, quants

from compress.conformance.matrix import CannotTake, Theirs
from compress.conformance.peers import Claim

PACKAGE = "gguf"


def blocks(kind: str, header: int):
    """`header` bytes of scales lead each block of 32."""
    quantization = GGMLQuantizationType[kind]

    def ask(values: np.ndarray) -> Theirs:
        try:
            data = quants.quantize(values.astype(np.float32), quantization)
        except (ValueError, quants.QuantError) as error:
            raise CannotTake(str(error)) from error
        body = data.reshape(values.size // 32, -1)[:, header:]
        return Theirs(codes_of(body, kind).reshape(values.shape), quants.dequantize(data, quantization))

    return ask


def codes_of(body: np.ndarray, kind: str) -> np.ndarray:
    if kind == "Q8_0":
        return body.view(np.int8)
    halves = np.concatenate([body & 15, body >> 4], 1).astype(np.int8)
    return halves - 8 if kind == "Q4_0" else halves


SHIFTED = "It adds 8.5 in float32 and truncates, this project adds 0.5"
CLAIMS = (
    Claim("gguf.q8_0", "quants.quantize Q8_0", blocks("Q8_0", 2)),
    Claim("gguf.q4_0", "quants.quantize Q4_0", blocks("Q4_0", 2), SHIFTED),
    Claim("gguf.q4_1", "quants.quantize Q4_1", blocks("Q4_1", 4)),
)
