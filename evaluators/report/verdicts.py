"""One sentence about an arm that a person can act on."""

from evaluators.report import words
from evaluators.report.reading import is_simulated, label, loss
from evaluators.results import Arm, Score


def verdict(arm: Arm) -> str:
    """Size, speed and score against float32 with their intervals, or why there is no result."""
    if arm.status != "done":
        return f"{label(arm)}: {arm.status}: {arm.cause or 'not run yet'}"
    parts = [size_words(arm), speed_words(arm), score_words(arm)]
    simulated = "; some of its weights are float values on a grid, so size and speed are float32's" if is_simulated(arm) else ""
    return f"{label(arm)}: {'; '.join(filter(None, parts))}{simulated}."


def size_words(arm: Arm) -> str:
    if arm.size is None or arm.size.ratio is None:
        return ""
    ratio = arm.size.ratio
    if abs(ratio - 1) < 0.005:
        return f"as large as float32 ({words.megabytes(arm.size.file_bytes)})"
    return f"{words.factor(max(ratio, 1 / ratio))} {'smaller' if ratio >= 1 else 'larger'} ({words.megabytes(arm.size.file_bytes)})"


def speed_words(arm: Arm) -> str:
    if arm.instructions and arm.instructions.fewer:
        fewer = arm.instructions.fewer
        return f"{words.factor(max(fewer, 1 / fewer))} {'fewer' if fewer >= 1 else 'more'} instructions"
    found = arm.latency.speedup if arm.latency else None
    if found is None or arm.latency.verdict == "baseline":
        return ""
    if arm.latency.verdict == "slower":
        inverse = type(found)(1 / found.value, 1 / found.high, 1 / found.low)
        return f"{words.factor(inverse.value)} slower {words.interval(inverse, words.times)}"
    if arm.latency.verdict == "faster":
        return f"{words.factor(found.value)} faster {words.interval(found, words.times)}"
    noise = f", noise floor {words.reach(arm.latency.noise)}" if arm.latency.noise and not found.low <= 1 <= found.high else ""
    return f"no difference in speed shown ({words.times(found.value)} {words.interval(found, words.times)}{noise})"


def score_words(arm: Arm) -> str:
    """ "accuracy 87.8% against 90.0%, worse by 2.2 points [0.9, 3.5], 11 of 500 answers changed for the worse and 0 for the better (exact McNemar p = 0.001)".

    Where no difference is shown it says which one would have been.
    """
    score = arm.accuracy
    if score is None:
        return ""
    reached = f"{score.metric.title} {words.in_unit(score.value.value, score.metric)}"
    if score.worse is None:
        return f"{reached} {words.score_interval(score.value, score.metric)}"
    if score.metric.kind == "likeness":
        worst = f", {words.in_unit(score.worst, score.metric)} at worst" if score.worst is not None else ""
        asked = "" if score.metric.least is None else f"; asked for {words.in_unit(score.metric.least, score.metric)} at least"
        return f"{reached} {words.score_interval(score.value, score.metric)} to float32's outputs{worst}, of which {words.percent(score.flipped)} differ{asked}"
    return f"{reached} against {words.in_unit(score.before, score.metric)}, {compared(arm, score)}, {changed(score)} ({tested(score)}){unseen(arm, score)}"


def compared(arm: Arm, score: Score) -> str:
    verdict, metric, drop = loss(arm), score.metric, score.drop
    if verdict == "loss":
        return f"worse by {words.change(drop.value, metric, signed=False)} {words.change_interval(drop, metric, signed=False)}"
    if verdict == "gain":
        return f"better by {words.change(-drop.value, metric, signed=False)} {words.change_interval(drop.negative, metric, signed=False)}"
    return f"no difference shown ({words.change(score.difference.value, metric)} {words.change_interval(score.difference, metric)})"


def changed(score: Score) -> str:
    return f"{score.worse} of {words.count(score.count, score.metric.noun)} changed for the worse and {score.better} for the better"


def tested(score: Score) -> str:
    """ "exact McNemar p = 0.001, 0.006 over all recipes (Holm)"."""
    holm = f", {bare(score.holm_p)} over all recipes (Holm)" if score.holm_p is not None and score.holm_p != score.p else ""
    return f"{score.test} p {bare(score.p, '= ')}{holm}"


def bare(p: float, equals: str = "") -> str:
    text = words.p_value(p)
    return text if text.startswith("<") else equals + text


def unseen(arm: Arm, score: Score) -> str:
    if score.smallest is None or loss(arm) in ("loss", "gain"):
        return ""
    return f"; a {words.worsening(score.metric)} under {words.change(score.smallest, score.metric, signed=False)} would not have shown"
