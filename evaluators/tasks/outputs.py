"""All outputs against float32's, whatever they mean: boxes, masks, spectra. No labels.

SQNR is 10 log10(sum of squares of float32's output / sum of squared differences) in dB for each sample, of several outputs the least.
"""

import numpy as np

from compress.errors import InputError
from evaluators.results import Metric
from evaluators.tasks import Kept, Scored, finite, once

SQNR = Metric("SQNR", "likeness", "dB", noun="output")
ERROR = Metric("maximum error", "likeness", higher_is_better=False, noun="output")
ANSWERS = "output_"
CEILING = 150.0  # dB of equal outputs: float32 itself rounds at about 6.02 x 24 dB


def check(labels: np.ndarray | None) -> np.ndarray | None:
    """Whatever a user's own function is to get."""
    if labels is not None and labels.dtype == object:
        raise InputError("labels are Python objects, which are not stored: give an array of numbers, of the same shape for every sample")
    return labels


def keep(outputs: list[np.ndarray], label: np.ndarray | None) -> dict[str, np.ndarray]:
    """`output_0`, `output_1`, ...: [1, ...] in the file's dtypes."""
    return {f"output_{index}": finite(np.asarray(output), SQNR.title) for index, output in enumerate(outputs)}


def scores(kept: Kept, float32: Kept | None, labels: np.ndarray | None) -> list[Scored]:
    if float32 is None:
        return []
    names = named(kept)
    pairs = {name: tuple(arrays[name].reshape(len(arrays[name]), -1).astype(np.float64) for arrays in (kept, float32)) for name in names}
    ratios = {name: sqnr(*pair) for name, pair in pairs.items()}
    found = [Scored(SQNR, np.min(list(ratios.values()), axis=0), once(kept[names[0]]))]
    for name, (mine, theirs) in pairs.items():
        of = f" of {name}" if len(names) > 1 else ""
        if of:
            found.append(Scored(titled(SQNR, of), ratios[name], once(mine)))
        found.append(Scored(titled(ERROR, of), np.abs(mine - theirs).max(1), once(mine)))
    return found


def named(kept: Kept) -> list[str]:
    """Names of the outputs among what is kept, in the model's order."""
    return sorted((name for name in kept if name.startswith(ANSWERS)), key=lambda name: int(name.removeprefix(ANSWERS)))


def titled(metric: Metric, of: str) -> Metric:
    return Metric(metric.title + of, metric.kind, metric.unit, metric.higher_is_better, metric.noun)


def sqnr(found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """dB [samples] of arrays [samples, values], within CEILING of 0."""
    signal, noise = (wanted**2).sum(1), ((found - wanted) ** 2).sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(noise == 0, CEILING, np.clip(10 * np.log10(signal / noise), -CEILING, CEILING))


def notes(kept: Kept, labels: np.ndarray | None) -> tuple[str, ...]:
    return ()
