"""Estimates, intervals and tests: equal to SciPy's and statsmodels' on the same numbers, to published values, and right as often as they say."""

from functools import cache

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats import contingency_tables, multitest, power, proportion

from evaluators import statistics
from evaluators.metrics import accuracy
from evaluators.results import Estimate
from evaluators.tasks import classification

# Equal to the libraries


@pytest.mark.parametrize(("correct", "count"), [(0, 20), (1, 3), (81, 263), (521, 600), (5000, 5000)])
def test_wilson_is_statsmodels(correct, count):
    found = statistics.wilson(correct, count)
    assert (found.low, found.high) == pytest.approx(proportion.proportion_confint(correct, count, method="wilson"), abs=1e-12)


@pytest.mark.parametrize(("worse", "better"), [(0, 0), (5, 0), (0, 7), (11, 2), (50, 25), (400, 390)])
def test_mcnemar_is_statsmodels(worse, better):
    assert statistics.mcnemar(worse, better) == pytest.approx(contingency_tables.mcnemar([[3, worse], [better, 9]], exact=True).pvalue, rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_holm_is_statsmodels(seed):
    p = np.random.default_rng(seed).random(9).round(1)  # with ties
    found = statistics.holm({str(i): float(value) for i, value in enumerate(p)})
    assert list(dict(sorted(found.items())).values()) == pytest.approx(multitest.multipletests(p, method="holm")[1], rel=1e-12)


@pytest.mark.parametrize("count", [44, 90, 459, 1000, 1001])
def test_order_statistics_and_their_intervals_are_scipy(count):
    samples = np.random.default_rng(count).lognormal(size=count)
    found = statistics.percentiles(samples)
    assert "p90" in found
    for name, estimate in found.items():
        q = float(name.removeprefix("p")) / 100
        ends = stats.quantile_test(samples, q=0.0, p=q).confidence_interval(statistics.CONFIDENCE)
        assert (estimate.low, estimate.high) == (ends.low, ends.high)
        assert estimate.value == np.quantile(samples, q, method="inverted_cdf")


def test_the_mean_of_scores_is_scipy_bootstrap_of_a_ratio_of_sums():
    generator = np.random.default_rng(1)
    scores, tokens = generator.gamma(2, 1.5, 200), generator.integers(1, 60, 200).astype(float)
    found = statistics.mean(scores, tokens)

    def ratio(nats, counts):
        return nats.sum() / counts.sum()

    drawn = stats.bootstrap((scores * tokens, tokens), ratio, paired=True, vectorized=False, n_resamples=4000, method="BCa", rng=2)
    assert found.value == pytest.approx(ratio(scores * tokens, tokens), rel=1e-12)
    # another method, other draws: quantiles of 2,000 and 4,000 resamples are each within 0.1 standard errors, BCa's correction moves them as far
    assert (found.low, found.high) == pytest.approx(tuple(drawn.confidence_interval), abs=0.3 * drawn.standard_error)


def test_the_bootstrap_of_blocks_is_scipy_at_the_expanded_level():
    ratios = np.random.default_rng(4).normal(2.1, 0.02, 8)
    found, level = statistics.geometric_mean(ratios), 1 - 2 * statistics.expanded_tail(8)
    drawn = stats.bootstrap((np.log(ratios),), np.mean, n_resamples=10_000, confidence_level=level, method="percentile", rng=9)
    # quantiles of 10,000 resamples are within 0.04 standard errors, and both have one
    assert np.log([found.low, found.high]) == pytest.approx(tuple(drawn.confidence_interval), abs=0.12 * drawn.standard_error)


def test_the_bootstrap_of_right_answers_is_scipy():
    changes = np.repeat([-1, 1, 0], [30, 10, 560])
    found = statistics.accuracy_difference(30, 10, 600)
    drawn = stats.bootstrap((changes,), np.mean, n_resamples=10_000, method="percentile", rng=9, batch=500)
    # means are multiples of 1/600, and a quantile falls on one or the other of two
    assert (found.low, found.high) == pytest.approx(tuple(drawn.confidence_interval), abs=1.01 / 600)


@pytest.mark.parametrize("count", [2, 5, 9, 13])
def test_sign_flips_are_scipy_where_all_are_tried(count):
    differences = np.random.default_rng(count).normal(0.6, 1, count)
    theirs = stats.permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=9_999)
    assert len(theirs.null_distribution) == 2**count
    assert statistics.sign_flips(differences) == pytest.approx(theirs.pvalue, rel=1e-12)


@pytest.mark.parametrize("shift", [0.0, 0.15, 1.0])
def test_sign_flips_are_scipy_where_they_are_drawn(shift):
    differences = np.random.default_rng(3).standard_t(3, 100) + shift
    theirs = stats.permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=9_999, vectorized=True, batch=500, rng=8).pvalue
    # two shares of 9,999 draws
    assert statistics.sign_flips(differences) == pytest.approx(theirs, abs=4 * np.sqrt(2 * theirs * (1 - theirs) / 9_999))


