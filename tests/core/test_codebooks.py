"""Laws of every preset and codebook: nearest levels, exact storage, the same bits from fused loops and NumPy."""

import dataclasses

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import compress
from compress.errors import BrokenFile, InputError, RecipeError, UnknownName
from compress.formats import CodebookFormat, DoubleQuantized, IntFormat, Learned, PerAxis, PerBlock, PerGroup, PerTensor
from compress.numerics import Encoded, encode
from compress.numerics.codebooks import TABLES, levels, normal_float, with_thresholds
from compress.numerics.fast import oracle_only
from compress.numerics.ranges import best_scale
from compress.numerics.scales import power_of_two_above, to_e4m3
from compress.numerics.storing import from_storage, to_arrays, to_storage
from compress.presets import PRESETS

RNG = np.random.default_rng(11)
VECTORS = {
    "gauss": RNG.standard_normal((8, 256)),
    "heavy tails": RNG.standard_t(2, (8, 256)),
    "grid": RNG.integers(-8, 9, (8, 256)) / 8,
    "all negative": -np.abs(RNG.standard_normal((8, 256))),
    "zeros": np.where(RNG.random((8, 256)) < 0.5, 0, RNG.standard_normal((8, 256))) * (np.arange(8)[:, None] > 2),
    "tiny": RNG.standard_normal((8, 256)) * 1e-30,
}
FORMATS = {name: preset.format for name, preset in PRESETS.items()}


def sqnr(values: np.ndarray, decoded: np.ndarray) -> float:
    return 10 * np.log10(np.square(values).sum(dtype=np.float64) / np.square(values - decoded).sum(dtype=np.float64))


@pytest.mark.parametrize("vector", VECTORS)
@pytest.mark.parametrize("name", FORMATS)
def test_stored_as_predicted_and_read_back_bit_for_bit(name, vector, tmp_path):
    values = VECTORS[vector].astype(np.float32)
    encoded = encode(values, FORMATS[name])
    assert sum(array.nbytes for array in to_arrays(encoded).values()) == encoded.nbytes == encoded.ledger.total
    encoded.save(tmp_path / "w.safetensors")
    again = Encoded.load(tmp_path / "w.safetensors")
    assert again.format == FORMATS[name]
    np.testing.assert_array_equal(again.codes, encoded.codes)
    np.testing.assert_array_equal(again.decode(), encoded.decode())
    assert np.isfinite(encoded.decode()).all()


def reaches_its_ends(fmt) -> bool:
    """Whether decoded values have the range that the scale was made for."""
    return fmt.rule in ("narrow", "qmax") if isinstance(fmt, IntFormat) else fmt.double is None


