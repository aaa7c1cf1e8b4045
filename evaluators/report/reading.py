"""What the rows allow one to say: which arms lost accuracy, which count as small or fast, and the best of them in words."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, TypeVar

from evaluators.report import words
from evaluators.results import Arm, Estimate, Metric, Results

Loss = Literal["baseline", "loss", "gain", "none shown", "unknown"]
Group = tuple[str, str]  # model, target
Key = TypeVar("Key")

NO_CAUSE = {"pending": "not run yet: the same command continues the study"}
LOSS_LEVEL = 0.05  # the p-value under which a paired test counts as a loss even where the bootstrap interval touches 0
ACCURACY = Metric("accuracy", "right", "%", noun="answer")  # of a study without any score


@dataclass(frozen=True)
class Pick:
    """The best arm of a kind with the float32 arm that it is compared with, and the arms that the measurement cannot tell from it."""

    arm: Arm
    baseline: Arm
    ties: tuple[Arm, ...] = ()


@dataclass(frozen=True)
class RuntimePicks:
    """The best arms of one model on one runtime; None where no arm qualifies."""

    runtime: str
    baseline: Arm | None
    noise: Estimate | None
    smallest: Pick | None
    fastest: Pick | None


@dataclass(frozen=True)
class ModelPicks:
    model: str
    target: str
    smallest: Pick | None
    fastest: Pick | None  # by instructions where nothing is timed
    runtimes: tuple[RuntimePicks, ...]
    untimed: bool  # whether its target has no latency


def is_baseline(arm: Arm) -> bool:
    """True for the arm that others are compared with: its timing says so, or, where it has none, its recipe."""
    verdict = arm.latency.verdict if arm.latency else "no baseline"
    return verdict == "baseline" or (verdict == "no baseline" and arm.recipe == "float32")


def is_simulated(arm: Arm) -> bool:
    """True where some weights are float values on a format's grid: such an arm shows accuracy, never size or speed."""
    return any(tensor.placement == "simulated" for tensor in arm.tensors)


def loss(arm: Arm) -> Loss:
    """Whether this arm scores worse than float32. Either of interval and paired test is enough to call it a loss.

    A likeness has lost wherever an output is not float32's, or where its interval lies below what the study asks for: how much is too much no test can say.
    """
    if is_baseline(arm):
        return "baseline"
    score = arm.accuracy
    if score is None or score.worse is None:
        return "unknown"
    if score.metric.kind == "likeness":
        close = score.metric.least is not None and score.value.low >= score.metric.least
        return "none shown" if close or not score.flipped else "loss"
    significant = score.p < LOSS_LEVEL
    if score.drop.low > 0 or (significant and score.drop.value > 0):
        return "loss"
    if score.drop.high < 0 and significant:
        return "gain"
    return "none shown"


def metric(arms: Iterable[Arm]) -> Metric:
    """What the arms of a study are judged by."""
    return next((arm.accuracy.metric for arm in arms if arm.accuracy), ACCURACY)


def lossless(arm: Arm) -> bool:
    """Done, not simulated, and with no loss shown: what may be recommended."""
    return arm.status == "done" and not is_simulated(arm) and loss(arm) in ("none shown", "gain")


def counts_as_faster(arm: Arm) -> bool:
    return arm.latency is not None and arm.latency.verdict == "faster" and not is_simulated(arm)


def counts_as_leaner(arm: Arm) -> bool:
    """Whether it takes fewer instructions than float32 on its emulated target; 1% is more than two builds of a library differ by."""
    return arm.instructions is not None and (arm.instructions.fewer or 0) > 1.01 and not is_simulated(arm)


def counts_as_smaller(arm: Arm) -> bool:
    return arm.size is not None and arm.size.ratio is not None and arm.size.ratio > 1 and not is_simulated(arm)


def groups(results: Results) -> dict[Group, list[Arm]]:
    """Arms by model and target, in the study's order."""
    return grouped(results.arms, lambda arm: (arm.model, arm.target))


def grouped(arms: Iterable[Arm], key: Callable[[Arm], Key]) -> dict[Key, list[Arm]]:
    found: dict[Key, list[Arm]] = {}
    for arm in arms:
        found.setdefault(key(arm), []).append(arm)
    return found


def baseline_of(arm: Arm, arms: Iterable[Arm]) -> Arm | None:
    """The float32 arm of the same model, target and runtime that ran; of several exporters the arm's own comes first."""
    same = [a for a in arms if (a.model, a.target, a.runtime) == (arm.model, arm.target, arm.runtime) and a.status == "done" and is_baseline(a)]
    return next((a for a in same if a.exporter == arm.exporter), same[0] if same else None)


