"""Estimates with their uncertainty, derived from raw samples."""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
from scipy import optimize, stats

from evaluators.results import Estimate

RESAMPLES = 10_000
SCORE_RESAMPLES = 2_000  # of samples, which are many and not counted in two numbers
BATCH = 500  # resamples at a time: it bounds memory
SEED = 20260101
CONFIDENCE = 0.95
PERCENTILES = (0.9, 0.95, 0.99, 0.999)


def wilson(correct: int, count: int) -> Estimate:
    """A proportion with its 95% interval (Wilson 1927)."""
    found = stats.binomtest(correct, count).proportion_ci(CONFIDENCE, "wilson")
    return Estimate(correct / count, float(found.low), float(found.high))


def mcnemar(worse: int, better: int) -> float:
    """Exact two-sided p of as uneven a split of the changed answers, were both directions equally likely (McNemar 1947)."""
    return float(stats.binomtest(worse, worse + better).pvalue) if worse + better else 1.0


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p-values of several comparisons with one baseline, adjusted so that all hold together (Holm 1979)."""
    adjusted, running = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = running
    return adjusted


def accuracy_difference(worse: int, better: int, count: int) -> Estimate:
    """(better - worse) / count with its paired bootstrap interval. Samples have three outcomes, so resampling them is a multinomial draw."""
    shares = np.array([worse, better, count - worse - better]) / count
    drawn = np.random.default_rng(SEED).multinomial(count, shares, RESAMPLES)
    low, high = np.quantile((drawn[:, 1] - drawn[:, 0]) / count, [0.025, 0.975])
    return Estimate((better - worse) / count, float(low), float(high))


def smallest_drop(count: int, changed: float, power: float = 0.8, alpha: float = 0.05) -> float:
    """The smallest drop in accuracy that the exact McNemar test would have shown with 80% power on `count` samples.

    changed  share of samples whose correctness changed. A drop d needs at least d of them: their number m is Binomial(count, max(changed, d)),
             and each of them got worse with probability (1 + d / max(changed, d)) / 2. Power is the sum over m of P(m) P(test rejects | m).
    1.0 where no drop could be shown.
    """
    low, high = 0, count
    if detection(count, 1.0, changed, alpha) < power:
        return 1.0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if detection(count, middle / count, changed, alpha) >= power else (middle, high)
    return high / count


def detection(count: int, drop: float, changed: float, alpha: float) -> float:
    share = max(changed, drop)
    m = np.arange(count + 1)
    return float((stats.binom.pmf(m, count, share) * stats.binom.sf(rejecting(count, alpha) - 1, m, (1 + drop / share) / 2)).sum())


@lru_cache(maxsize=4)
def rejecting(count: int, alpha: float) -> np.ndarray:
    """[count + 1]: the fewest worse answers of m = 0, 1, ... changed ones that the exact McNemar test rejects for."""
    return stats.binom.isf(alpha / 2, np.arange(count + 1), 0.5) + 1


def mean(scores: np.ndarray, weights: np.ndarray) -> Estimate:
    """Weighted mean of scores [samples] with its bootstrap interval over samples; without ends where there is one sample."""
    value = float(np.average(scores, weights=weights))
    if len(scores) < 2:
        return Estimate(value, -np.inf, np.inf)
    tail = expanded_tail(len(scores))
    found = stats.bootstrap(
        (scores * weights, weights),
        lambda products, w, axis: products.sum(axis) / w.sum(axis),
        paired=True,
        n_resamples=SCORE_RESAMPLES,
        batch=BATCH,
        confidence_level=1 - 2 * tail,
        method="percentile",
        rng=SEED,
    ).confidence_interval
    return Estimate(value, float(found.low), float(found.high))


def sign_flips(differences: np.ndarray, count: int = 9_999) -> float:
    """Two-sided p of as large a sum of paired differences, were both arms equally good, so that each difference had either sign (Fisher 1935).

    What `scipy.stats.permutation_test` computes with permutation_type="samples", ten times as fast. It is about the mean that is shown, as Wilcoxon's test
    is not, and takes no distribution for granted (Dror et al. 2018 recommend it). All signs where they are at most `count`, else that many drawn ones, of
    which the observed counts as one (Phipson and Smyth 2010).
    """
    d = differences[differences != 0].astype(np.float64)
    least, everything = abs(d.sum()) * (1 - 1e-12), d.sum()
    if 2 ** min(len(d), 60) <= count:
        signs = (np.arange(2 ** len(d))[:, None] >> np.arange(len(d))) & 1
        return float((np.abs(2 * (signs @ d) - everything) >= least).mean())
    generator, as_large = np.random.default_rng(SEED), 0
    for start in range(0, count, BATCH):
        signs = generator.integers(0, 2, (min(BATCH, count - start), len(d)), np.int8)
        as_large += int((np.abs(2 * (signs.astype(np.float64) @ d) - everything) >= least).sum())
    return (as_large + 1) / (count + 1)


def smallest_difference(differences: np.ndarray, weights: np.ndarray, power: float = 0.8, alpha: float = 0.05) -> float | None:
    """The smallest weighted mean of paired differences [samples] that a paired t-test would have shown with 80% power, at the spread that these have.

    By Student's noncentral t; for large samples the sign-flip test has the power of the t-test (Hoeffding 1952). None where nothing differs, or for one
    sample. The spread of a weighted mean is that of w (d - mean) / mean(w) (the ratio estimator, linearized; Cochran 1977, chapter 6).
    """
    count = len(differences)
    if count < 2 or not differences.any():
        return None
    spread = (weights * (differences - np.average(differences, weights=weights)) / weights.mean()).std(ddof=1)
    critical = stats.t.isf(alpha / 2, count - 1)
    shift = optimize.brentq(lambda nc: stats.nct.sf(critical, count - 1, nc) - power, 0, 5 * critical)
    return float(shift * spread / np.sqrt(count))


def expanded_tail(blocks: int) -> float:
    """Tail probability of a bootstrap quantile that covers 95% with few blocks (Hesterberg 2015, "expanded percentile interval").

    Plain quantiles are too narrow by sqrt((n - 1) / n) and by the normal's tails standing in for Student's.
    """
    return float(stats.norm.sf(np.sqrt(blocks / (blocks - 1)) * stats.t.isf((1 - CONFIDENCE) / 2, blocks - 1)))


def geometric_mean(values: Sequence[float]) -> Estimate:
    """Geometric mean of positive values with its bootstrap interval over them."""
    logs = np.log(np.asarray(values, float))
    drawn = np.random.default_rng(SEED).integers(0, len(logs), (RESAMPLES, len(logs)))
    tail = expanded_tail(len(logs))
    low, high = np.quantile(logs[drawn].mean(1), [tail, 1 - tail])
    return Estimate(float(np.exp(logs.mean())), float(np.exp(low)), float(np.exp(high)))


def independent(values: Sequence[float], processes: int) -> np.ndarray:
    """What an interval is over: values of one process's blocks as they are; of the blocks of several processes, one after the other, each one's median."""
    values = np.asarray(values, float)
    return np.median(values.reshape(processes, -1), axis=1) if processes > 1 else values


def ratio(baseline: Sequence[float], other: Sequence[float], processes: int = 1) -> Estimate:
    """How many times faster `other` is, by block medians that were measured beside each other.

    One process each: geometric mean of the paired ratios, with the bootstrap interval over blocks. Several: of each process's median ratio, with the
    interval over processes, which knows what blocks of one process cannot: where its memory lies.
    """
    return geometric_mean(independent(np.asarray(baseline, float) / np.asarray(other, float), processes))


def reach(ratio: Estimate) -> float:
    """How far a ratio's interval strays from 1, as a factor of at least 1."""
    return max(ratio.high, 1 / ratio.low)


def verdict(speedup: Estimate, noise: Estimate | None = None, least: float = 1.01) -> str:
    """faster or slower only where the interval excludes 1 and the effect is above 1% and above what float32 shows against itself.

    Two processes with the same model differ by where their memory lies, which no interval over blocks of one process can know.
    """
    least = max(least, reach(noise)) if noise else least
    if speedup.low > 1 and speedup.value > least:
        return "faster"
    if speedup.high < 1 and speedup.value < 1 / least:
        return "slower"
    return "no difference shown"


def percentiles(samples: np.ndarray) -> dict[str, Estimate]:
    """Order statistics with their binomial intervals, only where the count carries them.

    The rule is LoadGen's: percentile q needs n with q^n <= 1%, 44 samples for the 90th, 90 for the 95th, 459 for the 99th.
    """
    ordered, found = np.sort(samples), {}
    count = len(ordered)
    for q in PERCENTILES:
        if q**count <= 0.01:
            low, high = (int(rank) for rank in stats.binom.ppf([0.025, 0.975], count, q))
            ranks = int(np.ceil(q * count)), max(low, 1), min(high + 1, count)
            found[f"p{100 * q:g}"] = Estimate(*(float(ordered[rank - 1]) for rank in ranks))
    return found