def test_sign_flips_reject_as_often_as_they_say_and_leave_out_what_did_not_change():
    generator = np.random.default_rng(6)
    p = [statistics.sign_flips(generator.standard_t(3, 30), 999) for _ in range(400)]
    assert np.mean(np.array(p) < 0.05) == pytest.approx(0.05, abs=3 * np.sqrt(0.05 * 0.95 / 400))
    differences = generator.normal(0.5, 1, 12)
    assert statistics.sign_flips(np.r_[differences, np.zeros(500)]) == statistics.sign_flips(differences)
    assert statistics.sign_flips(np.zeros(50)) == 1.0


@pytest.mark.parametrize("count", [5, 50, 600])
def test_the_smallest_difference_is_that_of_statsmodels_paired_t_test(count):
    differences = np.random.default_rng(count).normal(0, 2, count)
    wanted = power.TTestPower().solve_power(nobs=count, alpha=0.05, power=0.8) * differences.std(ddof=1)
    assert statistics.smallest_difference(differences, np.ones(count)) == pytest.approx(wanted, rel=1e-4)


def test_the_smallest_difference_is_found_with_80_percent_power_by_the_test_that_is_used():
    generator = np.random.default_rng(8)
    tokens = generator.integers(20, 200, 60).astype(float)
    least = statistics.smallest_difference(generator.normal(0, 1, 60), tokens)
    found = [statistics.sign_flips((generator.normal(least, 1, 60)) * tokens, 999) < 0.05 for _ in range(300)]
    # least itself is an estimate: 60 differences know their spread within 9%, which moves power by 0.09
    assert np.mean(found) == pytest.approx(0.8, abs=0.09 + 3 * np.sqrt(0.8 * 0.2 / 300))
    assert statistics.smallest_difference(np.zeros(9), np.ones(9)) is None
    assert statistics.smallest_difference(np.ones(1), np.ones(1)) is None


# A planted drop


def planted(worse: int, better: int, count: int):
    """The score of an arm whose answers changed for the worse and for the better, as the study derives it; labels are 1."""
    before = np.where(np.arange(count) < count - better, 1, 0)
    after = np.where(np.arange(count) < worse, 0, 1)
    return accuracy.derive(classification, {"answers": after}, {"answers": before}, np.ones(count, int))[0]


def test_a_drop_of_one_point_with_3_percent_disagreement_is_found_at_2500_samples():
    found = planted(worse=50, better=25, count=2500)
    assert found.difference.value == pytest.approx(-0.01) and found.flipped == 0.03 and (found.worse, found.better) == (50, 25)
    assert found.p < 0.01 and found.difference.high < 0
    assert found.smallest == 0.01  # and no smaller one would have been found with 80% power


mcnemar = cache(statistics.mcnemar)


@pytest.mark.parametrize("seed", range(10))
def test_such_a_drop_is_found_in_8_of_10_samples(seed):
    pairs = np.random.default_rng(seed).multinomial(2500, [0.02, 0.01, 0.97], 1000)[:, :2]
    power = np.mean([mcnemar(*pair) < 0.05 for pair in pairs.tolist()])
    assert power == pytest.approx(0.802, abs=3 * np.sqrt(0.8 * 0.2 / 1000))


# Published values, and laws


def test_wilson_equals_published_values():
    # Newcombe 1998, table I, method 3: 81 of 263 and 0 of 20
    assert rounded(statistics.wilson(81, 263)) == (0.3080, 0.2553, 0.3662)
    assert rounded(statistics.wilson(0, 20)) == (0.0, 0.0, 0.1611)


def rounded(estimate: Estimate) -> tuple:
    return tuple(round(value, 4) for value in (estimate.value, estimate.low, estimate.high))


def test_mcnemar_is_the_exact_binomial_test():
    assert statistics.mcnemar(0, 0) == 1.0
    assert statistics.mcnemar(5, 0) == pytest.approx(2 / 2**5)
    assert statistics.mcnemar(1, 9) == pytest.approx(2 * (1 + 10) / 2**10)


def test_holm_multiplies_by_the_comparisons_left_and_never_decreases():
    assert statistics.holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})
    assert statistics.holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}


def test_bootstrap_of_a_difference_has_the_standard_error_of_paired_outcomes():
    found = statistics.accuracy_difference(worse=30, better=10, count=1000)
    error = np.sqrt((0.04 - 0.02**2) / 1000)
    assert found.value == -0.02
    # 10,000 resamples put the 2.5% quantile within about 4% of a standard error; outcomes are multiples of 1/1000
    assert found.low == pytest.approx(-0.02 - 1.96 * error, abs=0.1 * error + 0.001)
    assert found.high == pytest.approx(-0.02 + 1.96 * error, abs=0.1 * error + 0.001)


