"""Laws of the number formats, over every width, granularity, rule and rounding."""

from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.errors import InputError, RecipeError
from compress.formats import FloatFormat, IntFormat, PerAxis, PerGroup, PerTensor, ScaleRule
from compress.numerics import Encoded, encode, pack_low_first, predicted_bytes, unpack_low_first
from compress.numerics.rounding import round_to
from compress.numerics.scales import from_bfloat16_bits, to_bfloat16_bits
from compress.presets import PRESETS

WIDTHS = (*range(2, 9), 16)
RULES = get_args(ScaleRule)
GRANULARITIES = (PerTensor(), PerAxis(), PerGroup(16))


def weights(seed: int = 0, shape=(6, 32)) -> np.ndarray:
    return np.random.default_rng(seed).standard_t(4, shape).astype(np.float32)


def per_value_scale(encoded: Encoded) -> np.ndarray:
    """The scale of every value, in the tensor's shape."""
    shape = encoded.codes.shape
    rows = encoded.scales.reshape(-1, 1)
    return np.broadcast_to(rows, (rows.size, encoded.codes.size // rows.size)).reshape(shape)


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("bits", WIDTHS)
def test_values_inside_the_range_are_off_by_half_a_step_at_most(bits, rule, granularity):
    fmt = IntFormat(bits, granularity, rule)
    values = weights()
    encoded = encode(values, fmt)
    low, high = fmt.code_range
    assert encoded.codes.min() >= low and encoded.codes.max() <= high
    step = np.abs(per_value_scale(encoded))
    zero = 0 if encoded.zero_points is None else per_value_scale(Encoded(fmt, encoded.codes, encoded.zero_points))
    ends = np.sort([(low - zero) * per_value_scale(encoded), (high - zero) * per_value_scale(encoded)], axis=0)
    inside = (values >= ends[0]) & (values <= ends[1])
    # half a step, plus float32 rounding of x / scale (2^-23 of at most 2^bits steps, at two operations)
    bound = step * (0.5 + 2.0 ** (bits - 22))
    assert np.all(np.abs(encoded.decode() - values)[inside] <= bound[inside])
    assert inside.mean() > (0.5 if bits == 2 else 0.8)


# (rule, amax to scale) with Q = 2^(bits-1), from the libraries' own formulas (numerics.md 6.1)
FORMULAS = {"narrow": lambda a, q: a / (q - 1), "qmax": lambda a, q: a / (q - 1), "half": lambda a, q: a / (q - 0.5)}


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("rule", FORMULAS)
def test_scale_formulas(rule, bits):
    values = weights()
    expected = FORMULAS[rule](np.abs(values).max(1).astype(np.float64), 2 ** (bits - 1))
    np.testing.assert_allclose(encode(values, IntFormat(bits, PerAxis(), rule)).scales, expected, rtol=3e-7)


def test_signed_rule_matches_onnxruntime_at_plus_and_minus_one():
    fmt = IntFormat(4, PerAxis(), "signed")
    encoded = encode(np.array([[1.0, 0.5], [-1.0, 0.5]]), fmt)
    assert encoded.scales.tolist() == [-0.125, 0.125]
    assert encoded.codes[:, 0].tolist() == [-8, -8]


def test_noclip_covers_both_ends():
    values = np.array([[-8.0, 3.0], [-1.0, 7.0]], np.float32)
    encoded = encode(values, IntFormat(4, PerAxis(), "noclip"))
    assert encoded.scales.tolist() == [1.0, 1.0]
    np.testing.assert_array_equal(encoded.decode(), values)


@pytest.mark.parametrize("rule", ["narrow", "qmax", "half", "signed", "noclip", "asymmetric"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_mse_never_loses_to_the_whole_range(rule, bits):
    values = weights(3, (8, 256))
    error = {f: np.square(encode(values, IntFormat(bits, PerAxis(), rule, fit=f)).decode() - values).sum(1) for f in ("mse", "minmax")}
    assert np.all(error["mse"] <= error["minmax"] * (1 + 1e-6))
    assert bits > 4 or error["mse"].sum() < error["minmax"].sum()


@pytest.mark.parametrize("bits", WIDTHS)
def test_zero_stays_exactly_zero(bits):
    values = weights()
    values[values < 0.3] = 0
    for rule in RULES:
        assert np.all(encode(values, IntFormat(bits, PerGroup(16), rule)).decode()[values == 0] == 0), rule


def test_all_zero_and_constant_rows_decode_to_themselves():
    for rule in RULES:
        assert not encode(np.zeros((2, 16)), IntFormat(8, PerAxis(), rule)).decode().any()
    np.testing.assert_allclose(encode(np.full((2, 16), 3.0), IntFormat(8, PerAxis())).decode(), 3.0, rtol=1e-6)


def test_rounding_of_ties():
    ties = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5])
    assert round_to(ties, "half_even").tolist() == [-2, -2, 0, 0, 2, 2]
    assert round_to(ties, "half_away").tolist() == [-3, -2, -1, 1, 2, 3]


def test_rounding_rule_reaches_the_codes():
    values = np.array([[7.0, 0.5, 2.5]], np.float32)  # qmax at 4 bits: scale exactly 1
    assert encode(values, IntFormat(4, PerAxis(), "qmax", "half_even")).codes.tolist() == [[7, 0, 2]]
    assert encode(values, IntFormat(4, PerAxis(), "qmax", "half_away")).codes.tolist() == [[7, 1, 3]]


def test_scales_are_representable_in_their_storage_dtype():
    values = weights()
    half = encode(values, IntFormat(4, PerGroup(16), "qmax", scale_dtype="float16")).scales
    np.testing.assert_array_equal(half, half.astype(np.float16).astype(np.float32))
    brain = encode(values, IntFormat(4, PerGroup(16), "qmax", scale_dtype="bfloat16")).scales
    assert not np.any(brain.view(np.uint32) & 0xFFFF)


@pytest.mark.parametrize("name", [name for name, known in PRESETS.items() if getattr(known.format, "codes_from", "") == "exact"])
def test_small_scales_fit_the_codes(name):
    """Codes that follow from the scale before it is rounded: storing another one, because it is below float16's normal range, would scale the values."""
    fmt, values = PRESETS[name].format, weights(shape=(6, 64))
    step = np.repeat(np.abs(encode(values, fmt).scales), 32, -1)
    for scale in np.float32([1e-3, 1e-4, 1e-5]):
        found = encode(values * scale, fmt).decode()
        # 2^-25 is what rounding a float16 below 2^-14 may be off, times codes of up to 127
        assert found.any() and np.all(np.abs(found - values * scale) <= 1.01 * step * scale + 127 * 2.0**-25)


@pytest.mark.parametrize("name, dtype", [("gguf.q8_0", "float16"), ("gguf.q4_1", "float16"), ("quanto.int4.group128", "float32"), ("bnb.nf4.dq", "float32")])
def test_scales_beyond_their_storage_are_refused(name, dtype):
    values = np.tile(np.array([3e38, -3e38], np.float32), (64, 64))
    with np.errstate(over="ignore"), pytest.raises(InputError, match=f"largest {dtype} number"):
        encode(values, PRESETS[name].format)


@given(st.integers(2, 8), st.integers(1, 40), st.integers(0, 2**31))
@settings(max_examples=200, deadline=None)
def test_packing_round_trip_and_size(bits, count, seed):
    codes = np.random.default_rng(seed).integers(-(2 ** (bits - 1)), 2 ** (bits - 1), count).astype(np.int8)
    packed = pack_low_first(codes, bits)
    assert packed.size == -(-count * bits // 8)
    np.testing.assert_array_equal(unpack_low_first(packed, bits, count), codes)


def test_packing_puts_the_first_code_into_the_low_bits():
    assert pack_low_first(np.array([1, -2], np.int8), 4).tolist() == [0xE1]
    assert pack_low_first(np.array([1, 0, -1, -2], np.int8), 2).tolist() == [0b10110001]


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
@pytest.mark.parametrize("bits", WIDTHS)
def test_predicted_bytes_are_the_bytes(bits, granularity):
    for rule, scale_dtype in (("qmax", "bfloat16"), ("asymmetric", "float32")):
        fmt = IntFormat(bits, granularity, rule, scale_dtype=scale_dtype)
        encoded = encode(weights(), fmt)
        real = encoded.packed().size + encoded.scales.size * (2 if scale_dtype == "bfloat16" else 4)
        if encoded.zero_points is not None:
            real += -(-encoded.zero_points.size * bits // 8)
        assert encoded.nbytes == predicted_bytes((6, 32), fmt) == real


def test_half_formats_round_half_to_even():
    values = np.array([1 + 2.0**-11, 1 + 3 * 2.0**-11, -0.1, 65504], np.float32)
    np.testing.assert_array_equal(encode(values, FloatFormat("float16")).decode(), values.astype(np.float16).astype(np.float32))
    ties = np.array([1 + 2.0**-8, 1 + 3 * 2.0**-8], np.float32)
    assert encode(ties, FloatFormat("bfloat16")).decode().tolist() == [1.0, 1 + 2.0**-6]


def test_bfloat16_bits_round_trip():
    bits = np.arange(0, 0x7F80, 7, dtype=np.uint16)
    np.testing.assert_array_equal(to_bfloat16_bits(from_bfloat16_bits(bits)), bits)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_broken_values_are_counted_not_hidden(bad):
    values = weights()
    values[0, :3] = bad
    with pytest.raises(InputError, match=r"3 of 192 .*first at \[0, 0\]"):
        encode(values, IntFormat(8))


def test_refusals_name_the_field():
    with pytest.raises(InputError, match="32 values per output channel are not divisible by the group size 24"):
        encode(weights(), IntFormat(4, PerGroup(24)))
    with pytest.raises(InputError, match="65504"):
        encode(np.array([1e6]), FloatFormat("float16"))
    with pytest.raises(RecipeError, match="bits"):
        IntFormat(9)
    with pytest.raises(RecipeError, match="rule"):
        IntFormat(8, rule="absmax")
    with pytest.raises(InputError, match="empty"):
        encode(np.zeros((0, 4)), IntFormat(8))


def test_callers_array_is_left_alone():
    values = weights()
    before = values.copy()
    for rule in RULES:
        encode(values, IntFormat(4, PerGroup(16), rule)).decode()
    np.testing.assert_array_equal(values, before)


# numerics.md 6.1, measured on N(0,1): int4 in groups of 32
@pytest.mark.parametrize(("rule", "decibel"), [("qmax", 20.25), ("half", 20.45), ("signed", 21.32), ("noclip", 20.74)])
def test_signal_to_noise_of_int4_groups(rule, decibel):
    values = np.random.default_rng(0).standard_normal((4096, 64), dtype=np.float32)
    error = encode(values, IntFormat(4, PerGroup(32), rule)).decode() - values
    measured = 10 * np.log10(np.square(values).sum() / np.square(error).sum())
    assert abs(measured - decibel) < 0.05  # 262,144 samples: the spread between seeds is about 0.02 dB