def picks(results: Results) -> list[ModelPicks]:
    return [model_picks(model, target, arms) for (model, target), arms in groups(results).items()]


def model_picks(model: str, target: str, arms: list[Arm]) -> ModelPicks:
    runtimes = tuple(runtime_picks(runtime, own) for runtime, own in grouped(arms, lambda arm: arm.runtime).items())
    return ModelPicks(model, target, smallest(arms), fastest(arms), runtimes, all(arm.untimed for arm in arms))


def runtime_picks(runtime: str, arms: list[Arm]) -> RuntimePicks:
    baseline = next((arm for arm in arms if is_baseline(arm) and arm.status == "done"), None)
    noise = next((arm.latency.noise for arm in arms if arm.latency and arm.latency.noise), None)
    return RuntimePicks(runtime, baseline, noise, smallest(arms), fastest(arms))


def smallest(arms: list[Arm]) -> Pick | None:
    able = [arm for arm in arms if lossless(arm) and counts_as_smaller(arm)]
    if not able:
        return None
    best = min(able, key=lambda arm: arm.size.file_bytes)
    ties = tuple(arm for arm in able if arm is not best and arm.size.file_bytes <= 1.02 * best.size.file_bytes)
    return Pick(best, baseline_of(best, arms), ties)


def fastest(arms: list[Arm]) -> Pick | None:
    """Faster than float32 on its own runtime and on the others: an arm that doubles a slow runtime's speed is not the fastest."""
    quickest = min((arm.latency.median_ms.value for arm in arms if is_baseline(arm) and arm.latency), default=math.inf)
    able = [arm for arm in arms if lossless(arm) and counts_as_faster(arm) and arm.latency.median_ms.value < quickest]
    if not able:
        return leanest(arms)
    best = min(able, key=lambda arm: arm.latency.median_ms.value)
    ties = tuple(arm for arm in able if arm is not best and arm.latency.median_ms.low <= best.latency.median_ms.high)
    return Pick(best, baseline_of(best, arms), ties)


def leanest(arms: list[Arm]) -> Pick | None:
    """The fewest instructions, where arms were counted instead of timed; fewer than float32's on any runtime."""
    fewest = min((arm.instructions.total for arm in arms if is_baseline(arm) and arm.instructions), default=math.inf)
    able = [arm for arm in arms if lossless(arm) and counts_as_leaner(arm) and arm.instructions.total < fewest]
    if not able:
        return None
    best = min(able, key=lambda arm: arm.instructions.total)
    return Pick(best, baseline_of(best, arms), tuple(arm for arm in able if arm is not best and arm.instructions.total <= 1.01 * best.instructions.total))


def fast_title(one: ModelPicks) -> str:
    return "Fewest instructions" if one.untimed else "Fastest"


def label(arm: Arm) -> str:
    own = other_exporter(arm)
    return f"{arm.recipe} on {words.runtime_name(arm.runtime)}{f' ({own})' if own else ''}"


def other_exporter(arm: Arm) -> str:
    """The exporter where it is not the runtime's natural one, whose name the runtime's begins with: onnx for onnxruntime."""
    return "" if arm.runtime.startswith(arm.exporter) else arm.exporter


def blind_spot(arms: Iterable[Arm]) -> str:
    """The sentence that says which drops the samples could not have shown; "" where no arm was compared."""
    seen = [arm.accuracy for arm in arms if arm.accuracy and arm.accuracy.smallest is not None and not is_baseline(arm)]
    if not seen:
        return ""
    counts, about = sorted({f"{score.count:,}" for score in seen}), seen[0].metric
    low, high = (edge(score.smallest for score in seen) for edge in (min, max))
    least, most = words.change(low, about, signed=False, unit=False), words.change(high, about, signed=False)
    span = most if words.change(low, about, signed=False) == most else f"{least} to {most}, depending on the arm"
    return f"This sample of {words.listed(counts)} cannot see {about.title} {words.worsening(about)}s under {span} (80% power)."


def counted(results: Results) -> str:
    """ "28 arms: 24 measured, 3 refused, 1 failed"."""
    names = {"done": "measured", "refused": "refused", "failed": "failed", "pending": "not run yet"}
    tally = {status: sum(arm.status == status for arm in results.arms) for status in names}
    return f"{words.count(len(results.arms), 'arm')}: " + ", ".join(f"{n} {names[status]}" for status, n in tally.items() if n or status == "done")


def smallest_words(pick: Pick | None) -> str:
    if pick is None:
        return "no arm is smaller than float32 without a measurable loss"
    size = pick.arm.size
    return (
        f"{label(pick.arm)}: {words.megabytes(size.file_bytes)}{instead(pick, lambda arm: arm.size and words.megabytes(arm.size.file_bytes))}, "
        f"{words.times(size.ratio)} smaller, {accuracy_words(pick.arm)}{tie_words(pick, 'within 2% of it')}"
    )


