"""Which arm to take for a model on a target, and why."""

from dataclasses import dataclass

from evaluators.report import reading, words
from evaluators.report.verdicts import verdict
from evaluators.results import Arm, Results


@dataclass(frozen=True)
class Advice:
    arm: Arm
    baseline: Arm | None
    why: str  # a sentence


def recommended(results: Results) -> list[str]:
    """A sentence for each model and target: the arm to start from, what it is worth and why it."""
    groups = reading.groups(results)
    found = []
    for (model, target), arms in groups.items():
        where = f" for {model} on {words.TARGET_NAMES.get(target, target)}" if len(groups) > 1 else ""
        given = advice(arms)
        found.append(f"Recommended{where}: {f'{verdict(given.arm)} {given.why}' if given else f'float32. {NOTHING_TO_GAIN}'}")
    return found


NOTHING_TO_GAIN = "No arm is smaller or faster than float32 without a measurable loss, so there is nothing to gain here yet."


def advice(arms: list[Arm]) -> Advice | None:
    """The arm of one model and target to start from; None where nothing is better than float32 without a measurable loss.

    Of the arms without a loss shown that are smaller than float32 and not slower, those that cannot be told from the fastest; of these the smallest,
    and of those within 2% of it the fastest.
    """
    able = [arm for arm in arms if reading.lossless(arm) and reading.counts_as_smaller(arm) and not slower(arm)]
    if not able:
        return alternative(arms)
    ties = not_told_apart(able)
    least = min(arm.size.file_bytes for arm in ties)
    best = min((arm for arm in ties if arm.size.file_bytes <= 1.02 * least), key=cost)
    return Advice(best, reading.baseline_of(best, arms), because(best, able, ties))


def slower(arm: Arm) -> bool:
    if arm.latency:
        return arm.latency.verdict == "slower"
    return arm.instructions is not None and (arm.instructions.fewer or 0) < 0.99


def not_told_apart(arms: list[Arm]) -> list[Arm]:
    """The fastest arm, or that of the fewest instructions, and those that the measurement cannot tell from it."""
    timed = [arm for arm in arms if arm.latency]
    if timed:
        edge = min(timed, key=lambda arm: arm.latency.median_ms.value).latency.median_ms.high
        return [arm for arm in timed if arm.latency.median_ms.low <= edge]
    counted = [arm for arm in arms if arm.instructions]
    edge = 1.01 * min((arm.instructions.total for arm in counted), default=0)
    return [arm for arm in counted if arm.instructions.total <= edge] or arms


def cost(arm: Arm) -> float:
    """Milliseconds, or instructions, or bytes: the first that arms of one target have."""
    return arm.latency.median_ms.value if arm.latency else arm.instructions.total if arm.instructions else arm.size.file_bytes


def because(best: Arm, able: list[Arm], ties: list[Arm]) -> str:
    timed, counted = any(arm.latency for arm in ties), any(arm.instructions for arm in ties)
    speed = "the fastest" if timed else "the one of the fewest instructions" if counted else ""
    allowed = "smaller than float32 and not slower" if speed else "smaller than float32"
    if len(able) == 1:
        return f"The only arm that is {allowed}, with no loss shown."
    of = f"Of {words.count(len(able), 'arm')} that are {allowed}, with no loss shown,"
    if len(ties) == 1:
        return f"{of} this is {speed}."
    if not speed:
        return f"{of} this is the smallest."
    others = words.listed([reading.label(arm) for arm in ties if arm is not best])
    return f"{of} this is the smallest, within 2%, of those that cannot be told from {speed}; the others: {others}."


def alternative(arms: list[Arm]) -> Advice | None:
    pick, gain = reading.smallest(arms), "smaller"
    if pick is None:
        pick, gain = reading.fastest(arms), "faster"
    if pick is None:
        return None
    price = "slower" if gain == "smaller" else "larger"
    why = f"No arm is both smaller than float32 and as fast without a measurable loss. This one is {gain}, and may be {price}."
    return Advice(pick.arm, pick.baseline, why)
