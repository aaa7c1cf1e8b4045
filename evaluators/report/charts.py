"""Accuracy against size and against latency: one specification for the interactive page and the still images."""

from dataclasses import dataclass
from math import floor, log10
from typing import Any

from evaluators.report import words
from evaluators.report.reading import Group, groups, is_simulated, label, loss
from evaluators.results import Arm, Estimate, Results

# Okabe and Ito's colours, told apart with every common colour blindness; each comes with a shape of its own. The first is for float32.
COLORS = ("#868d95", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#a08c00")
SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "triangle-right", "triangle-left")
LOOKS = [(COLORS[i % len(COLORS)], SHAPES[(i + i // len(COLORS)) % len(SHAPES)]) for i in range(len(COLORS) * len(SHAPES))]
"""Colour and shape of the first recipe, the second, ...: 64 different ones."""
Y_AXIS = {"tickCount": 6, "titleAngle": 0, "titleAlign": "left", "titleAnchor": "end", "titleX": -26, "titleY": -8}
LOG_FROM = 5  # an axis whose largest value is this many times its smallest is logarithmic


@dataclass(frozen=True)
class Axis:
    """What a chart has on its horizontal axis."""

    key: str
    title: str

    def read(self, arm: Arm) -> Estimate | None:
        if self.key == "size":
            return Estimate(*[arm.size.file_bytes / 1e6] * 3) if arm.size else None
        if self.key == "instructions":
            return Estimate(*[arm.instructions.total / 1e6] * 3) if arm.instructions else None
        return arm.latency.median_ms if arm.latency else None


AXES = (Axis("size", "File size, MB"), Axis("latency", "Latency, ms"), Axis("instructions", "Instructions per inference, M"))


@dataclass(frozen=True)
class Panel:
    """One runtime's arms on shared scales, as rows of a Vega-Lite data set."""

    runtime: str
    rows: list[dict[str, Any]]
    rival: list[dict[str, Any]]  # the front over all runtimes


@dataclass(frozen=True)
class Chart:
    """All panels of one model and axis."""

    group: Group
    axis: Axis
    recipes: tuple[str, ...]
    x: tuple[float, float]
    y: tuple[float, float]
    panels: tuple[Panel, ...]

    @property
    def log(self) -> bool:
        return self.x[0] > 0 and self.x[1] / self.x[0] >= LOG_FROM

    @property
    def slug(self) -> str:
        return f"accuracy-{self.axis.key}"


def charts(results: Results) -> list[Chart]:
    """A chart for each model, target and axis that has at least one arm with both numbers."""
    found = [chart(group, axis, arms) for group, arms in groups(results).items() for axis in AXES]
    return [one for one in found if one.panels]


def chart(group: Group, axis: Axis, arms: list[Arm]) -> Chart:
    shown = [arm for arm in arms if arm.accuracy and axis.read(arm)]
    best = front(shown, axis)
    rival = [{"x": axis.read(arm).value, "y": 100 * arm.accuracy.value.value} for arm in best]
    runtimes = dict.fromkeys(arm.runtime for arm in shown)
    panels = tuple(panel(runtime, [arm for arm in shown if arm.runtime == runtime], axis, rival) for runtime in runtimes)
    recipes = tuple(dict.fromkeys(arm.recipe for arm in arms))
    return Chart(group, axis, recipes, x_range([axis.read(arm) for arm in shown]), y_range([arm.accuracy.value for arm in shown]), panels)


def panel(runtime: str, arms: list[Arm], axis: Axis, rival: list[dict]) -> Panel:
    best = front(arms, axis)
    return Panel(runtime, [row(arm, axis.read(arm), best.index(arm) if arm in best else None) for arm in arms], rival)


def front(arms: list[Arm], axis: Axis) -> list[Arm]:
    """The arms that no other beats in both accuracy and size (or latency), from small to large. Simulated arms never count."""
    best: list[Arm] = []
    able = [arm for arm in arms if not is_simulated(arm)]
    for arm in sorted(able, key=lambda arm: (axis.read(arm).value, -arm.accuracy.value.value)):
        if not best or arm.accuracy.value.value > best[-1].accuracy.value.value:
            best.append(arm)
    return best


def row(arm: Arm, x: Estimate, place: int | None) -> dict[str, Any]:
    accuracy, simulated = arm.accuracy, is_simulated(arm)
    return {
        "arm": label(arm),
        "id": arm.id,
        "recipe": arm.recipe,
        "x": x.value,
        "x_low": x.low,
        "x_high": x.high,
        "y": 100 * accuracy.value.value,
        "y_low": 100 * accuracy.value.low,
        "y_high": 100 * accuracy.value.high,
        "front": place is not None,
        "lift": 14 if (place or 0) % 2 == 0 else -14,  # neighbours' labels stand below and above the line in turn; the first is the lowest
        "simulated": simulated,
        "Size": words.megabytes(arm.size.file_bytes) if arm.size else words.NOTHING,
        "Latency": f"{words.milliseconds(arm.latency.median_ms.value)} {words.interval(arm.latency.median_ms)}" if arm.latency else words.NOTHING,
        "Instructions": words.instructions(arm.instructions.total) if arm.instructions else words.NOTHING,
        "Accuracy": f"{words.percent(accuracy.value.value)} {words.interval(accuracy.value, words.percent)}",
        "Against float32": against(arm),
        "Weights": "simulated: no smaller, no faster" if simulated else "stored as planned",
    }


def against(arm: Arm) -> str:
    difference = arm.accuracy.difference
    if loss(arm) == "baseline":
        return "this is the baseline"
    if difference is None:
        return "no baseline to compare with"
    return f"{words.points(difference.value)} points {words.interval(difference, words.points)}: {LOSS_WORDS[loss(arm)]}"


LOSS_WORDS = {"loss": "a loss", "gain": "a gain", "none shown": "no loss shown", "unknown": "not known", "baseline": "baseline"}


def x_range(values: list[Estimate]) -> tuple[float, float]:
    """Domain with room at both ends; from 0 unless the values ask for a logarithm."""
    if not values:
        return 0.0, 1.0
    low, high = min(v.low for v in values), max(v.high for v in values)
    return (low / 1.25, high * 1.25) if low > 0 and high / low >= LOG_FROM else (0.0, high * 1.12)


def y_range(values: list[Estimate]) -> tuple[float, float]:
    """Percent, around all intervals."""
    if not values:
        return 0.0, 100.0
    low, high = 100 * min(v.low for v in values), 100 * max(v.high for v in values)
    room = max(0.5, 0.06 * (high - low))
    return max(0.0, low - room), min(100.0, high + room)


def ticks(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, 20, ... inside a logarithmic axis."""
    powers = range(floor(log10(low)) - 1, floor(log10(high)) + 2)
    return [step * 10.0**power for power in powers for step in (1, 2, 5) if low <= step * 10.0**power <= high]


def scale_x(chart: Chart):
    import altair as alt

    axis = alt.Axis(values=ticks(*chart.x), format="~g") if chart.log else alt.Axis(tickCount=5, format="~r")
    return alt.X("x:Q", title=chart.axis.title, axis=axis, scale=alt.Scale(domain=list(chart.x), type="log" if chart.log else "linear", nice=False))


def draw(chart: Chart, panel: Panel, ink: str, legend: bool):
    """The Altair chart of one panel: fronts in `ink`, then error bars, then points; hollow points are simulated."""
    import altair as alt

    data, rival = alt.Data(values=panel.rows), alt.Data(values=panel.rival)
    x, y = scale_x(chart), alt.Y("y:Q", title="Accuracy, %", scale=alt.Scale(domain=list(chart.y), nice=False), axis=alt.Axis(**Y_AXIS))
    names = list(chart.recipes)
    colors, shapes = zip(*(LOOKS[i % len(LOOKS)] for i in range(len(names))), strict=True)
    key = alt.Legend(title=None, orient="bottom", columns=4, symbolSize=90, symbolOpacity=1) if legend else None
    color = alt.Color("recipe:N", scale=alt.Scale(domain=names, range=list(colors)), legend=key)
    shape = alt.Shape("recipe:N", scale=alt.Scale(domain=names, range=list(shapes)), legend=key)
    step = {"interpolate": "step-after", "clip": True}
    layers = [
        alt.Chart(rival).mark_line(**step, strokeDash=[2, 3], strokeWidth=1.2, opacity=0.55, color=ink).encode(x=x, y=y),
        alt.Chart(data).transform_filter("datum.front").mark_line(**step, strokeWidth=1.6, opacity=0.55, color=ink).encode(x=x, y=y),
        alt.Chart(data).mark_rule(strokeWidth=1.3, opacity=0.4).encode(x=x, y=alt.Y("y_low:Q"), y2="y_high:Q", color=color),
        alt.Chart(data).mark_rule(strokeWidth=1.3, opacity=0.4).encode(x=alt.X("x_low:Q"), x2="x_high:Q", y=y, color=color),
        alt.Chart(data)
        .mark_point(size=85, strokeWidth=1.8, opacity=1, cursor="pointer")
        .encode(
            x=x,
            y=y,
            color=color,
            shape=shape,
            tooltip=tooltips(),
            fillOpacity=alt.condition("datum.simulated", alt.value(0), alt.value(1)),
            fill=alt.Fill("recipe:N", scale=alt.Scale(domain=names, range=list(colors)), legend=None),
        ),
        front_labels(data, x, y, chart, ink),
    ]
    return alt.layer(*layers).properties(description=f"{words.runtime_name(panel.runtime)}: accuracy against {chart.axis.title}")


def front_labels(data, x, y, chart: Chart, ink: str):
    """Names beside the front's points, on the side that has room."""
    import altair as alt

    middle = (chart.x[0] * chart.x[1]) ** 0.5 if chart.log else sum(chart.x) / 2
    look = {"align": alt.expr(f"datum.x > {middle} ? 'right' : 'left'"), "dx": alt.expr(f"datum.x > {middle} ? -7 : 7"), "dy": alt.expr("datum.lift")}
    named = alt.Chart(data).transform_filter("datum.front")
    return named.mark_text(**look, baseline="middle", fontSize=10.5, color=ink).encode(x=x, y=y, text="recipe:N")


def tooltips() -> list:
    import altair as alt

    return [alt.Tooltip(f"{name}:N", title=name.capitalize()) for name in ("arm", "Size", "Latency", "Instructions", "Accuracy", "Against float32", "Weights")]


def page_specification(chart: Chart, panel: Panel) -> dict[str, Any]:
    """Vega-Lite for the page: colours come from the page's text colour, so that light, dark and print need no second drawing."""
    drawn = draw(chart, panel, "currentColor", legend=False).properties(width="container", height=250).configure(**page_look())
    return drawn.to_dict()


def page_look() -> dict[str, Any]:
    ink = "currentColor"
    axis = {"labelColor": ink, "titleColor": ink, "gridColor": ink, "gridOpacity": 0.1, "domainOpacity": 0, "domainColor": ink, "tickColor": ink}
    quiet = {"tickOpacity": 0.25, "labelOpacity": 0.75, "titleOpacity": 0.75, "titleFontWeight": 500, "labelFontSize": 11, "titleFontSize": 11.5}
    return {
        "background": "transparent",
        "font": "inherit",
        "view": {"stroke": None},
        "axis": axis | quiet,
        "autosize": {"type": "fit-x", "contains": "padding"},
    }


def still(chart: Chart) -> str:
    """The same panels as one SVG on white, with a legend, for pull requests."""
    import altair as alt
    import vl_convert

    ink, size = "#30363d", {"width": 330, "height": 230}
    panels = [draw(chart, panel, ink, legend=True).properties(**size, title=words.runtime_name(panel.runtime)) for panel in chart.panels]
    axis = {"labelColor": ink, "titleColor": ink, "gridColor": "#e6e8eb", "domain": False, "tickColor": "#c9ced4", "titleFontWeight": 500}
    look = {"background": "white", "padding": 14, "font": "Helvetica, Arial, sans-serif", "view": {"stroke": None}, "axis": axis}
    drawn = alt.concat(*panels, columns=2, spacing=24).configure(**look, title={"color": ink, "anchor": "start", "offset": 12})
    return vl_convert.vegalite_to_svg(drawn.to_dict(), vl_version=vega_lite_version())


def vega_lite_version() -> str:
    """The version that Altair writes for, as vl-convert names it: "6.1"."""
    import altair as alt

    return ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])


def library() -> str:
    """vega, vega-lite and vega-embed as one script without any outside reference."""
    import vl_convert

    return vl_convert.javascript_bundle(vl_version=vega_lite_version())
