"""Optimal means optimal: exhaustive search on small rows, another exact solver on long ones; in NumPy and, where numba is installed, compiled."""

import sys
from contextlib import contextmanager
from itertools import combinations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from compress.numerics import kmeans, kmeans_numpy
from compress.numerics.kmeans import optimal_codebooks

BOTH = pytest.mark.parametrize("how", ["numpy", "compiled"])


@contextmanager
def using(how: str, **settings):
    """`optimal_codebooks` in NumPy or compiled, with other constants of the module."""
    module = pytest.importorskip("compress.numerics.kmeans_kernels", exc_type=ImportError) if how == "compiled" else kmeans_numpy
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kmeans, "implementation", lambda: module)
        for name, value in settings.items():
            patch.setattr(kmeans, name, value)
        yield


def distortion(row: np.ndarray, codebook: np.ndarray, weights: np.ndarray | None = None) -> float:
    row, codebook = row.astype(np.float64), codebook.astype(np.float64)
    nearest = codebook[np.searchsorted((codebook[1:] + codebook[:-1]) / 2, row)]
    return float(np.sum((row - nearest) ** 2 * (1 if weights is None else weights)))


def slack(row: np.ndarray, weights: np.ndarray | None = None) -> float:
    """An entry is off by half a float32 step at most, and its mean is stationary: the square of that for each value."""
    return float(np.abs(row).max() * 2.0**-24) ** 2 * float(len(row) if weights is None else weights.sum()) + 1e-300


def exhaustive(row: np.ndarray, entries: int, weights: np.ndarray, exact_zero: bool) -> float:
    """The least distortion over every partition of the sorted row in intervals, and over which of them, if any, goes to zero."""
    order = np.argsort(row)
    values, weights = row[order].astype(np.float64), weights[order].astype(np.float64)
    cost, to_zero = {}, {}
    for a, b in combinations(range(len(values) + 1), 2):
        v, w = values[a:b], weights[a:b]
        cost[a, b] = np.sum(w * (v - (w @ v / w.sum() if w.sum() else 0)) ** 2)
        to_zero[a, b] = np.sum(w * v**2)
    least = np.inf
    for pieces in range(1, min(entries, len(values)) + 1):
        for inner in combinations(range(1, len(values)), pieces - 1):
            spans = list(zip((0, *inner), (*inner, len(values)), strict=True))
            total = sum(cost[span] for span in spans)
            if not exact_zero:
                least = min(least, total)
                continue
            least = min([least, *(total - cost[span] + to_zero[span] for span in spans), *([total] if pieces < entries else [])])
    return least


# eighths have ties and duplicates; the other values do not
VALUES = st.one_of(st.integers(-24, 24).map(lambda i: i / 8), st.floats(-100, 100, width=32, allow_subnormal=False))
WEIGHTS = st.one_of(st.just(0.0), st.just(1.0), st.floats(2**-10, 1024, width=32))


@BOTH
@pytest.mark.parametrize("exact_zero", [False, True])
@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(VALUES, WEIGHTS), min_size=1, max_size=9), st.integers(1, 5), st.booleans())
def test_no_codebook_is_better(how, exact_zero, pairs, entries, weighted):
    row, weights = np.array(pairs, np.float32).T
    assume(not weighted or weights.any())
    with using(how):
        codebook = optimal_codebooks(row[None], entries, weights[None] if weighted else None, exact_zero)[0]
    assert codebook.dtype == np.float32 and codebook.shape == (entries,) and np.all(np.diff(codebook) >= 0)
    assert not exact_zero or 0 in codebook
    weights = weights if weighted else np.ones_like(row)
    best = exhaustive(row, entries, weights, exact_zero)
    # float64 sums of w x^2: 1e-14 of the largest leaves room for some dozen roundings
    allowed = best * 1e-9 + slack(row, weights) + 1e-14 * float(weights.astype(np.float64) @ row.astype(np.float64) ** 2)
    assert abs(distortion(row, codebook, weights) - best) <= allowed


