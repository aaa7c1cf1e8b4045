"""Laws of the packing orders, over every layout and width, and bytes written by hand from each consumer's documentation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.errors import InputError
from compress.numerics.layouts import LAYOUTS, matmulnbits
from compress.numerics.layouts_blocks import BLOCK_LAYOUTS, SubScales

CASES = [(name, bits) for name, layout in LAYOUTS.items() for bits in layout.bits]
HQQ_ROWS = {1: 8, 2: 4, 4: 2}


def unit(name: str, bits: int) -> tuple[int, int]:
    """Rows and columns must be multiples of these."""
    words = 32 // np.gcd(32, bits)
    bytes_ = 8 // np.gcd(8, bits)
    return {
        "gptq": (1, words), "gptq_zeros": (words, 1), "gptq_v2_zeros": (words, 1), "awq": (8, 1),
        "compressed_tensors_float": (1, bytes_), "hqq": (HQQ_ROWS.get(bits, 1), 1),
    }.get(name, (1, 1))  # fmt: skip


def random_codes(name: str, bits: int, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    low = -(1 << bits - 1) if LAYOUTS[name].signed else int(name == "gptq_zeros")
    high = (1 << bits - 1) if LAYOUTS[name].signed else 1 << bits
    return np.random.default_rng(seed).integers(low, high, shape).astype(np.int8 if LAYOUTS[name].signed else np.uint8)


@pytest.mark.parametrize(("name", "bits"), CASES)
@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 13), columns=st.integers(1, 70), seed=st.integers(0, 2**32 - 1))
def test_round_trip(name, bits, rows, columns, seed):
    layout, multiple = LAYOUTS[name], unit(name, bits)
    shape = (rows * int(multiple[0]), columns * int(multiple[1]))
    codes = random_codes(name, bits, shape, seed)
    before = codes.copy()
    packed = layout.pack(codes, bits)
    again = layout.unpack(packed, bits, shape)
    np.testing.assert_array_equal(again, before)
    np.testing.assert_array_equal(codes, before)
    assert again.dtype == codes.dtype
    assert (packed.shape, packed.dtype) == (layout.packed_shape(shape, bits), layout.dtype(bits))
    assert packed.flags.c_contiguous


@pytest.mark.parametrize(("name", "bits"), [case for case in CASES if LAYOUTS[case[0]].flat])
def test_flat_layouts_take_any_shape(name, bits):
    codes = random_codes(name, bits, (3, 1, 5, 7))
    packed = LAYOUTS[name].pack(codes, bits)
    np.testing.assert_array_equal(packed, LAYOUTS[name].pack(codes.ravel(), bits))
    np.testing.assert_array_equal(LAYOUTS[name].unpack(packed, bits, codes.shape), codes)


@pytest.mark.parametrize(("name", "bits"), CASES)
def test_order_does_not_depend_on_memory_or_integer_type(name, bits):
    rows, columns = unit(name, bits)
    codes = random_codes(name, bits, (3 * rows, 5 * columns))
    expected = LAYOUTS[name].pack(codes, bits)
    np.testing.assert_array_equal(LAYOUTS[name].pack(np.asfortranarray(codes), bits), expected)
    np.testing.assert_array_equal(LAYOUTS[name].pack(codes.astype(np.int64), bits), expected)


# bits that a code takes where it is not its own width: HQQ leaves two of 32 bits empty, and does not pack 5 and 6 bits
WIDER = {("hqq", 3): 3.2, ("hqq", 5): 8, ("hqq", 6): 8}


@pytest.mark.parametrize(("name", "bits"), CASES)
def test_bytes_of_a_tensor_without_padding(name, bits):
    codes = random_codes(name, bits, (320, 64))  # 320: whole words, whole blocks and whole tens
    assert LAYOUTS[name].pack(codes, bits).nbytes * 8 == pytest.approx(codes.size * WIDER.get((name, bits), bits), abs=1e-6)


def stream(codes: list[int], bits: int, unit_bytes: int) -> bytes:
    """Codes one after the other from the lowest bit of one long number: the oracle of every dense layout."""
    number = sum((code & (1 << bits) - 1) << bits * i for i, code in enumerate(codes))
    count = -(-len(codes) * bits // (8 * unit_bytes)) * unit_bytes
    return number.to_bytes(count, "little")


def lines(codes: np.ndarray, axis: int) -> list[list[int]]:
    return (codes if axis else codes.T).astype(int).tolist()


@pytest.mark.parametrize(("name", "bits"), [case for case in CASES if case[0] in ("onnx", "onnx_unsigned", "litert")])
def test_flat_low_first_is_one_number(name, bits):
    codes = random_codes(name, bits, (5, 7))
    assert LAYOUTS[name].pack(codes, bits).tobytes() == stream(codes.ravel().astype(int).tolist(), bits, 1)


# (axis of the run of codes, packed along axis 1 of the file's array, what is added to a code)
DENSE = {
    "compressed_tensors": (1, True, lambda bits: 1 << bits - 1),
    "compressed_tensors_zeros": (0, False, lambda bits: 1 << bits - 1),
    "gptq": (1, False, lambda bits: 0),
    "gptq_zeros": (0, True, lambda bits: -1),
    "gptq_v2_zeros": (0, True, lambda bits: 0),
}


@pytest.mark.parametrize(("name", "bits"), [case for case in CASES if case[0] in DENSE])
def test_words_are_one_number_for_every_line(name, bits):
    axis, along_columns, added = DENSE[name]
    rows, columns = unit(name, bits)
    codes = random_codes(name, bits, (3 * rows, 3 * columns) if rows * columns > 1 else (37, 41))
    packed = LAYOUTS[name].pack(codes, bits)
    found = packed if along_columns else packed.T
    expected = [stream([code + added(bits) for code in line], bits, 4) for line in lines(codes, axis)]
    assert [line.tobytes() for line in found] == expected


def test_bitsandbytes_puts_the_first_code_high_in_a_column():
    codes = np.array([15, 0, 1, 2, 8], np.uint8)
    for suffix, end in (("", 0x87), ("_fp4", 0x80)):  # what fills up an odd count is the value 0: code 7 of NF4, code 0 of FP4
        np.testing.assert_array_equal(LAYOUTS[f"bitsandbytes{suffix}"].pack(codes, 4), [[0xF0], [0x12], [end]])
        np.testing.assert_array_equal(LAYOUTS[f"matmulbnb4{suffix}"].pack(codes, 4), [0xF0, 0x12, end])


@pytest.mark.parametrize("name", ["onnx", "litert"])
def test_twos_complement_low_first(name):
    np.testing.assert_array_equal(LAYOUTS[name].pack(np.array([1, -8, -1], np.int8), 4), [0x81, 0x0F])
    np.testing.assert_array_equal(LAYOUTS[name].pack(np.array([1, -2, -1, 0, -1], np.int8), 2), [0b00111001, 0b11])


def test_matmulnbits_pads_codes_with_0_and_zero_points_with_the_middle():
    codes = np.ones((1, 17), np.uint8)
    packed = matmulnbits(16).pack(codes, 4)
    np.testing.assert_array_equal(packed, [[[0x11] * 8, [0x01] + [0] * 7]])
    zeros = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)
    np.testing.assert_array_equal(LAYOUTS["matmulnbits_zeros"].pack(zeros, 4), [[0x21, 0x83], [0x54, 0x86]])
    np.testing.assert_array_equal(LAYOUTS["matmulnbits_zeros"].pack(zeros[:1, :1], 2), [[0b10101001]])
    np.testing.assert_array_equal(LAYOUTS["matmulnbits_zeros"].pack(zeros, 8), zeros)


@pytest.mark.parametrize("block", [16, 32, 64, 256])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_matmulnbits_of_any_block_comes_back(block, bits):
    codes = random_codes("matmulnbits", bits, (3, 100))
    packed = matmulnbits(block).pack(codes, bits)
    assert packed.shape == (3, -(-100 // block), block * bits // 8)
    np.testing.assert_array_equal(matmulnbits(block).unpack(packed, bits, (3, 100)), codes)


@pytest.mark.parametrize("block", [0, 8, 24])
def test_matmulnbits_refuses_blocks_that_the_operator_refuses(block):
    with pytest.raises(InputError, match="power of two"):
        matmulnbits(block)


def test_compressed_tensors_adds_the_middle_and_straddles_words():
    codes = np.full((1, 11), -4, np.int8)
    codes[0, 10] = 3  # stored 7 in bits 30 to 32
    np.testing.assert_array_equal(LAYOUTS["compressed_tensors"].pack(codes, 3).view(np.uint32), [[3 << 30, 1]])
    np.testing.assert_array_equal(LAYOUTS["compressed_tensors_zeros"].pack(np.array([[0], [-8], [7]], np.int8), 4), [[0xF08]])
    np.testing.assert_array_equal(LAYOUTS["compressed_tensors"].pack(np.array([[0, -1, 0]], np.int8), 1), [[0b101]])


def test_small_floats_of_compressed_tensors():
    np.testing.assert_array_equal(LAYOUTS["compressed_tensors_float"].pack(np.array([[1, 10], [7, 15]], np.uint8), 4), [[0xA1], [0xF7]])
    np.testing.assert_array_equal(LAYOUTS["compressed_tensors_float"].pack(np.array([[63, 0, 0, 1]], np.uint8), 6), [[0x3F, 0, 4]])


def test_gptq_runs_down_the_inputs_and_v1_zero_points_are_one_less():
    codes = np.array([[0, 1, 2, 3, 4, 5, 6, 7], [8, 9, 10, 11, 12, 13, 14, 15]], np.uint8)  # [out 2, in 8]
    np.testing.assert_array_equal(LAYOUTS["gptq"].pack(codes, 4).view(np.uint32), [[0x76543210, 0xFEDCBA98]])
    zeros = np.full((8, 1), 8, np.uint8)  # [out, groups]
    zeros[0] = 1
    np.testing.assert_array_equal(LAYOUTS["gptq_zeros"].pack(zeros, 4), [[0x77777770]])
    np.testing.assert_array_equal(LAYOUTS["gptq_v2_zeros"].pack(zeros, 4).view(np.uint32), [[0x88888881]])


def test_awq_interleaves_eight_outputs():
    codes = np.arange(16, dtype=np.uint8)[:, None].repeat(2, 1)  # [out 16, in 2]
    codes[:, 1] = 0
    np.testing.assert_array_equal(LAYOUTS["awq"].pack(codes, 4).view(np.uint32), [[0x75316420, 0xFDB9ECA8], [0, 0]])


def test_hqq_puts_parts_of_the_rows_side_by_side():
    pack = LAYOUTS["hqq"].pack
    np.testing.assert_array_equal(pack(np.array([[1], [2], [3], [4]], np.uint8), 4), [[0x13], [0x24]])
    np.testing.assert_array_equal(pack(np.array([[0], [1], [2], [3]], np.uint8), 2), [[0b00011011]])
    np.testing.assert_array_equal(pack(np.array([[1], [0], [0], [0], [0], [0], [1], [1]], np.uint8), 1), [[0b10000011]])
    np.testing.assert_array_equal(pack(np.arange(8, dtype=np.uint8)[:, None], 3), [[sum(code << 27 - 3 * code for code in range(8))]])
    np.testing.assert_array_equal(pack(np.array([[31, 1, 2]], np.uint8), 5), [[31, 1, 2]])


@pytest.mark.parametrize(
    ("name", "bits", "shape", "reason"),
    [
        ("gptq", 4, (32, 12), "12 codes of 4 bits do not fill whole words"),
        ("gptq", 3, (32, 16), "16 codes of 3 bits"),
        ("gptq_zeros", 4, (12, 8), "along axis 0: 12 codes"),
        ("gptq_v2_zeros", 8, (2, 8), "along axis 0: 2 codes"),
        ("awq", 4, (12, 32), "along axis 0: 12 codes"),
        ("compressed_tensors_float", 4, (4, 3), "3 columns of 4 bits do not fill whole bytes"),
        ("compressed_tensors_float", 6, (4, 6), "6 columns of 6 bits"),
        ("hqq", 4, (3, 8), "3 rows are not divisible by 2"),
        ("hqq", 1, (12, 8), "12 rows are not divisible by 8"),
        ("gptq", 5, (32, 32), "2, 3, 4, 8 bits, not 5"),
        ("awq", 8, (32, 32), "4 bits, not 8"),
        ("hqq", 4, (2, 4, 8), r"shape \[rows, columns\], not \[2, 4, 8\]"),
        ("compressed_tensors", 4, (32,), r"not \[32\]"),
        ("litert", 4, (0, 3), "no codes"),
    ],
)
def test_what_a_layout_cannot_hold(name, bits, shape, reason):
    codes = np.ones(shape, np.int8 if LAYOUTS[name].signed else np.uint8)
    with pytest.raises(InputError, match=reason):
        LAYOUTS[name].pack(codes, bits)
    with pytest.raises(InputError, match=reason):
        LAYOUTS[name].unpack(codes, bits, shape)


@pytest.mark.parametrize(("name", "bits"), CASES)
def test_codes_out_of_range_are_refused(name, bits):
    rows, columns = unit(name, bits)
    codes = random_codes(name, bits, (int(rows), int(columns))).astype(np.int16)
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if LAYOUTS[name].signed else (0, (1 << bits) - 1)
    for wrong in (low - 1, high + 1):
        codes[-1, -1] = wrong
        with pytest.raises(InputError, match=f"codes from {low} to {high}"):
            LAYOUTS[name].pack(codes, bits)
    with pytest.raises(InputError, match="integer codes, not float32"):
        LAYOUTS[name].pack(codes.astype(np.float32), bits)


def test_gptq_v1_has_no_zero_point_0():
    with pytest.raises(InputError, match="use gptq_v2_zeros"):
        LAYOUTS["gptq_zeros"].pack(np.zeros((8, 1), np.uint8), 4)


@pytest.mark.parametrize(("name", "bits"), CASES)
def test_unpack_refuses_another_shape_or_dtype(name, bits):
    rows, columns = unit(name, bits)
    shape = (int(rows), int(columns))
    packed = LAYOUTS[name].pack(random_codes(name, bits, shape), bits)
    for wrong in (np.concatenate([packed, packed]), packed.astype(np.int64)):
        with pytest.raises(InputError, match="when packed, not"):
            LAYOUTS[name].unpack(wrong, bits, shape)


# --- blocks that hold their scales ---


def block_parts(name: str, blocks: int, seed: int):
    """Random codes, scales and minimums that a block layout can hold."""
    layout, rng = BLOCK_LAYOUTS[name], np.random.default_rng(seed)
    low = -(1 << layout.bits - 1) if layout.signed else 0
    codes = rng.integers(low, low + (1 << layout.bits), (blocks, layout.values)).astype(np.int8 if layout.signed else np.uint8)

    def scales():
        unit = rng.standard_normal(blocks).astype(np.float16)
        return SubScales(unit, rng.integers(0, 64, (blocks, 8)).astype(np.uint8)) if layout.sub_blocks else unit

    return codes, scales(), scales() if layout.minimums else None


def assert_same_scales(found, expected):
    if isinstance(expected, SubScales):
        np.testing.assert_array_equal(found.codes, expected.codes)
        found, expected = found.unit, expected.unit
    np.testing.assert_array_equal(found, expected)
    assert (found is None) or found.dtype == np.float16


@pytest.mark.parametrize("name", BLOCK_LAYOUTS)
@settings(max_examples=30, deadline=None)
@given(blocks=st.integers(1, 9), seed=st.integers(0, 2**32 - 1))
def test_blocks_round_trip(name, blocks, seed):
    layout = BLOCK_LAYOUTS[name]
    codes, scales, minimums = block_parts(name, blocks, seed)
    packed = layout.pack(codes, scales, minimums)
    assert packed.shape == (blocks, layout.nbytes) and packed.dtype == np.uint8
    codes_again, scales_again, minimums_again = layout.unpack(packed)
    np.testing.assert_array_equal(codes_again, codes)
    assert codes_again.dtype == codes.dtype
    assert_same_scales(scales_again, scales)
    assert_same_scales(minimums_again, minimums)


# bits per weight that ggml documents for the formats
@pytest.mark.parametrize(("name", "bits_per_value"), [("gguf_q4_0", 4.5), ("gguf_q4_1", 5.0), ("gguf_q8_0", 8.5), ("gguf_q4_k", 4.5)])
def test_bits_per_value_of_blocks(name, bits_per_value):
    assert BLOCK_LAYOUTS[name].nbytes * 8 / BLOCK_LAYOUTS[name].values == bits_per_value


def test_first_bytes_of_blocks():
    one, two = np.ones(1, np.float16), np.full(1, 2, np.float16)  # 0x3C00 and 0x4000
    codes = np.zeros((1, 32), np.int8)
    codes[0, [0, 1, 16]] = -8, 7, -7
    assert BLOCK_LAYOUTS["gguf_q4_0"].pack(codes, one)[0, :5].tolist() == [0, 0x3C, 0x10, 0x8F, 0x88]
    assert BLOCK_LAYOUTS["gguf_q4_1"].pack((codes + 8).astype(np.uint8), one, two)[0, :7].tolist() == [0, 0x3C, 0, 0x40, 0x10, 0x8F, 0x88]
    assert BLOCK_LAYOUTS["gguf_q8_0"].pack(codes, two)[0, :5].tolist() == [0, 0x40, 0xF8, 7, 0]


def test_first_bytes_of_a_super_block():
    scales = SubScales(np.ones(1, np.float16), np.array([[1, 2, 3, 4, 63, 0x10, 5, 0x2F]], np.uint8))
    minimums = SubScales(np.full(1, 2, np.float16), np.array([[60, 0, 0, 1, 0x21, 0, 0, 63]], np.uint8))
    codes = np.zeros((1, 256), np.uint8)
    codes[0, [0, 32, 64, 97, 255]] = 1, 2, 3, 4, 15
    packed = BLOCK_LAYOUTS["gguf_q4_k"].pack(codes, scales, minimums)[0]
    assert packed[:4].tolist() == [0, 0x3C, 0, 0x40]
    assert packed[4:8].tolist() == [0xC1, 0x42, 0x03, 0x84]  # two high bits of 63, 0x10, 5, 0x2F over 1, 2, 3, 4
    assert packed[8:12].tolist() == [0xBC, 0, 0, 0xC1]
    assert packed[12:16].tolist() == [0x1F, 0x00, 0x05, 0xFF]
    assert packed[16] == 0x21 and packed[16 + 32] == 3 and packed[16 + 33] == 0x40 and packed[143] == 0xF0


def test_what_blocks_cannot_hold():
    q4_0, q4_1, q4_k = (BLOCK_LAYOUTS[name] for name in ("gguf_q4_0", "gguf_q4_1", "gguf_q4_k"))
    one = np.ones(1, np.float16)
    codes, (super_codes, scales, minimums) = np.zeros((1, 32), np.int8), block_parts("gguf_q4_k", 1, 0)
    refused = [
        (lambda: q4_0.pack(codes[:, :31], one), r"shape \[blocks, 32\], not \[1, 31\]"),
        (lambda: q4_0.pack(codes, one, one), "no place for minimums"),
        (lambda: q4_1.pack(codes, one), "needs minimums"),
        (lambda: q4_0.pack(codes, one.astype(np.float32)), "float16 scales and minimums"),
        (lambda: q4_0.pack(codes, np.ones(2, np.float16)), r"minimums \[1\], not float16 \[2\]"),
        (lambda: q4_0.pack(codes + 8, one), "codes from -8 to 7"),
        (lambda: q4_1.pack(codes - 1, one, one), "codes from 0 to 15"),
        (lambda: q4_k.pack(super_codes, one, one), "as SubScales"),
        (lambda: q4_0.pack(codes, scales), "as float16 arrays"),
        (lambda: q4_k.pack(super_codes, SubScales(one, scales.codes + 64), minimums), "codes from 0 to 63"),
        (lambda: q4_k.pack(super_codes, scales, SubScales(one, scales.codes[:, :4])), "8 sub-blocks"),
        (lambda: q4_k.unpack(np.zeros((1, 143), np.uint8)), r"uint8 \[blocks, 144\]"),
        (lambda: q4_0.unpack(np.zeros((1, 18), np.int8)), "not int8"),
    ]
    for call, reason in refused:
        with pytest.raises(InputError, match=reason):
            call()
