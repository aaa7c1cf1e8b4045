"""Packing orders against the libraries that own them: random codes through the library's own packing function, byte by byte."""

import numpy as np
import pytest

from compress.numerics.layouts import LAYOUTS, matmulnbits
from compress.numerics.layouts_blocks import BLOCK_LAYOUTS, SubScales


def unsigned(bits: int, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1 << bits, shape).astype(np.uint8)


def signed(bits: int, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return (unsigned(bits, shape, seed).astype(np.int16) - (1 << bits - 1)).astype(np.int8)


def same(found, expected: np.ndarray) -> None:
    """Equal in shape, dtype and every element."""
    found = found if isinstance(found, np.ndarray) else found.numpy()
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_array_equal(found, expected)


# --- bitsandbytes and its order elsewhere ---


SUFFIX = {"nf4": "", "fp4": "_fp4"}


def codebook_values(kind: str, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Codes, and float32 values whose every block of 64 has the largest magnitude 1, so that any quantizer must choose these codes."""
    codebook = pytest.importorskip("bitsandbytes.functional").get_4bit_type(kind, device="cpu").numpy()
    codes = unsigned(4, shape)
    if kind == "fp4":
        codes[codes == 8] = 0  # the code of -0.0, which no quantizer writes
    codes.ravel()[::64] = codebook.argmax()
    return codes, codebook[codes]


@pytest.mark.parametrize("shape", [(4, 64), (3, 67), (1, 1)])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_bitsandbytes(kind, shape):
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("bitsandbytes.functional")
    codes, values = codebook_values(kind, shape)
    ours = LAYOUTS["bitsandbytes" + SUFFIX[kind]].pack(codes, 4)
    packed, state = functional.quantize_4bit(torch.from_numpy(values), blocksize=64, quant_type=kind)
    same(packed, ours)
    np.testing.assert_array_equal(functional.dequantize_4bit(torch.from_numpy(ours), state).numpy(), values)


@pytest.mark.parametrize("shape", [(4, 64), (3, 67), (1, 1)])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_matmulbnb4(kind, shape):
    state = pytest.importorskip("onnxruntime.capi._pybind_state")
    codes, values = codebook_values(kind, shape)
    packed, absmax = np.zeros(-(-codes.size // 2), np.uint8), np.zeros(-(-codes.size // 64), np.float32)
    state.quantize_matmul_bnb4(packed, values, absmax, 64, int(kind == "nf4"), *shape)
    same(packed, LAYOUTS["matmulbnb4" + SUFFIX[kind]].pack(codes, 4))


def test_torchao_nf4():
    torch = pytest.importorskip("torch")
    quantization = pytest.importorskip("torchao.quantization")
    codes, values = codebook_values("nf4", (256, 64))
    tensor = quantization.NF4Tensor.from_tensor(torch.from_numpy(values), 64, 256)
    same(tensor.quantized_data, LAYOUTS["matmulbnb4"].pack(codes, 4))


# --- ONNX and ONNX Runtime ---


@pytest.mark.parametrize("shape", [(4, 8), (3, 5), (1, 1)])
@pytest.mark.parametrize(
    ("layout", "bits", "dtype"),
    [
        ("onnx", 2, "int2"), ("onnx", 4, "int4"), ("onnx", 8, "int8"),
        ("onnx_unsigned", 2, "uint2"), ("onnx_unsigned", 4, "uint4"), ("onnx_unsigned", 8, "uint8"),
        ("onnx_unsigned", 4, "float4_e2m1fn"), ("onnx_unsigned", 6, "float6_e2m3fn"), ("onnx_unsigned", 8, "float8_e4m3fn"),
    ],
)  # fmt: skip
def test_onnx_initializers(layout, bits, dtype, shape):
    helper = pytest.importorskip("onnx.numpy_helper")
    ml_dtypes = pytest.importorskip("ml_dtypes")
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    codes = signed(bits, shape) if LAYOUTS[layout].signed else unsigned(bits, shape)
    proto = helper.from_array(codes.view(kind) if "float" in dtype else codes.astype(kind))
    packed = LAYOUTS[layout].pack(codes, bits)
    same(np.frombuffer(proto.raw_data, np.uint8), packed)
    proto.raw_data = packed.tobytes()
    read = helper.to_array(proto)
    np.testing.assert_array_equal(read.view(codes.dtype) if "float" in dtype else read.astype(codes.dtype), codes)


def test_onnxruntime_int4_initializers():
    utils = pytest.importorskip("onnxruntime.quantization.quant_utils")
    codes = signed(4, (3, 7))
    same(np.frombuffer(bytes(utils.pack_bytes_to_4bit(codes.tobytes())), np.uint8), LAYOUTS["onnx"].pack(codes, 4))


def nbits_parts(bits: int, block: int, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes [out, in], zero points [out, blocks], and values (scale 1) that use the whole range in every block, so that ONNX Runtime finds both again."""
    codes, zeros = unsigned(bits, shape), unsigned(bits, (shape[0], -(-shape[1] // block)), seed=1)
    codes[:, ::block], codes[:, 1::block] = 0, (1 << bits) - 1
    values = codes.astype(np.float32) - zeros.repeat(block, axis=1)[:, : shape[1]]
    return codes, zeros, values


@pytest.mark.parametrize(("block", "inputs"), [(16, 16), (16, 48), (32, 40), (64, 320)])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_matmulnbits_quantizer(bits, block, inputs):
    quantizer = pytest.importorskip("onnxruntime.quantization.matmul_nbits_quantizer")
    codes, zeros, values = nbits_parts(bits, block, (5, inputs))
    config = quantizer.DefaultWeightOnlyQuantConfig(block_size=block, is_symmetric=False, bits=bits)
    packed, _, packed_zeros = quantizer.DefaultWeightOnlyQuantizer(config).qbits_block_quant(np.ascontiguousarray(values.T))
    same(packed, matmulnbits(block).pack(codes, bits))
    same(packed_zeros, LAYOUTS["matmulnbits_zeros"].pack(zeros, bits))


@pytest.mark.parametrize(("block", "inputs"), [(16, 48), (32, 37), (64, 130)])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_matmulnbits_kernel_reads_it(bits, block, inputs):
    """The identity times B is B as the kernel decodes it: small integers, exact in every arithmetic, a ragged and odd end of the inputs included."""
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    codes, zeros, values = nbits_parts(bits, block, (5, inputs))
    constants = {
        "B": matmulnbits(block).pack(codes, bits),
        "scales": np.ones(zeros.shape, np.float32),
        "zeros": LAYOUTS["matmulnbits_zeros"].pack(zeros, bits),
    }
    sizes = dict(K=inputs, N=5, bits=bits, block_size=block)
    node = onnx.helper.make_node("MatMulNBits", ["A", *constants], ["Y"], domain="com.microsoft", **sizes)
    kind = onnx.TensorProto.FLOAT
    ends = [onnx.helper.make_tensor_value_info("A", kind, [None, inputs])], [onnx.helper.make_tensor_value_info("Y", kind, [None, 5])]
    graph = onnx.helper.make_graph([node], "decode", *ends, [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()])
    opsets = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    decoded = runtime.InferenceSession(model.SerializeToString()).run(None, {"A": np.eye(inputs, dtype=np.float32)})[0]
    np.testing.assert_array_equal(decoded, values.T)


# --- LiteRT ---


@pytest.mark.parametrize("shape", [(4, 8), (3, 5), (1, 7)])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_litert(bits, shape):
    utils = pytest.importorskip("litert_quantizer.transformations.transformation_utils")
    codes = signed(bits, shape)
    same(utils.pack_data(bits, codes).view(np.uint8), LAYOUTS["litert"].pack(codes, bits))


# --- compressed-tensors ---


# its unpack_from_int32 cannot view 4-bit words along dimension 0 where there is only one of them in many columns: 12 rows, not 3
@pytest.mark.parametrize("shape", [(12, 64), (37, 41), (1, 1)])
@pytest.mark.parametrize(("layout", "dim"), [("compressed_tensors", 1), ("compressed_tensors_zeros", 0)])
@pytest.mark.parametrize("bits", range(1, 9))
def test_compressed_tensors(bits, layout, dim, shape):
    torch = pytest.importorskip("torch")
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    codes = signed(bits, shape)
    packed = LAYOUTS[layout].pack(codes, bits)
    same(helpers.pack_to_int32(torch.from_numpy(codes), bits, dim), packed)
    same(helpers.unpack_from_int32(torch.from_numpy(packed), bits, shape, dim), codes)


def small_float(code: np.ndarray, exponent_bits: int, mantissa_bits: int) -> np.ndarray:
    """float32 values of OCP codes: sign, exponent, mantissa; exponent 0 is subnormal."""
    mantissa = (code & (1 << mantissa_bits) - 1) / 2.0**mantissa_bits
    exponent = code >> mantissa_bits & (1 << exponent_bits) - 1
    bias = (1 << exponent_bits - 1) - 1
    magnitude = np.where(exponent == 0, mantissa * 2.0 ** (1 - bias), (1 + mantissa) * 2.0 ** (exponent.astype(int) - bias))
    return np.where(code >> exponent_bits + mantissa_bits, -magnitude, magnitude).astype(np.float32)


def test_compressed_tensors_fp4():
    torch = pytest.importorskip("torch")
    helpers = pytest.importorskip("compressed_tensors.compressors.nvfp4.helpers")
    codes = unsigned(4, (5, 34))
    same(helpers.pack_fp4_to_uint8(torch.from_numpy(small_float(codes, 2, 1))), LAYOUTS["compressed_tensors_float"].pack(codes, 4))


def test_compressed_tensors_fp6():
    torch = pytest.importorskip("torch")
    helpers = pytest.importorskip("compressed_tensors.compressors.mxfp6.helpers")
    codes = unsigned(6, (5, 36))
    same(helpers.pack_fp6_to_uint8(torch.from_numpy(small_float(codes, 2, 3))), LAYOUTS["compressed_tensors_float"].pack(codes, 6))


# --- GPTQ and AWQ, whose own packages are not kept up: the converters and packers that other libraries have for their files ---


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_gptq_as_onnxruntime_packs_it(bits):
    torch = pytest.importorskip("torch")
    quantizer = pytest.importorskip("onnxruntime.quantization.matmul_nbits_quantizer")
    codes = unsigned(bits, (24, 64))
    packed = torch.zeros((64 * bits // 32, 24), dtype=torch.int32)
    quantizer.HQQWeightOnlyQuantizer.pack_on_row_fast_248bit(packed, torch.from_numpy(codes.T.astype(np.int32)), bits)
    same(packed, LAYOUTS["gptq"].pack(codes, bits))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq_is_the_dense_stream_of_compressed_tensors(bits):
    """compressed-tensors adds 2^(bits-1) to signed codes; without it the words of [in, out] along dimension 0 are GPTQ's, for 3 bits too."""
    torch = pytest.importorskip("torch")
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    codes = unsigned(bits, (24, 64))
    middle = torch.from_numpy((codes.astype(np.int16) - (1 << bits - 1)).astype(np.int8))
    same(helpers.pack_to_int32(middle.T.contiguous(), bits, 0), LAYOUTS["gptq"].pack(codes, bits))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_gptq_zero_points_as_quanto_unpacks_words(bits):
    torch = pytest.importorskip("torch")
    packing = pytest.importorskip("optimum.quanto.tensor.weights.packing")
    zeros = np.maximum(unsigned(bits, (64, 5)), 1)
    for layout, added in (("gptq_v2_zeros", 0), ("gptq_zeros", 1)):
        stored = packing.unpack_int32_to_uint8(torch.from_numpy(LAYOUTS[layout].pack(zeros, bits)), bits)
        same(stored + added, np.ascontiguousarray(zeros.T))


def test_awq_as_quanto_packs_it():
    torch = pytest.importorskip("torch")
    packed = pytest.importorskip("optimum.quanto.tensor.weights.awq.packed")
    codes = unsigned(4, (32, 6))
    same(packed.pack(torch.from_numpy(codes.T.copy()), reorder=True), LAYOUTS["awq"].pack(codes, 4))


def test_awq_as_compressed_tensors_reads_it():
    torch = pytest.importorskip("torch")
    converters = pytest.importorskip("compressed_tensors.entrypoints.convert.converters.autoawq")
    codes, zeros = unsigned(4, (32, 6)), unsigned(4, (32, 2), seed=1)
    words = [torch.from_numpy(LAYOUTS["awq"].pack(part, 4)) for part in (codes, zeros)]
    converter = converters.AutoAWQConverter
    stored = converter.reverse_awq_order(*converter.unpack_awq(*words, 4), 4)
    for found, expected in zip(stored, (codes, zeros), strict=True):
        same((found & 15).to(torch.uint8), np.ascontiguousarray(expected.T))


# --- HQQ ---


@pytest.mark.parametrize("rows", [16, 23])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 8])
def test_hqq(bits, rows):
    torch = pytest.importorskip("torch")
    quantizer = pytest.importorskip("hqq.core.quantize").Quantizer
    if rows == 23 and bits in (1, 2, 4):
        pytest.skip("HQQ cannot pack rows that its parts do not divide")
    codes = unsigned(bits, (rows, 9))
    packed, kind = LAYOUTS["hqq"].pack(codes, bits), quantizer.bit_to_packing[bits]
    same(quantizer.pack[kind](torch.from_numpy(codes)), packed)
    same(quantizer.unpack[kind](torch.from_numpy(packed), dtype=torch.uint8)[:rows], codes)


# --- GGUF ---


def gguf_quants():
    return pytest.importorskip("gguf.quants"), pytest.importorskip("gguf").GGMLQuantizationType


def powers_of_two(blocks: int) -> np.ndarray:
    return 2.0 ** np.random.default_rng(2).integers(-6, 3, blocks).astype(np.float16)


def test_gguf_q4_0():
    quants, kinds = gguf_quants()
    codes, scales = signed(4, (12, 32)), powers_of_two(12) * np.float16(-1)
    codes[:, 5] = -8  # the value of largest magnitude fixes scale and sign
    values = codes * scales[:, None].astype(np.float32)
    packed = BLOCK_LAYOUTS["gguf_q4_0"].pack(codes, scales)
    same(quants.quantize(values, kinds.Q4_0), packed)
    same(quants.dequantize(packed, kinds.Q4_0), values)


def test_gguf_q4_1():
    quants, kinds = gguf_quants()
    codes, scales, minimums = unsigned(4, (12, 32)), powers_of_two(12), powers_of_two(12)[::-1] * np.float16(-1)
    codes[:, 3], codes[:, 30] = 0, 15  # both ends, so that scale and minimum are found again
    values = codes * scales[:, None].astype(np.float32) + minimums[:, None]
    packed = BLOCK_LAYOUTS["gguf_q4_1"].pack(codes, scales, minimums)
    same(quants.quantize(values, kinds.Q4_1), packed)
    same(quants.dequantize(packed, kinds.Q4_1), values)


def test_gguf_q8_0():
    quants, kinds = gguf_quants()
    codes, scales = np.maximum(signed(8, (12, 32)), -127), powers_of_two(12)
    codes[:, 7] = 127
    values = codes * scales[:, None].astype(np.float32)
    packed = BLOCK_LAYOUTS["gguf_q8_0"].pack(codes, scales)
    same(quants.quantize(values, kinds.Q8_0), packed)
    same(quants.dequantize(packed, kinds.Q8_0), values)


def test_gguf_q4_k():
    """gguf-py reads Q4_K and does not write it: every field must come out of its reader."""
    quants, kinds = gguf_quants()
    rng = np.random.default_rng(3)
    scales, minimums = (SubScales(rng.standard_normal(7).astype(np.float16), unsigned(6, (7, 8), seed)) for seed in (4, 5))
    codes = unsigned(4, (7, 256))
    packed = BLOCK_LAYOUTS["gguf_q4_k"].pack(codes, scales, minimums)
    found_scales, found_minimums = quants.Q4_K.get_scale_min(np.ascontiguousarray(packed[:, 4:16]))
    same(found_scales, scales.codes)
    same(found_minimums, minimums.codes)
    scale, minimum = (part.unit.astype(np.float32)[:, None, None] * part.codes[:, :, None].astype(np.float32) for part in (scales, minimums))
    values = scale * codes.reshape(7, 8, 32) - minimum
    same(quants.dequantize(packed, kinds.Q4_K), values.reshape(7, 256))


@pytest.mark.parametrize("name", ["gguf_q4_0", "gguf_q4_1", "gguf_q8_0", "gguf_q4_k"])
def test_gguf_block_sizes(name):
    constants = pytest.importorskip("gguf.constants")
    kind = constants.GGMLQuantizationType[name.removeprefix("gguf_").upper()]
    assert constants.GGML_QUANT_SIZES[kind] == (BLOCK_LAYOUTS[name].values, BLOCK_LAYOUTS[name].nbytes)
