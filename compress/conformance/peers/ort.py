"""ONNX Runtime: its quantization tools, its operators, and what its kernels decode to (a product with the identity)."""

import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidGraph
from onnxruntime.quantization import QuantType, quantize_static
from onnxruntime.quantization.matmul_bnb4_quantizer import MatMulBnb4Quantizer
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, DefaultWeightOnlyQuantizer

from compress.conformance.matrix import CannotTake, Theirs
from compress.conformance.peers import Claim
from compress.conformance.peers.onnx_operators import ROUNDED_FIRST, dynamic, model_of, quantize

PACKAGE = "onnxruntime"


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except InvalidGraph as error:
        raise CannotTake(str(error).split("Error: ")[-1]) from error
    return session.run(None, feeds)


def product(values: np.ndarray, op: str, constants: dict[str, np.ndarray], **attributes) -> np.ndarray:
    """What a weight-only product's kernel decodes [out, in]: the transposed product of the identity [in, in]."""
    out, inputs = values.shape
    node = helper.make_node(op, ["x", *constants], ["y"], domain="com.microsoft", K=inputs, N=out, **attributes)
    kind = helper.np_dtype_to_tensor_dtype(values.dtype)
    model = model_of([node], {"x": (kind, [inputs, inputs])}, {"y": (kind, [inputs, out])}, constants)
    return run(model, {"x": np.eye(inputs, dtype=values.dtype)})[0].T


def matmul_nbits(bits: int, symmetric: bool):
    tool = DefaultWeightOnlyQuantizer(DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=symmetric, bits=bits))

    def ask(values: np.ndarray) -> Theirs:
        packed, scales, zeros = tool.qbits_block_quant(np.ascontiguousarray(values.T))
        blobs = packed.reshape(len(values), -1)
        codes = np.stack([blobs & 15, blobs >> 4], -1).reshape(len(values), -1) if bits == 4 else blobs
        codes = codes[:, : values.shape[1]].astype(int) - (1 << (bits - 1) if symmetric else 0)
        constants = {"b": packed, "scales": scales, **({} if symmetric else {"zeros": zeros})}
        return Theirs(codes, product(values, "MatMulNBits", constants, bits=bits, block_size=32))

    return ask


def bnb4(kind: int):
    tool = MatMulBnb4Quantizer(helper.make_model(helper.make_graph([], "g", [], [])), kind, 64)

    def ask(values: np.ndarray) -> Theirs:
        packed, amax = tool.bnb4_block_quant(values.T)
        codes = np.stack([packed >> 4, packed & 15], 1).ravel()[: values.size]
        return Theirs(codes, product(values, "MatMulBnb4", {"b": packed, "amax": amax}, block_size=64, quant_type=kind))

    return ask


class Once:
    """Calibration data of one zero sample."""

    def __init__(self, size: int, dtype):
        self.feeds = iter([{"x": np.zeros((1, size), dtype)}])

    def get_next(self):
        return next(self.feeds, None)


def static(values: np.ndarray) -> Theirs:
    """The weight of a MatMul that quantize_static wrote, decoded by a DequantizeLinear of the same numbers."""
    out, inputs = values.shape
    kind = helper.np_dtype_to_tensor_dtype(values.dtype)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    model = model_of([node], {"x": (kind, [1, inputs])}, {"y": (kind, [1, out])}, {"w": np.ascontiguousarray(values.T)})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "q.onnx"
        quantize_static(model, path, Once(inputs, values.dtype), per_channel=True, weight_type=QuantType.QInt8, activation_type=QuantType.QUInt8)
        found = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    if "w_quantized" not in found:
        raise CannotTake("quantize_static left the weight in float")
    decode = helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], axis=1)
    constants = {"q": found["w_quantized"], "s": found["w_scale"], "z": found["w_zero_point"]}
    decoded = run(model_of([decode], {}, {"y": (kind, [inputs, out])}, constants), {})[0]
    return Theirs(found["w_quantized"].T, decoded.T)


ADDED_FIRST = "It adds 2^(bits-1) in float32 before it rounds"
HALF_SCALES = {"scale_dtype": "float16"}
CLAIMS = (
    Claim("onnx.qdq.int8", "quantize_static, per channel", static, half=HALF_SCALES),
    Claim("onnx.qdq.int8", "QuantizeLinear at our scales", quantize(run, "onnx.qdq.int8"), half=HALF_SCALES),
    Claim("onnx.qdq.int4.block32", "QuantizeLinear at our scales", quantize(run, "onnx.qdq.int4.block32"), half=HALF_SCALES),
    Claim("onnx.dynamic.uint8", "DynamicQuantizeLinear", dynamic(run), ROUNDED_FIRST),
    Claim("ort.matmulnbits.int4", "MatMulNBits quantizer, symmetric", matmul_nbits(4, True), ADDED_FIRST),
    Claim("ort.matmulnbits.uint4", "MatMulNBits quantizer, asymmetric", matmul_nbits(4, False), half=HALF_SCALES | {"small_scale": "one"}),
    Claim("ort.matmulnbits.int8", "MatMulNBits quantizer, 8 bits, symmetric", matmul_nbits(8, True), ADDED_FIRST),
    Claim("bnb.nf4", "MatMulBnb4 quantizer, NF4", bnb4(MatMulBnb4Quantizer.NF4), "Its thresholds are not the midpoints in the last float32 digit"),
    Claim("bnb.fp4", "MatMulBnb4 quantizer, FP4", bnb4(MatMulBnb4Quantizer.FP4), "Its ties go toward zero, those of bitsandbytes on a CPU down"),
)
