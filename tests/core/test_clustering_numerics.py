"""Laws of clusters: few values, exact zeros, nearest centroids, and codebook formats that give the very same values back."""

from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.errors import InputError
from compress.formats import CodebookFormat, Learned, PerAxis, PerTensor
from compress.numerics import encode
from compress.numerics.clustering import Initialization, cluster, distinct, values_of
from compress.numerics.fast import oracle_only
from compress.numerics.kmeans import optimal_codebooks

INITIALIZATIONS = get_args(Initialization)
EVERY = pytest.mark.parametrize("initialization", INITIALIZATIONS)
PER = pytest.mark.parametrize("per", ["tensor", "axis"])
SHAPES = st.sampled_from([(1, 1), (3, 40), (4, 2, 3, 3), (7, 1), (2, 300)])


@st.composite
def weights(draw):
    """(float32 values, mask or None); heavy tails, ties, values of one sign, tiny ones; masks may keep nothing or everything of a channel."""
    random, shape = np.random.default_rng(draw(st.integers(0, 2**32 - 1))), draw(SHAPES)
    kinds = {
        "tails": random.standard_t(3, shape),
        "ties": random.integers(-4, 5, shape) / 8,
        "positive": random.random(shape) + 0.1,
        "tiny": random.standard_normal(shape) * 1e-20,
        "two scales": random.standard_normal(shape) * random.choice([1e-4, 1.0], shape),
    }
    share = draw(st.sampled_from([None, 0.0, 0.2, 0.5, 1.0]))
    mask = None if share is None else random.random(shape) < share * random.choice([0.5, 1.0], (shape[0], *[1] * (len(shape) - 1)))
    return kinds[draw(st.sampled_from(sorted(kinds)))].astype(np.float32), mask


def rows_of(array: np.ndarray, per: str) -> np.ndarray:
    return array.reshape(len(array) if per == "axis" else 1, -1)


@EVERY
@PER
@settings(max_examples=40, deadline=None)
@given(weights(), st.sampled_from([2, 3, 16, 256]))
def test_few_values_the_nearest_and_exact_zeros(initialization, per, case, clusters):
    values, mask = case
    before = values.copy()
    codes, centroids = cluster(values, clusters, per, initialization, mask)
    found = values_of(codes, centroids)
    assert codes.dtype == np.uint8 and found.dtype == centroids.dtype == np.float32 and codes.shape == found.shape == values.shape
    assert centroids.shape == ((len(values), clusters) if per == "axis" else (clusters,)) and np.isfinite(centroids).all()
    assert distinct(found, per) <= clusters
    kept = np.ones(values.shape, bool) if mask is None else mask
    np.testing.assert_array_equal(codes[~kept], 0)
    assert not found[~kept].view(np.uint32).any()
    first = 0 if mask is None else 1  # the cluster of zeros takes no kept weight
    for row, code, keep, centroid in zip(rows_of(values, per), rows_of(codes, per), rows_of(kept, per), np.atleast_2d(centroids), strict=True):
        assert mask is None or centroid[0].view(np.uint32) == 0
        others = centroid[first:].astype(np.float64)
        assert np.all(np.diff(others) >= 0) and np.all(code[keep] >= first)
        away = np.abs(row[keep, None] - others)
        # a float32 threshold may lie half a step from the midpoint
        assert np.all(np.abs(row[keep] - centroid[code[keep]].astype(np.float64)) <= away.min(1, initial=np.inf) + np.abs(others).max() * 2.0**-23)
    np.testing.assert_array_equal(values, before)


@EVERY
@PER
@settings(max_examples=40, deadline=None)
@given(weights(), st.sampled_from([2, 5, 16, 256]))
def test_codebook_formats_give_the_same_values_back(initialization, per, case, clusters):
    values, mask = case
    found = values_of(*cluster(values, clusters, per, initialization, mask))
    fmt = CodebookFormat(Learned(clusters, exact_zero=mask is not None), PerTensor() if per == "tensor" else PerAxis(), "none")
    encoded = encode(found, fmt)
    np.testing.assert_array_equal(encoded.decode().view(np.uint32), found.view(np.uint32))
    if mask is not None:
        assert (encoded.codebook == 0).any(-1).all()


@EVERY
@PER
@pytest.mark.parametrize("pruned", [False, True])
def test_long_rows_come_back_too(initialization, per, pruned):
    """Rows that are summed into bins, with and without compiled loops."""
    draw = np.random.default_rng(5)
    values = draw.standard_t(4, (2, 70_000)).astype(np.float32)
    mask = draw.random(values.shape) < 0.2 if pruned else None
    found = values_of(*cluster(values, 16, per, initialization, mask))
    fmt = CodebookFormat(Learned(16, exact_zero=pruned), PerTensor() if per == "tensor" else PerAxis(), "none")
    np.testing.assert_array_equal(encode(found, fmt).decode(), found)
    with oracle_only():
        np.testing.assert_array_equal(encode(found, fmt).decode(), found)


