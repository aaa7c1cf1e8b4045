"""Vega-Lite of charts: one drawing for the interactive page and for still images."""

from math import floor, log10
from typing import Any

from evaluators.report import words
from evaluators.report.charts import LEFT_EDGE, SAID, Chart, Panel, facts

# Okabe and Ito's colours, told apart with every common colour blindness; each comes with a shape of its own. The first is for float32.
COLORS = ("#868d95", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#a08c00")
SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "triangle-right", "triangle-left")
LOOKS = [(COLORS[i % len(COLORS)], SHAPES[(i + i // len(COLORS)) % len(SHAPES)]) for i in range(len(COLORS) * len(SHAPES))]
"""Colour and shape of the first recipe, the second, ...: 64 different ones."""
Y_AXIS = {"tickCount": 5, "titleAngle": 0, "titleAlign": "left", "titleAnchor": "end", "titleX": -26, "titleY": -8}


def ticks(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, 20, ... inside a logarithmic axis."""
    powers = range(floor(log10(low)) - 1, floor(log10(high)) + 2)
    return [step * 10.0**power for power in powers for step in (1, 2, 5) if low <= step * 10.0**power <= high]


def scale_x(chart: Chart):
    import altair as alt

    steps = (
        [bits for bits in (1, 2, 4, 8, 16, 32, 64) if chart.x[0] <= bits <= chart.x[1]] if chart.axis.key == "bits" else ticks(*chart.x) if chart.log else None
    )
    axis = alt.Axis(values=steps, format="~g") if steps else alt.Axis(tickCount=5, format="~r")
    return alt.X("x:Q", title=chart.axis.title, axis=axis, scale=alt.Scale(domain=list(chart.x), type="log" if chart.log else "linear", nice=False))


def scale_y(chart: Chart):
    import altair as alt

    about = chart.metric
    title = f"{words.capital(about.title)}, {about.unit}" if about.unit else words.capital(about.title)
    return alt.Y(
        "y:Q", title=title, scale=alt.Scale(domain=list(chart.y), type="log" if chart.log_y else "linear", nice=False, clamp=True), axis=alt.Axis(**Y_AXIS)
    )


def draw(chart: Chart, data, rival, ink: str, legend: bool):
    """The Altair chart of one panel: fronts in `ink`, then error bars, then points; hollow points are simulated."""
    import altair as alt

    x, y = scale_x(chart), scale_y(chart)
    names = list(chart.recipes)
    colors, shapes = zip(*(LOOKS[i % len(LOOKS)] for i in range(len(names))), strict=True)
    key = alt.Legend(title=None, orient="bottom", columns=4, symbolSize=90, symbolOpacity=1) if legend else None
    color = alt.Color("recipe:N", scale=alt.Scale(domain=names, range=list(colors)), legend=key)
    shape = alt.Shape("recipe:N", scale=alt.Scale(domain=names, range=list(shapes)), legend=key)
    step = {"interpolate": "step-after", "clip": True}
    layers = [
        alt.Chart(rival).mark_line(**step, strokeDash=[2, 3], strokeWidth=1.2, opacity=0.45, color=ink).encode(x=x, y=y),
        alt.Chart(data).transform_filter("datum.front").mark_line(**step, strokeWidth=1.5, opacity=0.5, color=ink).encode(x=x, y=y),
        alt.Chart(data).mark_rule(strokeWidth=1.3, opacity=0.35, clip=True).encode(x=x, y=alt.Y("y_low:Q"), y2="y_high:Q", color=color),
        alt.Chart(data).mark_rule(strokeWidth=1.3, opacity=0.35, clip=True).encode(x=alt.X("x_low:Q"), x2="x_high:Q", y=y, color=color),
        alt.Chart(data)
        .mark_point(size=80, strokeWidth=1.8, opacity=1, cursor="pointer")
        .encode(
            x=x,
            y=y,
            color=color,
            shape=shape,
            tooltip=tooltips(chart),
            fillOpacity=alt.condition("datum.simulated", alt.value(0), alt.value(1)),
            fill=alt.Fill("recipe:N", scale=alt.Scale(domain=names, range=list(colors)), legend=None),
        ),
        front_labels(data, x, y, chart, ink),
    ]
    return alt.layer(*layers)


def front_labels(data, x, y, chart: Chart, ink: str):
    """Names on the better side of the front's points and to their left, where no arm can stand: it would beat them. At the left edge to their right."""
    import altair as alt

    low, high = chart.x
    edge = low * (high / low) ** LEFT_EDGE if chart.log else low + LEFT_EDGE * (high - low)
    look = {"align": alt.expr(f"datum.x > {edge} ? 'right' : 'left'"), "dx": alt.expr(f"datum.x > {edge} ? -4 : 4")}
    named = alt.Chart(data).transform_filter("datum.named")
    return named.mark_text(**look, dy=-12 if chart.metric.higher_is_better else 12, baseline="middle", fontSize=10.5, color=ink).encode(
        x=x, y=y, text="recipe:N"
    )


def tooltips(chart: Chart) -> list:
    import altair as alt

    told = [facts(arm) for arm in chart.arms]
    known = [name for name in SAID if any(one[name] != words.NOTHING for one in told)]
    titles = {"arm": "Arm"} | {name: name for name in known} | {"Score": words.capital(chart.metric.title)}
    return [alt.Tooltip(f"{name}:N", title=title) for name, title in titles.items()]


def page_specification(chart: Chart) -> dict[str, Any]:
    """Vega-Lite of every panel of a chart; the page fills in the data sets `arms` and `rival`.

    Colours come from the page's text colour, so that light, dark and print need no second drawing.
    """
    import altair as alt

    drawn = draw(chart, alt.Data(name="arms"), alt.Data(name="rival"), "currentColor", legend=False)
    return drawn.properties(width="container", height=250).configure(**page_look()).to_dict(validate=False)  # `still` has the same layers validated


def page_look() -> dict[str, Any]:
    ink = "currentColor"
    axis = {"labelColor": ink, "titleColor": ink, "gridColor": ink, "gridOpacity": 0.1, "domainOpacity": 0, "domainColor": ink, "tickColor": ink}
    quiet = {"tickOpacity": 0.25, "labelOpacity": 0.75, "titleOpacity": 0.75, "titleFontWeight": 500, "labelFontSize": 11, "titleFontSize": 11.5}
    return {
        "background": "transparent",
        "font": "inherit",
        "aria": False,  # the page gives each panel one name; every number stands in the table
        "view": {"stroke": None},
        "axis": axis | quiet,
        "autosize": {"type": "fit-x", "contains": "padding"},
    }


def still(chart: Chart) -> str:
    """The same panels as one SVG on white, with a legend, for pull requests."""
    import altair as alt
    import vl_convert

    ink, size = "#30363d", {"width": 330, "height": 230}
    panels = [still_panel(chart, panel, ink).properties(**size, title=panel_title(panel)) for panel in chart.panels]
    axis = {"labelColor": ink, "titleColor": ink, "gridColor": "#e6e8eb", "domain": False, "tickColor": "#c9ced4", "titleFontWeight": 500}
    look = {"background": "white", "padding": 14, "font": "Helvetica, Arial, sans-serif", "view": {"stroke": None}, "axis": axis}
    drawn = alt.concat(*panels, columns=2, spacing=24).configure(**look, title={"color": ink, "anchor": "start", "offset": 12})
    return vl_convert.vegalite_to_svg(drawn.to_dict(), vl_version=vega_lite_version())


def panel_title(panel: Panel) -> dict[str, Any]:
    about = [f"{arm.recipe} {words.in_unit(arm.accuracy.value.value, arm.accuracy.metric)}" for arm in panel.outside]
    return {"text": words.runtime_name(panel.runtime)} | ({"subtitle": f"Below the scale: {', '.join(about)}"} if about else {})


def still_panel(chart: Chart, panel: Panel, ink: str):
    import altair as alt

    known = {arm.id: facts(arm) for arm in chart.arms}
    rows = [known[row["id"]] | row for row in panel.rows]
    drawn = draw(chart, alt.Data(values=rows), alt.Data(values=panel.rival), ink, legend=True)
    return drawn.properties(description=f"{words.runtime_name(panel.runtime)}: {chart.metric.title} against {chart.axis.title}")


def vega_lite_version() -> str:
    """The version that Altair writes for, as vl-convert names it: "6.1"."""
    import altair as alt

    return ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])


def library() -> str:
    """vega, vega-lite and vega-embed as one script without any outside reference."""
    import vl_convert

    return vl_convert.javascript_bundle(vl_version=vega_lite_version())