@pytest.mark.parametrize(("count", "changed"), [(100, 0.0), (600, 0.05), (1000, 0.2)])
def test_smallest_drop_is_found_by_simulated_tests_with_80_percent_power(count, changed):
    drop = statistics.smallest_drop(count, changed)
    generator = np.random.default_rng(3)

    def power(d):
        share = max(changed, d)
        m = generator.binomial(count, share, 4000)
        worse = generator.binomial(m, (1 + d / share) / 2)
        pairs = np.stack([worse, m - worse], 1)
        tests = {tuple(pair): statistics.mcnemar(*pair) <= 0.05 and pair[0] > pair[1] for pair in np.unique(pairs, axis=0).tolist()}
        return np.mean([tests[tuple(pair)] for pair in pairs.tolist()])

    noise = 3 * np.sqrt(0.8 * 0.2 / 4000)
    assert power(drop) >= 0.8 - noise
    assert power(0.8 * drop) < 0.8 - noise


def test_too_few_samples_show_no_drop_at_all():
    assert statistics.smallest_drop(5, 0.0) == 1.0  # 5 of 5 worse: p = 1/16
    # With 20, six worse answers reject (p = 1/32): P(Binomial(20, d) >= 6) is 0.755 at d = 0.35 and 0.874 at 0.40
    assert statistics.smallest_drop(20, 0.0) == 0.4


def test_ratio_interval_covers_the_truth_at_its_nominal_rate_with_six_blocks():
    generator = np.random.default_rng(5)
    covered = []
    for _ in range(400):
        base, other = np.exp(generator.normal(0.0, 0.02, (2, 6)))
        found = statistics.ratio(2 * base, other)
        covered.append(found.low <= 2 <= found.high)
    # 95% of 400 has a standard error of 1.1%; plain bootstrap quantiles would cover 86% here
    assert 0.91 <= np.mean(covered) <= 0.99


def test_ratio_is_paired_so_a_slow_period_that_hits_both_arms_cancels():
    drift = np.array([1.0, 1.5, 3.0, 1.0, 2.0, 1.2])
    found = statistics.ratio(2 * drift, drift)
    assert (found.value, found.low, found.high) == pytest.approx((2, 2, 2))


def test_a_ratio_of_several_processes_is_over_their_medians():
    generator = np.random.default_rng(6)
    base, other = np.exp(generator.normal(0.0, 0.05, (2, 8 * 5)))
    medians = np.median((base / other).reshape(8, 5), axis=1)
    assert statistics.ratio(base, other, processes=8) == statistics.geometric_mean(medians)
    assert statistics.ratio(base, other, processes=1) == statistics.geometric_mean(base / other)


def test_the_interval_covers_the_truth_where_processes_differ_by_more_than_their_blocks():
    generator = np.random.default_rng(7)
    covered = {1: [], 10: []}
    for _ in range(200):
        layout = np.repeat(generator.normal(0.0, 0.01, 10), 12)
        base, other = np.exp(np.stack([layout, np.zeros(120)]) + generator.normal(0.0, 0.005, (2, 120)))
        for processes, hits in covered.items():
            found = statistics.ratio(base, other, processes)
            hits.append(found.low <= 1 <= found.high)
    # 95% of 200 has a standard error of 1.5%; an interval over all blocks, as if each knew another layout, covers about half
    assert 0.9 <= np.mean(covered[10]) <= 1 and np.mean(covered[1]) < 0.7


@pytest.mark.parametrize(
    ("speedup", "words"),
    [
        (Estimate(1.5, 1.4, 1.6), "faster"),
        (Estimate(0.5, 0.4, 0.6), "slower"),
        (Estimate(1.005, 1.001, 1.009), "no difference shown"),
        (Estimate(1.5, 0.9, 2.5), "no difference shown"),
    ],
)
def test_verdict_needs_the_interval_and_the_effect(speedup, words):
    assert statistics.verdict(speedup) == words


def test_no_verdict_goes_below_what_float32_shows_against_itself():
    noise = Estimate(0.94, 0.92, 0.95)
    assert statistics.verdict(Estimate(1.05, 1.04, 1.06), noise) == "no difference shown"
    assert statistics.verdict(Estimate(0.95, 0.94, 0.96), noise) == "no difference shown"
    assert statistics.verdict(Estimate(1.10, 1.04, 1.16), noise) == "faster"


@pytest.mark.parametrize(("count", "names"), [(43, []), (44, ["p90"]), (90, ["p90", "p95"]), (458, ["p90", "p95"]), (459, ["p90", "p95", "p99"])])
def test_percentiles_are_shown_only_where_the_count_carries_them(count, names):
    assert list(statistics.percentiles(np.arange(count, dtype=float))) == names


def test_percentiles_are_order_statistics_within_their_interval():
    found = statistics.percentiles(np.arange(1, 1001, dtype=float))["p90"]
    assert found.value == 900
    assert (found.low, found.high) == pytest.approx((900 - 18.6, 900 + 18.6), abs=2)  # 1.96 sqrt(1000 * 0.9 * 0.1)
