"""The ONNX standard's own reference implementation of its operators."""

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from compress.conformance.matrix import CannotTake
from compress.conformance.peers import Claim
from compress.conformance.peers.onnx_operators import ROUNDED_FIRST, dynamic, quantize

PACKAGE = "onnx"


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    try:
        onnx.checker.check_model(model, full_check=True)
    except onnx.shape_inference.InferenceError as error:
        raise CannotTake(str(error).splitlines()[-1]) from error
    return ReferenceEvaluator(model).run(None, feeds)


HALF = {"arithmetic": "float16"}
CLAIMS = (
    Claim("onnx.qdq.int8", "QuantizeLinear at our scales", quantize(run, "onnx.qdq.int8"), half=HALF),
    Claim("onnx.qdq.int4.block32", "QuantizeLinear at our scales", quantize(run, "onnx.qdq.int4.block32"), half=HALF),
    Claim("onnx.dynamic.uint8", "DynamicQuantizeLinear", dynamic(run), ROUNDED_FIRST),
)