def rows_of(kind: str, count: int, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return {
        "gauss": lambda: draw.standard_normal(count),
        "shifted": lambda: draw.standard_normal(count) + 50,
        "cauchy": lambda: draw.standard_cauchy(count),
        "outlier": lambda: np.append(draw.standard_normal(count - 2), [-1e6, 1e6]),
        "lattice": lambda: draw.integers(-40, 40, count) / 16,
        "pruned": lambda: draw.standard_normal(count) * (draw.random(count) > 0.9),
        "two scales": lambda: draw.choice([1e-4, 1.0], count) * draw.standard_normal(count),
        "positive": lambda: draw.random(count) + 0.5,
    }[kind]().astype(np.float32)


KINDS = ("gauss", "shifted", "cauchy", "outlier", "lattice", "pruned", "two scales", "positive")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("exact_zero", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_kernels_and_numpy_agree(kind, exact_zero, weighted):
    rows = np.stack([rows_of(kind, 300, seed) for seed in range(3)])
    weights = np.random.default_rng(9).gamma(0.5, size=rows.shape).astype(np.float32) if weighted else None
    for entries in (1, 2, 3, 7, 16, 100):
        found = {}
        for how in ("numpy", "compiled"):
            with using(how):
                found[how] = optimal_codebooks(rows, entries, weights, exact_zero)
        for i, row in enumerate(rows):
            weight = None if weights is None else weights[i]
            ours, oracle = (distortion(row, found[how][i], weight) for how in ("compiled", "numpy"))
            assert abs(ours - oracle) <= 1e-9 * oracle + slack(row, weight)


@BOTH
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("exact_zero", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_bins_find_what_sorting_finds(how, kind, exact_zero, weighted):
    row = rows_of(kind, 5000)[None]
    weights = np.random.default_rng(9).gamma(0.5, size=row.shape).astype(np.float32) if weighted else None
    for entries in (1, 2, 5):
        with using(how):
            exact = optimal_codebooks(row, entries, weights, exact_zero)[0]
        with using(how, SORTED_UP_TO=100, BINS=1024, FEW=64):
            binned = optimal_codebooks(row, entries, weights, exact_zero)[0]
        weight = None if weights is None else weights[0]
        assert distortion(row[0], binned, weight) <= distortion(row[0], exact, weight) * (1 + 1e-9) + slack(row[0], weight)


@pytest.mark.parametrize("kind", ["gauss", "cauchy", "lattice", "pruned"])
@pytest.mark.parametrize("longest_sorted", [10**5, 10**4])
def test_as_good_as_kmeans1d_on_long_rows(kind, longest_sorted):
    peer = pytest.importorskip("kmeans1d")
    row = rows_of(kind, 10**5)
    for entries in (2, 16):
        best = distortion(row, np.array(peer.cluster(row, entries).centroids))
        with using("compiled", SORTED_UP_TO=longest_sorted):
            ours = distortion(row, optimal_codebooks(row[None], entries)[0])
        assert abs(ours - best) <= 1e-9 * best + slack(row)


@BOTH
def test_more_entries_are_never_worse(how):
    rows = np.stack([rows_of(kind, 200) for kind in KINDS])
    for exact_zero in (False, True):
        with using(how):
            found = [optimal_codebooks(rows, entries, None, exact_zero) for entries in range(1, 20)]
        for i, row in enumerate(rows):
            errors = np.array([distortion(row, codebooks[i]) for codebooks in found])
            assert np.all(np.diff(errors) <= slack(row)) and errors[0] > errors[-1]


@BOTH
@pytest.mark.parametrize("kind", KINDS)
def test_scaled_mirrored_and_shifted_values(how, kind):
    row = rows_of(kind, 400)[None]
    with using(how):
        plain = optimal_codebooks(row, 8)
        np.testing.assert_array_equal(optimal_codebooks(row * 8, 8), plain * 8)  # a power of two changes no rounding
        mirrored = optimal_codebooks(-row, 8)[0]
        best = distortion(row[0], plain[0])
        assert abs(distortion(-row[0], mirrored) - best) <= 1e-9 * best + slack(row[0])
        lattice = np.round(rows_of("gauss", 400)[None] * 64) / 64  # sums with 3 are exact
        # half a float32 step of 4 at most for each of the two roundings
        np.testing.assert_allclose(optimal_codebooks(lattice + 3, 8), optimal_codebooks(lattice, 8) + 3, atol=2.0**-21)


@BOTH
def test_few_distinct_values_are_kept_and_the_last_repeated(how):
    rows = np.array([[2, -1, 2, 2, -1, 0.5], [3, 3, 3, 3, 3, 3], [0, -0.0, 0, 0, 0, 0]], np.float32)
    with using(how):
        np.testing.assert_array_equal(optimal_codebooks(rows, 5), [[-1, 0.5, 2, 2, 2], [3] * 5, [0] * 5])
        np.testing.assert_array_equal(optimal_codebooks(rows, 5, None, True), [[-1, 0, 0.5, 2, 2], [0, 3, 3, 3, 3], [0] * 5])
    with using(how, SORTED_UP_TO=1):
        np.testing.assert_array_equal(optimal_codebooks(rows, 5), [[-1, 0.5, 2, 2, 2], [3] * 5, [0] * 5])
        np.testing.assert_array_equal(optimal_codebooks(rows, 5, None, True), [[-1, 0, 0.5, 2, 2], [0, 3, 3, 3, 3], [0] * 5])


@BOTH
@pytest.mark.parametrize("longest_sorted", [10**4, 10])
def test_what_weighs_nothing_does_not_count(how, longest_sorted):
    row = rows_of("gauss", 300)
    weights = (np.arange(300) % 3 > 0).astype(np.float32)
    with using(how, SORTED_UP_TO=longest_sorted):
        np.testing.assert_array_equal(optimal_codebooks(row[None], 6, weights[None]), optimal_codebooks(row[None, weights > 0], 6))
        np.testing.assert_array_equal(optimal_codebooks(row[None], 6, 0 * weights[None]), optimal_codebooks(row[None], 6))


@BOTH
def test_rows_do_not_touch_each_other_nor_change(how):
    rows = np.stack([rows_of(kind, 150) for kind in KINDS])
    before = rows.copy()
    with using(how):
        together = optimal_codebooks(rows, 9)
        for row, codebook in zip(rows, together, strict=True):
            np.testing.assert_array_equal(optimal_codebooks(row[None], 9)[0], codebook)
        assert optimal_codebooks(rows[:0], 9).shape == (0, 9)
    np.testing.assert_array_equal(rows, before)


@pytest.mark.parametrize(
    ("rows", "entries", "sensitivity", "what"),
    [
        (np.zeros((1, 0)), 2, None, "m > 0"),
        (np.zeros(3), 2, None, "m > 0"),
        (np.zeros((1, 3)), 0, None, "entries"),
        (np.array([[0, np.nan]]), 2, None, "NaN"),
        (np.array([[0, np.inf]]), 2, None, "infinity"),
        (np.zeros((1, 3)), 2, np.ones((1, 2)), "sensitivity"),
        (np.zeros((1, 2)), 2, np.array([[1, -1]]), "negative"),
        (np.zeros((1, 2)), 2, np.array([[1, np.nan]]), "NaN"),
    ],
)
def test_bad_input_is_refused(rows, entries, sensitivity, what):
    with pytest.raises(ValueError, match=what):
        optimal_codebooks(rows, entries, sensitivity)


def test_without_numba_it_is_numpy(monkeypatch):
    import compress.numerics

    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delitem(sys.modules, "compress.numerics.kmeans_kernels", raising=False)
    monkeypatch.delattr(compress.numerics, "kmeans_kernels", raising=False)
    assert kmeans.implementation() is kmeans_numpy
