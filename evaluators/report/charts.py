"""What a good score costs: fronts of a study's scores against size, latency, memory, instructions and bits. `drawing` draws them."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, log
from typing import Any

from evaluators.report import words
from evaluators.report.numbers import bits_per_weight
from evaluators.report.reading import Group, against_words, groups, is_simulated, label, loss, metric
from evaluators.results import Arm, Estimate, Metric, Results

LETTER, LEFT_EDGE = 0.023, 0.3  # of a panel's width: a letter of a name beside a point, and from where names stand left of their points
LEAST_SPAN = 2.5  # points: nearer to the best, no arm is far off
LOG_FROM = 5  # an axis whose largest value is this many times its smallest is logarithmic


@dataclass(frozen=True)
class Axis:
    """What a chart has on its horizontal axis."""

    key: str
    name: str
    title: str

    def read(self, arm: Arm) -> Estimate | None:
        if self.key == "latency":
            found = arm.latency.median_ms if arm.latency else None
        else:
            exact = self.exact(arm)
            found = None if exact is None else Estimate(exact, exact, exact)
        return found if found and isfinite(found.value) else None

    def exact(self, arm: Arm) -> float | None:
        if self.key == "size":
            return arm.size.file_bytes / 1e6 if arm.size else None
        if self.key == "memory":
            return arm.memory.model_bytes / 1e6 if arm.memory else None
        if self.key == "instructions":
            return arm.instructions.total / 1e6 if arm.instructions else None
        return bits_per_weight(arm)


AXES = (
    Axis("size", "Size", "File size, MB"),
    Axis("latency", "Latency", "Latency, ms"),
    Axis("memory", "Memory", "Peak memory, MB"),
    Axis("instructions", "Instructions", "Instructions per inference, M"),
    Axis("bits", "Bits per weight", "Bits per weight in the file, scales included"),
)
STILL = tuple(axis for axis in AXES if axis.key in ("size", "latency", "instructions"))  # those that a pull request shows


@dataclass(frozen=True)
class Panel:
    """One runtime's arms on shared scales, as rows of a Vega-Lite data set."""

    runtime: str
    arms: tuple[Arm, ...]
    rows: list[dict[str, Any]]
    rival: list[dict[str, Any]]  # the front over all runtimes
    front: tuple[Arm, ...]
    outside: tuple[Arm, ...]  # so much worse than the others that they are drawn at the edge of the scale


@dataclass(frozen=True)
class Chart:
    """All panels of one model, target and axis."""

    group: Group
    axis: Axis
    metric: Metric
    recipes: tuple[str, ...]
    x: tuple[float, float]
    y: tuple[float, float]
    panels: tuple[Panel, ...]

    @property
    def log(self) -> bool:
        return is_log(*self.x)

    @property
    def log_y(self) -> bool:
        return self.metric.unit != "%" and is_log(*self.y)

    @property
    def arms(self) -> tuple[Arm, ...]:
        return tuple(arm for panel in self.panels for arm in panel.arms)

    @property
    def slug(self) -> str:
        return f"{self.metric.title.lower().replace(' ', '-')}-{self.axis.key}"


def charts(results: Results, axes: Sequence[Axis] = AXES) -> list[Chart]:
    """A chart for each model, target and axis that has at least one arm with both numbers."""
    found = [chart(group, axis, arms) for group, arms in groups(results).items() for axis in axes]
    return [one for one in found if one.panels]


def chart(group: Group, axis: Axis, arms: list[Arm]) -> Chart:
    shown = [arm for arm in arms if scored(arm) and axis.read(arm)]
    best = front(shown, axis)
    rival = [{"x": axis.read(arm).value, "y": height(arm).value} for arm in best]
    x, inside = x_range([axis.read(arm) for arm in shown]), [arm for arm in shown if not far_off(arm, shown)]
    runtimes = dict.fromkeys(arm.runtime for arm in shown)
    panels = tuple(panel(runtime, [arm for arm in shown if arm.runtime == runtime], axis, rival, x, inside) for runtime in runtimes)
    recipes = tuple(dict.fromkeys(arm.recipe for arm in arms))
    return Chart(group, axis, metric(arms), recipes, x, y_range([height(arm) for arm in inside], metric(arms)), panels)


