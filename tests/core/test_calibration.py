"""Ranges from streams: what each method promises, in constant memory."""

import tracemalloc
from typing import get_args, get_type_hints

import numpy as np
import pytest

from compress.calibration import BINS, Entropy, Histogram, LeastSquares, observe, observer
from compress.errors import InputError
from compress.formats import StaticActivations
from compress.network import InputSpec
from compress.samples import samples

METHODS = get_args(get_type_hints(StaticActivations)["method"])


def batches(values: np.ndarray, count: int = 10):
    return [{"x": part} for part in np.array_split(values, count)]


def measured(values, **settings):
    return observe(batches(values), StaticActivations(**settings))["x"]


NORMAL = np.random.default_rng(0).standard_normal(50_000).astype(np.float32)
SPIKED = np.concatenate([NORMAL, np.array([40.0, -30.0], np.float32)])


@pytest.mark.parametrize("method", METHODS)
def test_ranges_hold_zero_and_stay_within_what_was_seen(method):
    for values in (NORMAL, np.abs(NORMAL), NORMAL + 5, -np.abs(NORMAL) - 1):
        found = measured(values, method=method)
        assert min(values.min(), 0) - 1e-6 <= found.low <= 0 <= found.high <= max(values.max(), 0) + 1e-6
        assert found.high > found.low


def test_minmax_is_exact():
    found = measured(SPIKED)
    assert (found.low, found.high) == (SPIKED.min(), SPIKED.max())


@pytest.mark.parametrize("percentile", [90.0, 99.0])
def test_percentile_agrees_with_numpy_to_two_bins(percentile):
    found = measured(NORMAL, method="percentile", percentile=percentile)
    tail = (100 - percentile) / 2
    expected = np.percentile(NORMAL, [tail, 100 - tail])
    width = 2 * 8 / BINS  # normal values reach at most 8
    assert abs(found.low - expected[0]) <= 2 * width and abs(found.high - expected[1]) <= 2 * width


def squared_error(values, low, high, bits=8):
    step = (high - low) / (2**bits - 1)
    return np.square(np.rint(np.clip(values, low, high) / step) * step - values).mean()


@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_clipping_methods_cut_lone_outliers(method):
    found = measured(SPIKED, method=method)
    assert found.high < 20 and found.low > -20


def test_mse_beats_minmax_in_squared_error():
    mean, full = measured(SPIKED, method="mse"), measured(SPIKED)
    assert squared_error(SPIKED, mean.low, mean.high) < squared_error(SPIKED, full.low, full.high)


def test_entropy_ignores_how_many_exact_zeros_there_are():
    some = np.concatenate([SPIKED, np.zeros(500_000, np.float32)])
    assert measured(some, method="entropy") == measured(SPIKED, method="entropy")


def test_16_bits_clip_nothing_by_entropy():
    found = measured(SPIKED, method="entropy", bits=16)
    assert (found.low, found.high) == (SPIKED.min(), SPIKED.max())


def test_histogram_does_not_depend_on_the_order_of_growth():
    values = np.concatenate([NORMAL, NORMAL * 100])
    forward, backward = Histogram(), Histogram()
    for part in np.array_split(values, 7):
        forward.update(part)
    for part in np.array_split(values[::-1], 7):
        backward.update(part)
    assert forward.reach == backward.reach and forward.counts.sum() == values.size
    assert np.abs(np.cumsum(forward.counts) - np.cumsum(backward.counts)).max() <= 0.002 * values.size  # values on a merged bin's edge


@pytest.mark.parametrize("method", METHODS)
def test_memory_does_not_grow_with_the_number_of_samples(method):
    def peak(count):
        stream = ({"x": np.random.default_rng(i).standard_normal(2000)} for i in range(count))
        tracemalloc.start()
        observe(stream, StaticActivations(method=method))
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    peak(5)  # first use allocates caches of NumPy itself
    assert peak(400) < 1.5 * peak(20)


def test_observer_by_method():
    assert isinstance(observer(StaticActivations(method="mse")), LeastSquares)
    assert isinstance(observer(StaticActivations(method="entropy")), Entropy)


def test_bad_calibration_is_named():
    with pytest.raises(InputError, match="empty"):
        observe([], StaticActivations())
    with pytest.raises(InputError, match="x holds NaN"):
        observe([{"x": np.array([np.nan])}], StaticActivations())


SPECS = (InputSpec("a", (1, 2), "float32"), InputSpec("b", (1,), "int64"))
A, B = np.zeros((3, 2)), np.arange(3)


@pytest.mark.parametrize("data", [{"a": A, "b": B}, (A, B), [{"a": A[:1], "b": B[:1]}, (A[1:], B[1:])], lambda: iter([(A, B)])])
def test_every_form_of_data_gives_the_same_samples(data):
    found = list(samples(data, SPECS))
    assert [int(s["b"][0]) for s in found] == [0, 1, 2]
    assert all(s["a"].shape == (1, 2) and s["a"].dtype == np.float32 and s["b"].dtype == np.int64 for s in found)


@pytest.mark.parametrize(
    ("data", "message"),
    [([], "empty"), ({"a": A}, "lacks the input"), ((A,), "takes 2 input"), ((A, B[:2]), "disagree"), (iter([(A, B)]), "only once"), ((A[:0], B[:0]), "empty")],
)
def test_bad_data_is_named(data, message):
    with pytest.raises(InputError, match=message):
        list(samples(data, SPECS))
