"""report.html: one file that opens offline and asks nobody for anything."""

import json
from base64 import b64encode
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from gzip import compress
from hashlib import sha256
from importlib.resources import files
from math import log
from shlex import quote
from urllib.parse import urlencode

from evaluators.report import charts, counts, drawing, reading, words
from evaluators.report.layers import layer_rows
from evaluators.report.numbers import bits_per_weight, numbers
from evaluators.report.recommending import NOTHING_TO_GAIN, advice
from evaluators.report.rows import finite, flat
from evaluators.report.verdicts import verdict
from evaluators.results import BREAKS_DB, Arm, Estimate, Results, TensorRow, first_break

LARGEST_BYTES = 3_000_000
TEMPLATES = files("evaluators.report") / "templates"
SCRIPTS = ("state", "table", "views", "compare", "charts", "start")  # one script, in this order
LEDGER = (
    ("payload", "compressed weights"),
    ("scales", "scales"),
    ("zero_points", "zero points"),
    ("float_bytes", "left in float"),
    ("graph", "graph and metadata"),
)
GLYPHS = {  # Vega's symbols in a box of 16, so that the legend shows what the charts draw
    "circle": "M8 2.5a5.5 5.5 0 1 0 .01 0z",
    "square": "M3.2 3.2h9.6v9.6H3.2z",
    "triangle-up": "M8 2.6l5.8 10.2H2.2z",
    "diamond": "M8 1.6l5.2 6.4L8 14.4 2.8 8z",
    "triangle-down": "M8 13.4L2.2 3.2h11.6z",
    "cross": "M6.2 2.2h3.6v4h4v3.6h-4v4H6.2v-4h-4V6.2h4z",
    "triangle-right": "M13.4 8L3.2 13.8V2.2z",
    "triangle-left": "M2.6 8l10.2-5.8v11.6z",
}


@dataclass(frozen=True)
class Span:
    """The common scale of a column of small interval plots; places are percent of the width."""

    low: float
    high: float
    logarithmic: bool

    def at(self, value: float) -> float:
        low, high, here = (log(max(v, 1e-9)) if self.logarithmic else v for v in (self.low, self.high, value))
        return round(100 * min(1.0, max(0.0, (here - low) / (high - low))), 2)

    @classmethod
    def over(cls, estimates: Iterable[Estimate | None], zero: float, logarithmic: bool) -> "Span":
        ends = [end for e in estimates if e for end in (e.low, e.high)] + [zero]
        low, high = min(ends), max(ends)
        if logarithmic:
            return cls(max(low, 1e-9) / 1.05, max(high, 1e-9) * 1.05, True)
        room = 0.05 * (high - low) or 0.01
        return cls(low - room, high + room, False)


@dataclass(frozen=True)
class TensorGroup:
    """Constants of one fate: the same plan, stored type, placement and reason."""

    planned: str
    dtype: str
    placement: str
    reason: str
    count: int
    size_bytes: int
    shown: tuple[TensorRow, ...]  # the largest, as many as the page has room for


def page(results: Results) -> str:
    """The whole page. Tables of tensors and layers are shortened, and say so, where the file would pass LARGEST_BYTES."""
    longest = max((len(rows) for arm in results.arms for rows in (arm.tensors, arm.layers)), default=0)
    template, fixed = environment().get_template("report.html.j2"), context(results)
    text = template.render(**fixed, packed=packed(results, fixed, longest))
    while len(text.encode()) > LARGEST_BYTES and longest > 0:
        longest //= 2
        text = template.render(**fixed, packed=packed(results, fixed, longest))
    return text


def packed(results: Results, fixed: dict, most: int) -> str:
    """What is seen of an arm on its own page or beside another: {"pages": {id: HTML}, "numbers": {id: [[value, text] or None, ...]}}.

    As JSON in gzip in base64: arms are much alike, and a page that holds hundreds of them opens as fast as one that holds few.
    """
    template, groups = environment().get_template("arm.html.j2"), numbers(results.arms)
    told = {
        "pages": {arm.id: template.render(**fixed, **shortened(most), arm=arm) for arm in results.arms},
        "numbers": {arm.id: [one.told(arm) for group in groups.values() for one in group] for arm in results.arms},
    }
    return b64encode(compress(json.dumps(finite(told), separators=(",", ":")).encode(), mtime=0)).decode()


def shortened(most: int) -> dict:
    return {"tensor_groups": lambda arm: tensor_groups(arm, most), "layers": lambda arm: layer_rows(arm, most)}