def fastest_words(pick: Pick | None) -> str:
    if pick is None:
        return "no arm is faster than float32 without a measurable loss"
    if pick.arm.latency is None:
        return leanest_words(pick)
    latency = pick.arm.latency
    return (
        f"{label(pick.arm)}: {words.milliseconds(latency.median_ms.value)}"
        f"{instead(pick, lambda arm: arm.latency and words.milliseconds(arm.latency.median_ms.value))}, "
        f"{words.times(latency.speedup.value)} {words.interval(latency.speedup, words.times)} as fast, "
        f"{accuracy_words(pick.arm)}{tie_words(pick, 'not told apart from it')}"
    )


def leanest_words(pick: Pick) -> str:
    found = pick.arm.instructions
    return (
        f"{label(pick.arm)}: {words.instructions(found.total)}{instead(pick, lambda arm: arm.instructions and words.instructions(arm.instructions.total))}, "
        f"{words.times(found.fewer)} fewer, {accuracy_words(pick.arm)}{tie_words(pick, 'within 1% of it')}"
    )


def instead(pick: Pick, read: Callable[[Arm], str | None]) -> str:
    before = read(pick.baseline) if pick.baseline else None
    return f" instead of {before}" if before else ""


def accuracy_words(arm: Arm) -> str:
    score, unseen = arm.accuracy, unseen_words(arm)
    reached = f"{score.metric.title} {words.in_unit(score.value.value, score.metric)}"
    return f"{reached} ({against_words(arm)}{f'; {unseen}' if unseen else ''})"


def against_words(arm: Arm) -> str:
    """ "−0.5 points against float32 [−1.2, 0.1]"; of a likeness how many outputs differ."""
    score = arm.accuracy
    if score.difference is None:
        return f"{words.percent(score.flipped)} of the outputs differ from float32's"
    return f"{words.change(score.difference.value, score.metric)} against float32 {words.change_interval(score.difference, score.metric)}"


def unseen_words(arm: Arm) -> str:
    """Which drop of this arm its samples would not have shown; "" where a loss was shown or nothing was compared."""
    score = arm.accuracy
    if score is None or score.smallest is None or loss(arm) not in ("none shown", "gain"):
        return ""
    return f"a {words.worsening(score.metric)} under {words.change(score.smallest, score.metric, signed=False)} would not show"


def tie_words(pick: Pick, how: str) -> str:
    return f"; {how}: {words.listed([label(arm) for arm in pick.ties])}" if pick.ties else ""


def summary(results: Results) -> list[str]:
    """Sentences that a person can act on: what was done, the best arms, and what could not have been seen."""
    found = [f"{counted(results)}."]
    every = picks(results)
    for one in every:
        where = f"{one.model} on {words.TARGET_NAMES.get(one.target, one.target)}: " if len(every) > 1 else ""
        found.append(f"{where}Smallest with no measurable loss: {smallest_words(one.smallest)}.")
        found.append(f"{where}{fast_title(one)} with no measurable loss: {fastest_words(one.fastest)}.")
    found.append(blind_spot(results.arms))
    return [sentence for sentence in found if sentence]


def main_placement(arm: Arm) -> str:
    """The placement of most compressed bytes, with its share where much else is there: "native", "native 11%"; "float" where nothing is compressed."""
    small = {name: size for name, size in arm.placements.items() if name != "float" and size}
    if not small:
        return "float" if arm.tensors else words.NOTHING
    name = "simulated" if "simulated" in small else max(small, key=small.get)
    total = sum(arm.placements.values())
    return name if small[name] >= 0.95 * total else f"{name} {share(small[name], total)}"


def placement_words(arm: Arm) -> str:
    """ "native 92%, float 8%": shares of the constants' bytes; "" where nothing is known."""
    total = sum(arm.placements.values())
    parts = [(name, arm.placements.get(name, 0)) for name in ("native", "decoded", "simulated", "float")]
    return ", ".join(f"{name} {share(size, total)}" for name, size in parts if size) if total else ""


def share(part: int, total: int) -> str:
    rounded = f"{100 * part / total:.0f}%"
    return "<1%" if part and rounded == "0%" else rounded


def unfinished(results: Results) -> dict[tuple[str, str], list[Arm]]:
    """Arms without a full result by status and cause, failures first: what no report may hide."""
    order = ("failed", "refused", "pending")
    missing = sorted((arm for arm in results.arms if arm.status != "done"), key=lambda arm: order.index(arm.status))
    return grouped(missing, lambda arm: (arm.status, arm.cause or NO_CAUSE.get(arm.status, "no cause was recorded")))
