"""One sentence about an arm that a person can act on."""

from evaluators.report import words
from evaluators.report.reading import accuracy_words, is_simulated, label
from evaluators.results import Arm


def verdict(arm: Arm) -> str:
    """Size, speed and accuracy against float32 with their intervals, or why there is no result."""
    if arm.status != "done":
        return f"{label(arm)}: {arm.status}: {arm.cause or 'not run yet'}"
    parts = [size_words(arm), speed_words(arm), accuracy_words(arm) if arm.accuracy and arm.accuracy.difference else ""]
    simulated = "; some of its weights are float values on a grid, so size and speed are float32's" if is_simulated(arm) else ""
    return f"{label(arm)}: {'; '.join(filter(None, parts))}{simulated}."


def size_words(arm: Arm) -> str:
    if arm.size is None or arm.size.ratio is None:
        return ""
    ratio = arm.size.ratio
    return f"{words.times(max(ratio, 1 / ratio))} {'smaller' if ratio >= 1 else 'larger'} ({words.megabytes(arm.size.file_bytes)})"


def speed_words(arm: Arm) -> str:
    if arm.instructions and arm.instructions.fewer:
        fewer = arm.instructions.fewer
        return f"{words.times(max(fewer, 1 / fewer))} {'fewer' if fewer >= 1 else 'more'} instructions"
    found = arm.latency.speedup if arm.latency else None
    if found is None:
        return ""
    if arm.latency.verdict == "slower":
        inverse = type(found)(1 / found.value, 1 / found.high, 1 / found.low)
        return f"{words.times(inverse.value)} {words.interval(inverse, words.times)} slower"
    if arm.latency.verdict == "faster":
        return f"{words.times(found.value)} {words.interval(found, words.times)} faster"
    return f"no difference in speed shown ({words.times(found.value)} {words.interval(found, words.times)})"