@cache
def environment():
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(loader=PackageLoader("evaluators.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.policies["json.dumps_kwargs"] = {"separators": (",", ":")}  # in the study's order
    forms = {"mb": words.megabytes, "ms": words.milliseconds, "times": words.times, "percent": words.percent, "points": words.points}
    made.filters |= forms | {"p_value": words.p_value, "seconds": words.seconds, "runtime": words.runtime_name, "number": words.number, "reach": words.reach}
    made.filters |= {"interval": lambda estimate, form="number": words.interval(estimate, forms.get(form, words.number))}
    made.filters |= {"target": lambda name: words.TARGET_NAMES.get(name, name), "day": lambda created: created[:16].replace("T", " ")}
    made.filters |= {"db": lambda value: words.NOTHING if value is None else f"{value:.1f}"}
    made.globals |= {"reading": reading, "counts": counts, "flat": flat, "words": words, "verdict": verdict}
    made.globals |= {"first_break": first_break, "breaks_db": BREAKS_DB, "bits_per_weight": bits_per_weight}
    return made


def context(results: Results) -> dict:
    from markupsafe import Markup

    drawn = charts.charts(results)
    early, *scripts = (text.replace("</script", "<\\/script") for text in page_scripts(bool(drawn)))
    latencies = [arm.latency for arm in results.arms if arm.latency]
    head, _, folder = results.command.partition(" --out ")
    return {
        "results": results,
        "metric": reading.metric(results.arms),
        "several_models": len({arm.model for arm in results.arms}) > 1,
        "several_targets": len({arm.target for arm in results.arms}) > 1,
        "link": lambda arm: fragment(view="arm", arm=arm.id),
        "compare_link": lambda arm, other: fragment(view="compare", pair=[arm.id, other.id]),
        "advice": {group: advice(arms) for group, arms in reading.groups(results).items()},
        "nothing_to_gain": NOTHING_TO_GAIN,
        "baseline": {arm.id: reading.baseline_of(arm, results.arms) for arm in results.arms},
        "charts": drawn,
        "axes": [axis for axis in charts.AXES if any(chart.axis == axis for chart in drawn)],
        "data": finite(page_data(results, drawn)),
        "glyphs": [(color, GLYPHS[shape]) for color, shape in drawing.LOOKS],
        "ledger": LEDGER,
        "operator_span": lambda arm: max((ms for row in arm.operator_times for ms in (row.ms, row.float32_ms)), default=0) or 1,
        "folder": folder or "FOLDER",
        "again": lambda arm: f"{head.partition(' --arm ')[0]} --arm {quote(arm.id)} --out again",
        "speedups": Span.over([e for one in latencies for e in (one.speedup, one.noise)], 1.0, logarithmic=True),
        "differences": Span.over([arm.accuracy.difference for arm in results.arms if arm.accuracy], 0.0, logarithmic=False),
        "style": Markup((TEMPLATES / "style.css").read_text(encoding="utf-8")),
        "early": Markup(early),
        "scripts": [Markup(text) for text in scripts],
        "policy": policy([early, *scripts]),
    }


def page_scripts(with_charts: bool) -> list[str]:
    """What runs first, in the head; then Vega where there are charts, and the page's own."""
    read = {name: (TEMPLATES / "page" / f"{name}.js").read_text(encoding="utf-8") for name in ("early", *SCRIPTS)}
    return [read.pop("early"), *[drawing.library()] * with_charts, "".join(read.values())]


def page_data(results: Results, drawn: list[charts.Chart]) -> dict:
    """What the scripts know from the start: what arms and numbers are called, and the charts' points."""
    groups = numbers(results.arms)
    return {
        "arms": {arm.id: arm_data(arm) for arm in results.arms},
        "groups": [{"title": title, "numbers": [(one.title, one.form) for one in group]} for title, group in groups.items()],
        "facts": {arm.id: charts.facts(arm) for arm in results.arms if charts.scored(arm)} if drawn else {},
        "charts": [
            {"specification": drawing.page_specification(chart), "panels": [{"rows": panel.rows, "rival": panel.rival} for panel in chart.panels]}
            for chart in drawn
        ],
    }


def arm_data(arm: Arm) -> dict[str, str]:
    name = reading.label(arm)
    return {"name": name, "full": f"{name} · {arm.model} · {words.TARGET_NAMES.get(arm.target, arm.target)}", "verdict": verdict(arm)}


def fragment(**state: str | list[str]) -> str:
    """A link to a state of the page; `templates/page/state.js` reads it."""
    return f"#{urlencode(state, doseq=True)}"


def policy(scripts: list[str]) -> str:
    """A content security policy: nothing is fetched, and no script runs but these."""
    hashes = " ".join(f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'" for text in scripts)
    return f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def tensor_groups(arm: Arm, most: int) -> list[TensorGroup]:
    """An arm's constants by fate, the heaviest group first; `most` rows are shown, the largest tensors."""
    kept = {id(t) for t in sorted(arm.tensors, key=lambda t: -t.size_bytes)[:most]}
    fates: dict[tuple, list[TensorRow]] = {}
    for tensor in arm.tensors:
        fates.setdefault((tensor.planned, tensor.dtype, tensor.placement, tensor.reason), []).append(tensor)
    found = [TensorGroup(*fate, len(own), sum(t.size_bytes for t in own), tuple(t for t in own if id(t) in kept)) for fate, own in fates.items()]
    return sorted(found, key=lambda group: -group.size_bytes)