@pytest.mark.parametrize("name", [name for name, fmt in FORMATS.items() if reaches_its_ends(fmt)])
def test_encoding_what_was_decoded_changes_nothing_more(name):
    """A format's own values are its fixed points, but for the last digit of a scale that is fitted again."""
    values = VECTORS["gauss"].astype(np.float32)
    once = encode(values, FORMATS[name]).decode()
    np.testing.assert_allclose(encode(once, FORMATS[name]).decode(), once, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("name", [n for n, f in FORMATS.items() if not (isinstance(f, CodebookFormat) and f.learned)])
def test_fused_loops_have_the_oracles_bits(name, monkeypatch):
    pytest.importorskip("numba")
    monkeypatch.setattr("compress.numerics.fast.LARGE", 1)
    monkeypatch.setattr("compress.numerics.fast.LOADED", 1)
    fmt = FORMATS[name]
    for shape in ((64, 256), (2, 65_536), (65, 255)):
        if isinstance(fmt, IntFormat) and isinstance(fmt.granularity, PerGroup) and fmt.granularity.ragged == "refuse" and shape[1] % fmt.granularity.size:
            continue
        values = RNG.standard_t(3, shape).astype(np.float32)
        values[:, :70] = np.round(values[:, :70] * 4) / 4
        values[0] = 0
        values[1::7] *= np.logspace(-3, -36, len(values[1::7]), dtype=np.float32)[:, None]
        found = encode(values, fmt)
        with oracle_only():
            expected = encode(values, fmt)
            decoded = expected.decode()
        np.testing.assert_array_equal(found.codes, expected.codes)
        for part in ("scales", "zero_points"):
            np.testing.assert_array_equal(getattr(found, part), getattr(expected, part))
        np.testing.assert_array_equal(found.decode().view(np.uint32), decoded.view(np.uint32))


def test_fused_loops_name_the_first_broken_value(monkeypatch):
    pytest.importorskip("numba")
    monkeypatch.setattr("compress.numerics.fast.LARGE", 1)
    monkeypatch.setattr("compress.numerics.fast.LOADED", 1)
    values = np.ones((300, 300), np.float32)
    for bad in (np.nan, np.inf):
        values[7, 9] = bad
        for fmt in ("bnb.nf4", "tflite.int8.weight", "fp8.e4m3", "kmeans.16"):
            with pytest.raises(InputError, match=r"1 of 90000 values .*first at \[7, 9\]"):
                compress.encode(values, fmt)


@pytest.mark.parametrize("name", TABLES)
def test_nearest_is_nearest(name):
    table = levels(name)
    finite = table.values[np.isfinite(table.values)]
    x = np.concatenate([RNG.uniform(-1.2, 1.2, 2000) * finite.max(), finite, [0.0, -0.0]]).astype(np.float32)
    codes = table.nearest(x)
    chosen = np.abs(table.values[codes].astype(np.float64) - x)
    least = np.abs(finite[:, None].astype(np.float64) - x).min(0)
    assert np.all(chosen <= least * (1 + 1e-6) + 1e-9 * finite.max())  # thresholds are float32 midpoints
    np.testing.assert_array_equal(table.values[table.nearest(finite)], finite)


@given(st.integers(2, 40), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_a_users_levels_are_found_whatever_their_order(count, seed):
    dice = np.random.default_rng(seed)
    book = tuple(float(v) for v in dice.permutation(np.unique(dice.standard_normal(count).astype(np.float32))))
    assume(len(book) >= 2)
    values = dice.standard_normal((4, 16)).astype(np.float32)
    decoded = encode(values, CodebookFormat(book, scaling="none")).decode()
    best = np.abs(np.array(book, np.float32)[:, None] - values.ravel()).min(0)
    np.testing.assert_allclose(np.abs(decoded - values).ravel(), best, atol=1e-6)


def test_the_generator_meets_bitsandbytes_table():
    """numerics.md 6.4: NF4 as bitsandbytes lists it; the last digit is SciPy's."""
    np.testing.assert_allclose(normal_float(4).values, levels("nf4").values, atol=2e-7)
    np.testing.assert_array_equal(with_thresholds(levels("nf4").values).thresholds, levels("nf4").thresholds)


def test_ties_go_where_each_table_says():
    tie = np.array([0.25, -0.25, 2.5, 3.5, -5.0, 0.75], np.float32)
    assert levels("e2m1").values[levels("e2m1").nearest(tie)].tolist() == [0, -0.0, 2, 4, -4, 1]  # to even codes
    assert levels("log3").values[levels("log3").nearest(np.array([0.75, -0.75], np.float32))].tolist() == [0.5, -0.5]  # toward zero


def test_four_bits_with_double_quantization_are_4_127_bits():
    encoded = encode(np.zeros((1024, 1024), np.float32), FORMATS["bnb.nf4.dq"])
    assert encoded.ledger.bits_per_weight == pytest.approx(4 + 8 / 64 + 32 / (64 * 256), abs=1e-4)  # and 4 bytes for the mean


@pytest.mark.parametrize("kind", ["dynamic", "linear"])
def test_double_quantization_costs_a_hundredth_of_a_decibel(kind):
    values = RNG.standard_normal((512, 1024)).astype(np.float32)
    plain = CodebookFormat("nf4", PerBlock(64), division="reciprocal")
    loss = sqnr(values, encode(values, plain).decode()) - sqnr(values, encode(values, dataclasses.replace(plain, double=DoubleQuantized(kind))).decode())
    assert abs(loss) < 0.02


@pytest.mark.parametrize(("scaling", "scale"), [("mx_floor", 1.0), ("mx_ceil", 2.0), ("mx_rceil", 2.0), ("mx_even", 2.0)])
def test_mx_rules_differ_between_6_and_8(scaling, scale):
    """amax 7 with levels up to 6: floor keeps 2^0 and saturates, the others take 2^1 (OCP MX 1.0, 6.3)."""
    values = np.zeros((1, 32), np.float32)
    values[0, 0] = 7
    encoded = encode(values, CodebookFormat("e2m1", PerGroup(32), scaling, "float8_e8m0"))
    assert encoded.scales.tolist() == [[scale]]
    assert encoded.decode()[0, 0] == (6 if scaling == "mx_floor" else 8)  # 3.5 is a tie between 3 and 4: to the even code, 4


def test_nvfp4_has_two_levels_of_scales():
    values = RNG.standard_normal((4, 64)).astype(np.float32)
    encoded = encode(values, FORMATS["nvfp4"])
    assert encoded.global_scale == np.float32(np.abs(values).max()) / np.float32(448 * 6)
    np.testing.assert_array_equal(encoded.scales, from_storage(to_storage(encoded.scales, "float8_e4m3"), "float8_e4m3"))


def test_small_scale_dtypes_round_trip():
    finite = levels("e4m3").values[:127]
    np.testing.assert_array_equal(from_storage(to_storage(finite, "float8_e4m3"), "float8_e4m3"), finite)
    middles = (finite[1:] + finite[:-1]) / 2
    expected = np.where(np.arange(126) % 2 == 0, finite[:-1], finite[1:])  # ties to even patterns
    np.testing.assert_array_equal(to_e4m3(middles), expected)
    powers = np.exp2(np.arange(-126, 128)).astype(np.float32)
    np.testing.assert_array_equal(from_storage(to_storage(powers, "float8_e8m0"), "float8_e8m0"), powers)
    np.testing.assert_array_equal(power_of_two_above(powers[:-1] * np.float32(1.01)), powers[1:])


@given(st.integers(2, 4), st.integers(1, 12), st.integers(0, 2**31))
@settings(max_examples=80, deadline=None)
def test_the_best_scale_is_the_best_of_a_dense_search(bits, count, seed):
    values = np.random.default_rng(seed).standard_normal((1, count)).astype(np.float32)
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1

    def error(scale):
        return np.square(np.clip(np.rint(values / scale), low, high) * scale - values).sum(dtype=np.float64)

    found = best_scale(values, low, high)[0]
    dense = min(error(s) for s in np.linspace(1e-3, 1.5, 3000) * np.abs(values).max())
    assert found > 0 and error(found) <= dense * (1 + 1e-5) + 1e-12


@pytest.mark.parametrize("fit", ["percentile", "mse", "entropy", "octav"])
def test_fits_leave_outliers_out(fit):
    values = RNG.standard_normal((2, 4096)).astype(np.float32)
    values[:, 0] = 60
    fitted, whole = (encode(values, IntFormat(4, PerAxis(), "qmax", fit=f)) for f in (fit, "minmax"))
    assert np.all(fitted.scales < whole.scales)
    assert fit != "mse" or sqnr(values, fitted.decode()) > sqnr(values, whole.decode())


def test_last_groups_and_blocks_may_be_short():
    values = RNG.standard_normal((3, 50)).astype(np.float32)
    for granularity, shape in ((PerGroup(32, "short"), (3, 2)), (PerBlock(64), (3,))):
        encoded = encode(values, IntFormat(8, granularity))
        assert encoded.scales.shape == shape
        assert np.abs(encoded.decode() - values).max() < np.abs(encoded.scales).max() * 0.51
    grouped = encode(values, IntFormat(8, PerGroup(32, "short")))
    np.testing.assert_allclose(grouped.scales[:, 1], np.abs(values[:, 32:]).max(1) / 127, rtol=1e-6)


@pytest.mark.parametrize("zero_point", ["float", "offset"])
def test_float_zero_points_reach_both_ends(zero_point):
    values = RNG.uniform(3, 4, (4, 64)).astype(np.float32)
    encoded = encode(values, IntFormat(4, PerAxis(), "asymmetric", signed=False, zero_point=zero_point))
    assert encoded.codes.min() == 0 and encoded.codes.max() == 15
    assert np.abs(encoded.decode() - values).max() < 0.51 / 15


def test_learned_codebooks_follow_the_sensitivity():
    values = np.concatenate([RNG.normal(-1, 0.1, 500), RNG.normal(1, 0.1, 500)]).astype(np.float32).reshape(1, -1)
    weights = np.where(values < 0, 100.0, 0.01).astype(np.float32)
    fmt = CodebookFormat(Learned(4), PerTensor(), "none")
    assert (compress.encode(values, fmt, weights).codebook < 0).sum() >= 3
    assert (compress.encode(values, fmt).codebook < 0).sum() == 2


def test_entries_are_stored_as_the_format_says():
    values = RNG.standard_normal((4, 128)).astype(np.float32)
    zero = encode(values, CodebookFormat(Learned(7, exact_zero=True), PerAxis(), "none"))
    assert np.all((zero.codebook == 0).sum(-1) == 1)
    int8 = encode(values, CodebookFormat(Learned(8, entry_dtype="int8"), PerAxis(), "none"))
    steps = int8.codebook / (np.abs(int8.codebook).max(-1, keepdims=True) / 127)
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-3)


@pytest.mark.parametrize("damage", ["truncated", "altered", "foreign"])
def test_damaged_files_are_refused(tmp_path, damage):
    path = tmp_path / "w.safetensors"
    encode(RNG.standard_normal((8, 64)), FORMATS["bnb.nf4.dq"]).save(path)
    data = bytearray(path.read_bytes())
    if damage == "truncated":
        del data[-9:]
    elif damage == "altered":
        data[-20] ^= 1
    else:
        data = b"no safetensors at all"
    path.write_bytes(data)
    with pytest.raises(BrokenFile, match=r"w\.safetensors"):
        Encoded.load(path)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: IntFormat(1), "1 bit"),
        (lambda: IntFormat(4, rule="half", signed=False), "both signs"),
        (lambda: IntFormat(4, zero_point="float"), "needs rule asymmetric"),
        (lambda: IntFormat(4, rule="signed", scale_dtype="float8_e8m0"), "no sign"),
        (lambda: IntFormat(4, rule="asymmetric", fit="octav"), "two ends"),
        (lambda: IntFormat(4, rule="asymmetric", small_scale="litert"), "narrow, qmax or half"),
        (lambda: IntFormat(4, small_scale="hqq"), "float zero points"),
        (lambda: IntFormat(4, fit="mse", small_scale="converter"), "fit mse"),
        (lambda: CodebookFormat("nf4", PerBlock(64), small_scale="litert"), "scaling amax"),
        (lambda: CodebookFormat("nf4", scaling="mx_floor"), "float32"),
        (lambda: CodebookFormat(Learned(16), scaling="amax"), "own units"),
        (lambda: CodebookFormat("nf4", double=DoubleQuantized()), "per tensor"),
        (lambda: CodebookFormat((1.0, 1.0)), "different levels"),
        (lambda: Learned(300), "entries"),
        (lambda: PerBlock(1), "at least 2"),
    ],
)
def test_impossible_combinations_say_which_rule_they_break(make, words):
    with pytest.raises(RecipeError, match=words):
        make()


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(UnknownName, match=r"bnb\.nf4"):
        compress.encode(np.ones((4, 64)), "bnb.nf44")
    with pytest.raises(UnknownName, match="nf4"):
        CodebookFormat("nf44")
    with pytest.raises(InputError, match="small float"):
        encode(np.ones((4, 64)), CodebookFormat("nf4", PerGroup(32), "mx_floor", "float8_e8m0"))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float8_e4m3", "float8_e8m0"])
@pytest.mark.parametrize(("granularity", "shape"), [(PerTensor(), ()), (PerAxis(), (4,)), (PerGroup(32), (4, 2)), (PerBlock(64), (4,))])
def test_scales_have_the_shape_of_their_granularity(dtype, granularity, shape):
    assert encode(RNG.standard_normal((4, 64)), IntFormat(4, granularity, scale_dtype=dtype)).scales.shape == shape
