"""Laws of masks: exact counts, the least salient weights, ties by index; SparseGPT against an optimal brain surgeon that inverts every matrix anew."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.errors import InputError
from compress.numerics.pruning import channel_scores, global_masks, holds, mask, saliency, sparsegpt
from compress.sparsity import Blocks, Channels, NofM, Unstructured

SHAPES = st.sampled_from([(1, 1), (3, 7), (4, 8), (6, 2, 3), (5, 3, 3, 3), (2, 65)])
SPARSITIES = st.one_of(st.sampled_from([0.0, 0.5, 0.9, 0.999]), st.floats(0, 1, exclude_max=True))
N_OF_M = st.sampled_from([NofM(1, 2), NofM(2, 4), NofM(4, 8), NofM(1, 16), NofM(3, 5)])
BLOCKS = st.sampled_from([Blocks(1, 4), Blocks(4, 1), Blocks(2, 3), Blocks(16, 16)])


@st.composite
def scores(draw):
    """float32 with ties, or without."""
    shape, seed = draw(SHAPES), draw(st.integers(0, 2**32 - 1))
    random = np.random.default_rng(seed)
    return (random.integers(0, 4, shape) if draw(st.booleans()) else random.random(shape)).astype(np.float32)


def without_lowest(row: np.ndarray, count: int) -> np.ndarray:
    """The oracle: a stable sort, and the first `count` go."""
    kept = np.ones(row.size, bool)
    kept[np.argsort(row.ravel(), kind="stable")[:count]] = False
    return kept.reshape(row.shape)


@given(scores(), SPARSITIES)
def test_unstructured_masks_remove_exactly_the_lowest(found, sparsity):
    kept = mask(found, Unstructured(), sparsity)
    assert kept.dtype == bool and np.count_nonzero(~kept) == round(sparsity * found.size)
    np.testing.assert_array_equal(kept, without_lowest(found, round(sparsity * found.size)))


@given(st.lists(scores(), min_size=1, max_size=4), SPARSITIES)
def test_global_masks_have_one_threshold(found, sparsity):
    named = {f"layer{i}": score for i, score in enumerate(found)}
    kept = global_masks(named, sparsity)
    together = np.concatenate([score.ravel() for score in found])
    assert list(kept) == list(named) and all(kept[name].shape == named[name].shape for name in named)
    np.testing.assert_array_equal(np.concatenate([part.ravel() for part in kept.values()]), without_lowest(together, round(sparsity * together.size)))


@given(scores(), N_OF_M)
def test_n_of_m_masks_keep_the_best_of_each_group(found, pattern):
    kept = mask(found, pattern).reshape(len(found), -1)
    rows = found.reshape(len(found), -1)
    for row, begin in product(range(len(rows)), range(0, rows.shape[1], pattern.m)):
        group = rows[row, begin : begin + pattern.m]
        most = int(np.ceil(pattern.n * len(group) / pattern.m))
        np.testing.assert_array_equal(kept[row, begin : begin + pattern.m], without_lowest(group, len(group) - most))


@given(scores(), BLOCKS, SPARSITIES)
def test_block_masks_remove_whole_tiles_of_the_lowest_sums(found, pattern, sparsity):
    rows = found.reshape(len(found), -1)
    corners = list(product(range(0, rows.shape[0], pattern.rows), range(0, rows.shape[1], pattern.columns)))
    sums = np.array([rows[i : i + pattern.rows, j : j + pattern.columns].sum(dtype=np.float64) for i, j in corners])
    expected = np.empty(rows.shape, bool)
    # sums of float32 are exact to 2^-50 of them: tiles so near to each other do not occur among the drawn ones, equal ones are equal
    for (i, j), kept in zip(corners, without_lowest(sums, round(sparsity * len(corners))), strict=True):
        expected[i : i + pattern.rows, j : j + pattern.columns] = kept
    np.testing.assert_array_equal(mask(found, pattern, sparsity), expected.reshape(found.shape))


@given(scores(), st.one_of(N_OF_M, BLOCKS, st.just(Unstructured())), SPARSITIES)
def test_masks_hold_and_one_weight_more_does_not(found, pattern, sparsity):
    share = None if isinstance(pattern, NofM) else sparsity
    kept = mask(found, pattern, share)
    assert holds(np.where(kept, -1.0, 0.0), pattern, share) is None
    assert holds(np.zeros(found.shape), pattern, share) is None
    if not kept.all():
        broken = np.where(kept, -1.0, 0.0)
        broken[np.unravel_index(np.argmin(kept), kept.shape)] = 1e-30
        assert " 0" in holds(broken, pattern, share)


def test_n_of_m_grows_with_a_schedule():
    found = np.random.default_rng(0).random((3, 12))
    counts = [np.count_nonzero(mask(found, NofM(1, 4), share)) for share in (0, 0.2, 0.45, 0.7, 0.75)]
    assert counts == [36, 27, 18, 9, 9]
    assert holds(mask(found, NofM(1, 4), 0.45), NofM(1, 4), 0.45) is None and "hold more than 1" in holds(mask(found, NofM(1, 4), 0.45), NofM(1, 4))


def test_reasons_say_how_many():
    assert holds(np.ones((2, 4)), Unstructured(), 0.5) == "0 of 8 weights are 0, fewer than 4"
    assert holds(np.array([[1, 0, 1, 1, 0, 0, 1, 1]]), NofM(2, 4)) == "1 of 2 groups of 4 weights hold more than 2 that are not 0"
    assert holds(np.array([[0, 0, 0, 0, 1, 0, 0, 0]]), Blocks(1, 4), 0.9) == "1 of 2 tiles are 0, fewer than 2"


def correlated(inputs: int, samples: int = 400, seed: int = 0) -> np.ndarray:
    """[samples, inputs] whose neighbours go together, of different power."""
    draw = np.random.default_rng(seed)
    return np.cumsum(draw.standard_normal((samples, inputs)), 1) * 2.0 ** draw.integers(-2, 3, inputs)


def test_saliencies():
    draw = np.random.default_rng(1)
    values, inputs = draw.standard_normal((5, 3, 2)).astype(np.float32), correlated(6)
    moment = inputs.T @ inputs / len(inputs)
    np.testing.assert_array_equal(saliency(values, "magnitude"), np.abs(values))
    expected = np.abs(values.reshape(5, 6)) * np.sqrt((inputs**2).mean(0))
    found = saliency(values, "wanda", moment)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.reshape(5, 6), expected, rtol=3e-7)  # two float32 roundings
    np.testing.assert_array_equal(saliency(values, "wanda", np.diagonal(moment)), found)
    np.testing.assert_allclose(channel_scores(values), np.linalg.norm(values.reshape(5, 6).astype(np.float64), axis=1), rtol=1e-7)


def surgeon(values: np.ndarray, moment: np.ndarray, pattern, sparsity, block: int, damping: float) -> tuple[np.ndarray, np.ndarray]:
    """Optimal brain surgeon from left to right, one weight at a time: what remains is inverted anew for each column."""
    rows, columns = values.reshape(len(values), -1).astype(np.float64), moment.shape[0]
    damped = moment + damping * np.diagonal(moment).mean() * np.eye(columns)
    left = [np.linalg.inv(damped[i:, i:]) for i in range(columns)]
    kept = np.ones(rows.shape, bool)
    step = pattern.m if isinstance(pattern, NofM) else block
    for i in range(columns):
        if i % step == 0:
            end = min(i + step, columns)
            loss = np.stack([rows[:, j] ** 2 / left[j][0, 0] for j in range(i, end)], 1)
            if isinstance(pattern, NofM):
                drop = end - i - int(np.ceil(pattern.n * (end - i) / pattern.m))
                kept[:, i:end] = np.stack([without_lowest(row, drop) for row in loss])
            else:
                kept[:, i:end] = without_lowest(loss, round(sparsity * len(rows) * end) - round(sparsity * len(rows) * i))
        for row in np.flatnonzero(~kept[:, i]):
            rows[row, i:] -= rows[row, i] / left[i][0, 0] * left[i][0]
            rows[row, i] = 0
    return rows.reshape(values.shape), kept.reshape(values.shape)


@pytest.mark.parametrize("pattern", [Unstructured(), NofM(2, 4), NofM(1, 3)], ids=str)
@pytest.mark.parametrize("block", [4, 7, 128])
@settings(max_examples=20, deadline=None)
@given(st.sampled_from([(4, 8), (3, 5, 2), (2, 2, 3, 3), (1, 13)]), st.integers(0, 2**32 - 1))
def test_sparsegpt_is_optimal_brain_surgeon_column_by_column(pattern, block, shape, seed):
    inputs = int(np.prod(shape[1:]))
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    data = np.random.default_rng(seed + 1).standard_normal((3 * inputs, inputs)) @ np.random.default_rng(seed + 2).standard_normal((inputs, inputs))
    moment, share = data.T @ data / len(data), None if isinstance(pattern, NofM) else 0.6
    before = values.copy()
    found, kept = sparsegpt(values, moment, pattern, share, block)
    expected, expected_kept = surgeon(values, moment, pattern, share, block, 0.01)
    np.testing.assert_array_equal(kept, expected_kept)
    # damping bounds the condition to 100 x inputs, so float64 leaves float32's last digit of the largest value
    np.testing.assert_allclose(found, expected, atol=2.0**-23 * np.abs(expected).max(), rtol=2.0**-23)
    np.testing.assert_array_equal(values, before)
    assert found.dtype == np.float32 and not found[~kept].any() and holds(found, pattern, share) is None


def test_blocks_do_not_change_n_of_m():
    values, inputs = np.random.default_rng(2).standard_normal((16, 48)).astype(np.float32), correlated(48)
    whole, kept = sparsegpt(values, inputs.T @ inputs, NofM(2, 4))
    for block in (1, 4, 10, 16):
        found, also = sparsegpt(values, inputs.T @ inputs, NofM(2, 4), block=block)
        np.testing.assert_array_equal(also, kept)
        np.testing.assert_allclose(found, whole, rtol=2.0**-22, atol=1e-6)  # lazy updates are summed in another order, in float64


@given(st.integers(1, 40), st.integers(1, 9), SPARSITIES, st.integers(1, 50))
@settings(max_examples=50, deadline=None)
def test_sparsegpt_counts_exactly(inputs, outputs, sparsity, block):
    values = np.random.default_rng(inputs).standard_normal((outputs, inputs))
    _, kept = sparsegpt(values, np.eye(inputs), Unstructured(), sparsity, block)
    assert np.count_nonzero(~kept) == round(sparsity * values.size)


@pytest.mark.parametrize("pattern", [Unstructured(), NofM(2, 4)], ids=str)
def test_output_errors_fall_from_magnitude_over_wanda_to_sparsegpt(pattern):
    share = None if isinstance(pattern, NofM) else 0.5
    for seed in range(5):
        values, inputs = np.random.default_rng(seed).standard_normal((32, 64)).astype(np.float32), correlated(64, seed=seed)
        moment = inputs.T @ inputs / len(inputs)
        pruned = {kind: values * mask(saliency(values, kind, moment), pattern, share) for kind in ("magnitude", "wanda")}
        pruned["sparsegpt"], _ = sparsegpt(values, moment, pattern, share)
        errors = {kind: np.square(inputs @ (found - values).T).sum() for kind, found in pruned.items()}
        assert errors["sparsegpt"] < 0.7 * errors["wanda"] and errors["wanda"] < errors["magnitude"]


def test_independent_inputs_leave_nothing_to_make_up_for():
    values = np.random.default_rng(3).standard_normal((8, 12)).astype(np.float32)
    found, kept = sparsegpt(values, 5 * np.eye(12), Unstructured(), 0.5)
    np.testing.assert_array_equal(kept, mask(np.abs(values), Unstructured(), 0.5))
    np.testing.assert_array_equal(found, np.where(kept, values, 0))


def test_weights_of_dead_inputs_go_first_and_change_nothing():
    values, inputs = np.random.default_rng(4).standard_normal((6, 10)).astype(np.float32), correlated(10)
    inputs[:, [2, 7]] = 0
    moment = inputs.T @ inputs / len(inputs)
    for share in (0.1, 0.2):
        found, kept = sparsegpt(values, moment, Unstructured(), share)
        assert not kept[:, [2, 7]].all() and kept[:, [0, 1, 3, 4, 5, 6, 8, 9]].all() and np.count_nonzero(~kept) == round(share * 60)
        np.testing.assert_array_equal(found[kept], values[kept])
    rest = [i for i in range(10) if i not in (2, 7)]
    found, kept = sparsegpt(values, moment, Unstructured(), 0.6)
    alone, alone_kept = sparsegpt(values[:, rest], moment[np.ix_(rest, rest)], Unstructured(), (36 - 12) / 48)
    np.testing.assert_array_equal(kept[:, rest], alone_kept)
    np.testing.assert_allclose(found[:, rest], alone, rtol=2.0**-22)
    undamped, _ = sparsegpt(values, moment, Unstructured(), 0.6, damping=0)
    assert np.isfinite(undamped).all()
    nothing, _ = sparsegpt(values, np.zeros((10, 10)), NofM(2, 5))
    assert holds(nothing, NofM(2, 5)) is None


ONES = np.ones((2, 4))


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (lambda: mask(ONES, Unstructured(), 1.0), "sparsity.*1.0"),
        (lambda: mask(ONES, Unstructured(), -0.1), "sparsity.*-0.1"),
        (lambda: mask(ONES, Blocks(), float("nan")), "sparsity.*nan"),
        (lambda: mask(ONES, Unstructured()), "sparsity.*None"),
        (lambda: mask(ONES, NofM(2, 4), 0.75), "2:4 has 0.5"),
        (lambda: mask(ONES * np.nan, Unstructured(), 0.5), "8 of 8 scores are NaN"),
        (lambda: mask(ONES, Unstructured("global"), 0.5), "global_masks"),
        (lambda: mask(ONES, Channels(), 0.5), "channels"),
        (lambda: holds(ONES, Unstructured("global"), 0.5), "global_masks"),
        (lambda: holds(ONES, Channels(), 0.5), "channels"),
        (lambda: global_masks({"a": ONES}, 2), "sparsity.*2"),
        (lambda: global_masks({"a": ONES, "b": ONES * np.nan}, 0.5), "8 of 16 scores are NaN"),
        (lambda: saliency(ONES, "wanda"), "wanda needs calibration data"),
        (lambda: saliency(ONES, "wanda", np.ones(3)), r"\[4, 4\], not \[3\]"),
        (lambda: saliency(ONES, "wanda", -np.ones(4)), "negative power"),
        (lambda: saliency(ONES, "sparsegpt"), "call sparsegpt"),
        (lambda: channel_scores(ONES, "wanda"), "magnitude"),
        (lambda: sparsegpt(ONES, None, Unstructured(), 0.5), "sparsegpt needs calibration data"),
        (lambda: sparsegpt(ONES, np.ones(4), Unstructured(), 0.5), r"\[4, 4\], not \[4\]"),
        (lambda: sparsegpt(ONES, np.eye(4) * np.nan, NofM()), "NaN"),
        (lambda: sparsegpt(ONES, np.ones((4, 4)) * 9 - 8 * np.eye(4), NofM()), "not positive definite"),
        (lambda: sparsegpt(ONES, np.eye(4), Blocks(), 0.5), "not blocks"),
        (lambda: sparsegpt(ONES, np.eye(4), Unstructured("global"), 0.5), "global_masks"),
        (lambda: sparsegpt(ONES, np.eye(4), Unstructured(), 1), "sparsity"),
        (lambda: sparsegpt(ONES * np.inf, np.eye(4), NofM()), "infinite"),
    ],
)
def test_bad_input_is_refused(call, what):
    with pytest.raises(InputError, match=what):
        call()