def far_off(arm: Arm, arms: list[Arm]) -> bool:
    """Whether a share lies so far below the others that one scale would show nothing of them: 4 times as far below the best as three quarters of them."""
    if arm.accuracy.metric.unit != "%" or not arm.accuracy.metric.higher_is_better:
        return False
    values = sorted(height(one).value for one in arms)
    return values[-1] - height(arm).value > 4 * max(values[-1] - values[len(values) // 4], LEAST_SPAN)


def scored(arm: Arm) -> bool:
    """Whether it has a score that can be drawn: a likeness to float32's outputs is infinite where they are equal."""
    return arm.accuracy is not None and isfinite(arm.accuracy.value.value)


def height(arm: Arm) -> Estimate:
    """Its score as drawn: shares as percent."""
    score, factor = arm.accuracy.value, 100 if arm.accuracy.metric.unit == "%" else 1
    return Estimate(factor * score.value, factor * score.low, factor * score.high)


def panel(runtime: str, arms: list[Arm], axis: Axis, rival: list[dict], x: tuple[float, float], inside: list[Arm]) -> Panel:
    best = front(arms, axis)
    labels = named([arm for arm in best if arm in inside], axis, x)
    rows = [row(arm, axis.read(arm), arm in best, arm in labels) for arm in arms]
    return Panel(runtime, tuple(arms), rows, rival, tuple(best), tuple(arm for arm in arms if arm not in inside))


def named(best: list[Arm], axis: Axis, x: tuple[float, float]) -> list[Arm]:
    """Those of a front, from small to large, whose names do not overlap: they stand left of their points, at the left edge right of them."""
    found, last = [], -1.0
    for arm in best:
        place, width = share(axis.read(arm).value, x), LETTER * len(arm.recipe)
        begin, end = (place - width, place) if place > LEFT_EDGE else (place, place + width)
        if begin > last:
            found.append(arm)
            last = end
    return found


def share(value: float, x: tuple[float, float]) -> float:
    """How far from left to right a value stands on a horizontal axis, 0 to 1."""
    return log(value / x[0]) / log(x[1] / x[0]) if is_log(*x) else (value - x[0]) / (x[1] - x[0])


def front(arms: list[Arm], axis: Axis) -> list[Arm]:
    """The arms that no other beats in both score and cost, from small to large. Simulated arms never count."""
    best: list[Arm] = []
    able = [arm for arm in arms if not is_simulated(arm)]
    for arm in sorted(able, key=lambda arm: (axis.read(arm).value, -goodness(arm))):
        if not best or goodness(arm) > goodness(best[-1]):
            best.append(arm)
    return best


def goodness(arm: Arm) -> float:
    score = arm.accuracy
    return score.value.value if score.metric.higher_is_better else -score.value.value


def row(arm: Arm, x: Estimate, in_front: bool, named: bool) -> dict[str, Any]:
    """Where an arm stands in a panel; `facts` has what does not depend on the axis."""
    return {
        "id": arm.id,
        "x": x.value,
        "x_low": x.low,
        "x_high": x.high,
        "front": in_front,
        "named": named,
    }


def facts(arm: Arm) -> dict[str, Any]:
    """The rest of a row: an arm's score, and what is said of it when one points at it."""
    score, drawn, simulated = arm.accuracy, height(arm), is_simulated(arm)
    said = {
        "Size": words.megabytes(arm.size.file_bytes) if arm.size else words.NOTHING,
        "Latency": f"{words.milliseconds(arm.latency.median_ms.value)} {words.interval(arm.latency.median_ms)}" if arm.latency else words.NOTHING,
        "Memory": words.megabytes(arm.memory.model_bytes) if arm.memory else words.NOTHING,
        "Instructions": words.instructions(arm.instructions.total) if arm.instructions else words.NOTHING,
        "Bits per weight": words.number(bits_per_weight(arm)),
        "Score": f"{words.in_unit(score.value.value, score.metric)} {words.score_interval(score.value, score.metric)}",
        "Against float32": against(arm),
        "Weights": "simulated: no smaller, no faster" if simulated else "stored as planned",
    }
    place = {"y": drawn.value, "y_low": drawn.low, "y_high": drawn.high}
    return {"arm": label(arm), "recipe": arm.recipe, **place, "simulated": simulated} | said


SAID = ("Size", "Latency", "Memory", "Instructions", "Bits per weight", "Score", "Against float32", "Weights")


def against(arm: Arm) -> str:
    if loss(arm) == "baseline":
        return "this is the baseline"
    return "no baseline to compare with" if loss(arm) == "unknown" else f"{against_words(arm).replace(' against float32', '')}: {LOSS_WORDS[loss(arm)]}"


LOSS_WORDS = {"loss": "a loss", "gain": "a gain", "none shown": "no loss shown"}


def x_range(values: list[Estimate]) -> tuple[float, float]:
    """Domain with room at both ends; from 0 unless the values ask for a logarithm."""
    if not values:
        return 0.0, 1.0
    low, high = min(v.low for v in values), max(v.high for v in values)
    return (low / 1.25, high * 1.25) if is_log(low, high) else (min(0.0, low), high * 1.12)


def y_range(values: list[Estimate], about: Metric) -> tuple[float, float]:
    """Around all intervals; percent, or the metric's own unit. Logarithmic where `Chart.log_y` says so."""
    ends = [end for v in values for end in (v.low, v.high)] or [0.0, 100.0]
    low, high = min(ends), max(ends)
    if about.unit == "%":
        room = max(0.5, 0.06 * (high - low))
        return max(0.0, low - room), min(100.0, high + room)
    if is_log(low, high):
        return low / 1.1, high * 1.1
    room = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room


def is_log(low: float, high: float) -> bool:
    return low > 0 and high / low >= LOG_FROM