@PER
def test_optimal_is_the_codebook_of_the_kept_weights(per):
    draw = np.random.default_rng(0)
    values = draw.standard_t(4, (5, 60)).astype(np.float32)
    mask = draw.random(values.shape) < np.array([0.9, 0.5, 0.2, 0.05, 0])[:, None]
    _, plain = cluster(values, 8, per)
    np.testing.assert_array_equal(np.atleast_2d(plain), optimal_codebooks(rows_of(values, per), 8))
    _, centroids = cluster(values, 8, per, "optimal", mask)
    for row, kept, centroid in zip(rows_of(values, per), rows_of(mask, per), np.atleast_2d(centroids), strict=True):
        expected = optimal_codebooks(row[kept][None], 7)[0] if kept.any() else np.zeros(7)
        np.testing.assert_array_equal(centroid[1:], expected)


@PER
@pytest.mark.parametrize("pruned", [False, True])
def test_optimal_loses_least(per, pruned):
    draw = np.random.default_rng(1)
    values = draw.standard_t(4, (6, 200)).astype(np.float32)
    mask = draw.random(values.shape) < 0.3 if pruned else None
    kept = np.ones(values.shape, bool) if mask is None else mask
    lost = {
        initialization: np.square(values - values_of(*cluster(values, 16, per, initialization, mask)))[kept].sum(dtype=np.float64)
        for initialization in INITIALIZATIONS
    }
    assert all(lost["optimal"] < 0.8 * lost[other] for other in INITIALIZATIONS if other != "optimal")


def test_initializations_where_they_can_be_said_by_hand():
    row = np.array([[-1, -0.5, 0, 0.25, 3]], np.float32)
    np.testing.assert_array_equal(cluster(row, 5, "tensor", "linear")[1], [-1, 0, 1, 2, 3])
    assert not np.signbit(cluster(np.array([[-1, -0.0]], np.float32), 2, "tensor", "linear")[1][1])  # codebooks know one zero
    kept = row != 0  # two negative and two positive weights: two of the four other centroids each
    np.testing.assert_array_equal(cluster(row, 5, "tensor", "linear", kept)[1], [0, -1, -0.5, 0.25, 3])
    np.testing.assert_array_equal(cluster(row, 2, "tensor", "linear", kept)[1], [0, 0.25])  # half of one is rounded to even: none for the negative ones
    # nodes from -0.01 to 29 * step - 0.01; the distribution passes 0.01, 0.34, 0.67 and 1 at nodes 1, 10, 20 and 30, of which the last is 29
    even = np.linspace(0, 1, 3001, dtype=np.float32)[None]
    nodes = np.linspace(-0.01, 1.01, 30)
    np.testing.assert_allclose(cluster(even, 4, "tensor", "density")[1], nodes[[1, 10, 20, 29]], atol=1e-6)


def test_kmeans_plus_plus_takes_weights_by_their_distance():
    groups = np.repeat([-100.0, 0.0, 1e-3, 100.0], 50)[None] + np.arange(200) * 1e-6
    for seed in range(20):
        _, centroids = cluster(groups, 3, "tensor", "kmeans++", seed=seed)
        assert set(centroids) <= set(groups[0].astype(np.float32))
        # chance picks within a group but never two of one group, so far away are the others
        assert np.array_equal(np.round(centroids, -2), [-100, 0, 100])
    first, again, other = (cluster(groups, 3, "tensor", "kmeans++", seed=seed)[1] for seed in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_channels_do_not_touch_each_other():
    values = np.random.default_rng(2).standard_normal((4, 30)).astype(np.float32)
    for initialization in ("optimal", "linear", "density"):
        together = values_of(*cluster(values, 4, "axis", initialization))
        for row, channel in zip(values, together, strict=True):
            np.testing.assert_array_equal(values_of(*cluster(row[None], 4, "tensor", initialization))[0], channel)


def test_distinct_counts():
    values = np.array([[0.0, -0.0, 1], [2, 3, 4], [4, 4, 4]])
    assert distinct(values, "tensor") == 5 and distinct(values, "axis") == 3 and distinct(values[:0], "axis") == 0
    assert distinct(np.arange(24.0).reshape(2, 3, 4) % 7, "axis") == 7


GOOD = np.ones((2, 4), np.float32)


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ((GOOD, 1, "tensor"), "clusters: 2 to 256, not 1"),
        ((GOOD, 257, "tensor"), "not 257"),
        ((GOOD, 4, "row"), "row"),
        ((GOOD, 4, "axis", "random"), "optimal, linear, density.*random"),
        ((GOOD, 4, "axis", "linear", np.ones((2, 3), bool)), r"mask: \[2, 4\] as the values, not \[2, 3\]"),
        ((GOOD * np.nan, 4, "axis"), "8 of 8 values are NaN"),
        ((GOOD[:0], 4, "axis"), "empty"),
    ],
)
def test_bad_input_is_refused(arguments, what):
    with pytest.raises(InputError, match=what):
        cluster(*arguments)
