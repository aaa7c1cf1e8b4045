"""litert-quantizer on a .tflite file of one fully connected layer, decoded by LiteRT itself."""

import numpy as np
from litert_quantizer import qtyping, quantizer

from compress.conformance.matrix import CannotTake, Theirs
from compress.conformance.peers import Claim
from compress.conformance.peers.tflite_model import decoded, dense, stored_codes

PACKAGE = "litert-quantizer"


def channels(bits: int):
    """Weights alone, which the file's own DEQUANTIZE expands."""

    def ask(values: np.ndarray) -> Theirs:
        data, codes, _ = quantized(values, "add_weight_only_config", bits, CHANNEL)
        return Theirs(codes, decoded(data, values.shape))

    return ask


def blocks(values: np.ndarray) -> Theirs:
    """For a kernel that rounds the activations too: decoded as the file states it, code times scale."""
    _, codes, scales = quantized(values, "add_dynamic_config", 4, BLOCK)
    return Theirs(codes, (codes.reshape(-1, 32) * scales.reshape(-1, 1)).astype(np.float32))


def quantized(values: np.ndarray, way: str, bits: int, granularity) -> tuple[bytes, np.ndarray, np.ndarray]:
    tool = quantizer.Quantizer(dense(values))
    try:
        getattr(tool, way)(".*", qtyping.TFLOperationName.FULLY_CONNECTED, bits, granularity)
        data = tool.quantize().quantized_model
    except (ValueError, RuntimeError) as error:
        raise CannotTake(str(error).splitlines()[0][:120]) from error
    found = stored_codes(data, values.size)
    if found is None:
        raise CannotTake("the weight is left in float")
    return data, *found


CHANNEL, BLOCK = qtyping.QuantGranularity.CHANNELWISE, qtyping.QuantGranularity.BLOCKWISE_32
CLAIMS = (
    Claim("tflite.int8.weight", "add_weight_only_config, 8 bits, CHANNELWISE", channels(8)),
    Claim("tflite.int4.channel", "add_weight_only_config, 4 bits, CHANNELWISE", channels(4)),
    Claim("tflite.int4.block32", "add_dynamic_config, 4 bits, BLOCKWISE_32", blocks),
)
