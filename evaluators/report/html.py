"""report.html: one file that opens offline and asks nobody for anything."""

import re
from base64 import b64encode
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from math import log

from evaluators.report import charts, counts, reading, words
from evaluators.report.rows import flat
from evaluators.results import Arm, Estimate, Results, TensorRow

LARGEST_BYTES = 3_000_000
TEMPLATES = files("evaluators.report") / "templates"
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
    """The whole page. Tensor tables are shortened, and say so, where the file would pass LARGEST_BYTES."""
    longest = max((len(arm.tensors) for arm in results.arms), default=0)
    template, fixed = environment().get_template("report.html.j2"), context(results)
    text = template.render(**fixed, tensor_groups=lambda arm: tensor_groups(arm, longest))
    while len(text.encode()) > LARGEST_BYTES and longest > 0:
        longest //= 2
        text = template.render(**fixed, tensor_groups=lambda arm, most=longest: tensor_groups(arm, most))
    return text


def environment():
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(loader=PackageLoader("evaluators.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    forms = {"mb": words.megabytes, "ms": words.milliseconds, "times": words.times, "percent": words.percent, "points": words.points}
    made.filters |= forms | {"p_value": words.p_value, "seconds": words.seconds, "runtime": words.runtime_name, "number": words.number, "reach": words.reach}
    made.filters |= {"interval": lambda estimate, form="number": words.interval(estimate, forms.get(form, words.number))}
    made.filters |= {"target": lambda name: words.TARGET_NAMES.get(name, name), "day": lambda created: created[:16].replace("T", " ")}
    made.globals |= {"reading": reading, "counts": counts, "flat": flat, "words": words}
    return made


def context(results: Results) -> dict:
    from markupsafe import Markup

    drawn = charts.charts(results)
    scripts = [charts.library()] * bool(drawn) + [(TEMPLATES / "page.js").read_text(encoding="utf-8")]
    scripts = [text.replace("</script", "<\\/script") for text in scripts]
    latencies = [arm.latency for arm in results.arms if arm.latency]
    return {
        "results": results,
        "anchors": anchors(results.arms),
        "baseline": {arm.id: reading.baseline_of(arm, results.arms) for arm in results.arms},
        "charts": drawn,
        "specifications": [charts.page_specification(chart, panel) for chart in drawn for panel in chart.panels],
        "glyphs": [(color, GLYPHS[shape]) for color, shape in charts.LOOKS],
        "ledger": LEDGER,
        "speedups": Span.over([e for one in latencies for e in (one.speedup, one.noise)], 1.0, logarithmic=True),
        "differences": Span.over([arm.accuracy.difference for arm in results.arms if arm.accuracy], 0.0, logarithmic=False),
        "style": Markup((TEMPLATES / "style.css").read_text(encoding="utf-8")),
        "scripts": [Markup(text) for text in scripts],
        "policy": policy(scripts),
    }


def policy(scripts: list[str]) -> str:
    """A content security policy: nothing is fetched, and no script runs but these."""
    hashes = " ".join(f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'" for text in scripts)
    return f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def anchors(arms: Iterable[Arm]) -> dict[str, str]:
    """An HTML id for each arm's id, unique and stable from one report to the next."""
    found: dict[str, str] = {}
    for arm in arms:
        name = "arm-" + (re.sub(r"[^A-Za-z0-9_-]+", "-", arm.id).strip("-") or "x")
        taken = set(found.values())
        found[arm.id] = next(n for n in (name, *(f"{name}-{i}" for i in range(2, len(found) + 3))) if n not in taken)
    return found


def tensor_groups(arm: Arm, most: int) -> list[TensorGroup]:
    """An arm's constants by fate, the heaviest group first; `most` rows are shown, the largest tensors."""
    kept = {id(t) for t in sorted(arm.tensors, key=lambda t: -t.size_bytes)[:most]}
    fates: dict[tuple, list[TensorRow]] = {}
    for tensor in arm.tensors:
        fates.setdefault((tensor.planned, tensor.dtype, tensor.placement, tensor.reason), []).append(tensor)
    found = [TensorGroup(*fate, len(own), sum(t.size_bytes for t in own), tuple(t for t in own if id(t) in kept)) for fate, own in fates.items()]
    return sorted(found, key=lambda group: -group.size_bytes)
