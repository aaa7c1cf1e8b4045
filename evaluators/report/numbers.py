"""Every number of an arm with its name and form: what two arms are compared by."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, reduce
from math import isfinite, prod
from typing import Any

from evaluators.report import words
from evaluators.report.reading import metric
from evaluators.results import Arm, Estimate, Metric

FORMS = {  # how a value is written; the page writes differences in the same forms
    "bytes": words.megabytes,
    "ms": words.milliseconds,
    "times": words.times,
    "percent": words.percent,
    "count": lambda value: f"{value:,}",
    "seconds": words.seconds,
    "number": words.number,
    "p": words.p_value,
}


@dataclass(frozen=True)
class Number:
    path: str  # where an Arm has it: "latency.median_ms", "seconds.export"
    title: str
    form: str  # of FORMS
    write: Callable[[float], str] | None = None  # instead of its form's
    ends: Callable[[Estimate], str] | None = None

    def read(self, arm: Arm) -> float | Estimate | None:
        found = reduce(step, self.path.split(".", 1) if self.path.startswith(BY_NAME) else self.path.split("."), arm)
        value = found.value if isinstance(found, Estimate) else found
        return found if value is not None and isfinite(value) else None

    def told(self, arm: Arm) -> tuple[float, str] | None:
        """Its value and its text; None where the arm has no such number."""
        found = self.read(arm)
        return None if found is None else (found.value if isinstance(found, Estimate) else found, self.text(found))

    def text(self, value: float | Estimate) -> str:
        form = self.write or FORMS[self.form]
        if isinstance(value, Estimate):
            return f"{form(value.value)} {self.ends(value) if self.ends else words.interval(value, form)}"
        return form(value)


BY_NAME = ("seconds.", "operators.", "placements.")  # dicts whose keys may have dots


def step(thing: Any, name: str) -> Any:
    if isinstance(thing, tuple):
        return thing[int(name)] if int(name) < len(thing) else None
    return thing.get(name) if isinstance(thing, dict) else getattr(thing, name, None)


FIXED = {
    "File": (
        Number("size.file_bytes", "Size", "bytes"),
        Number("size.ratio", "Smaller than float32", "times"),
        Number("size.deflated_bytes", "Deflated", "bytes"),
        Number("size.payload", "Compressed weights", "bytes"),
        Number("size.scales", "Scales", "bytes"),
        Number("size.zero_points", "Zero points", "bytes"),
        Number("size.float_bytes", "Left in float", "bytes"),
        Number("size.graph", "Graph and metadata", "bytes"),
    ),
    "Latency": (
        Number("latency.median_ms", "Steady, median", "ms"),
        Number("latency.percentiles_ms.p50", "50th percentile", "ms"),
        Number("latency.percentiles_ms.p90", "90th percentile", "ms"),
        Number("latency.percentiles_ms.p95", "95th percentile", "ms"),
        Number("latency.percentiles_ms.p99", "99th percentile", "ms"),
        Number("latency.speedup", "As fast as float32", "times"),
        Number("latency.noise", "Noise floor", "times"),
        Number("latency.first_ms", "First run", "ms"),
        Number("latency.load_ms", "Load", "ms"),
        Number("latency.count", "Timed runs", "count"),
        Number("latency.processes", "Processes", "count"),
        Number("latency.warmup_runs", "Warm-up runs", "count"),
        Number("latency.threads", "Threads", "count"),
    ),
    "Instructions of one inference": (
        Number("instructions.total", "All", "count"),
        Number("instructions.fewer", "Fewer than float32", "times"),
        Number("instructions.dot", "Dot product", "count"),
        Number("instructions.mmla", "Matrix multiply", "count"),
        Number("instructions.int_mla", "Integer multiply-add", "count"),
        Number("instructions.fmla", "Float multiply-add", "count"),
        Number("instructions.ldst", "Loads and stores", "count"),
        Number("instructions.branch", "Branches", "count"),
        Number("instructions.spread", "Spread between runs", "percent"),
        Number("instructions.runs", "Runs", "count"),
        Number("estimated.ms", "Estimated latency", "ms"),
        Number("estimated.error_ms", "Error of the estimate", "ms"),
        Number("agreement.max_error", "Largest difference to this CPU’s outputs", "number"),
        Number("agreement.largest", "Largest output", "number"),
        Number("agreement.elements", "Output elements compared", "count"),
        Number("agreement.samples", "Samples compared", "count"),
    ),
    "Memory": (
        Number("memory.model_bytes", "Model", "bytes"),
        Number("memory.peak_bytes", "Peak of the process", "bytes"),
        Number("memory.baseline_bytes", "Bare runtime", "bytes"),
        Number("gpu.allocated_bytes", "PyTorch’s allocator on the GPU", "bytes"),
        Number("gpu.reserved_bytes", "Reserved by it", "bytes"),
        Number("gpu.process_bytes", "Process on the GPU", "bytes"),
        Number("gpu.context_bytes", "Before the file was loaded", "bytes"),
        Number("gpu.watts", "Power of the card, W", "number"),
        Number("gpu.millijoules", "Energy of one inference, mJ", "number"),
    ),
}
PLACED = {"native": "Native", "decoded": "Decoded", "simulated": "Simulated", "float": "In float"}


def bits_per_weight(arm: Arm) -> float | None:
    """Bits that the file spends on each constant, scales and zero points included; None where its tensors are not known."""
    count = sum(prod(tensor.shape) for tensor in arm.tensors)
    return 8 * sum(tensor.size_bytes for tensor in arm.tensors) / count if count else None


def of_score(about: Metric, path: str) -> tuple[Number, ...]:
    """The numbers of a score; those of shares are compared in points."""
    shares, title = about.unit == "%", words.capital(about.title)
    reached = {"write": partial(words.in_unit, metric=about), "ends": partial(words.score_interval, metric=about)}
    changed = {"write": partial(words.change, metric=about), "ends": partial(words.change_interval, metric=about)}
    against = "percent" if shares or about.kind == "perplexity" else "number"
    return (
        Number(f"{path}.value", title, "percent" if shares else "number", **reached),
        Number(f"{path}.before", f"{title} of float32", "percent" if shares else "number", **reached),
        Number(f"{path}.difference", f"{title} against float32", against, **changed),
        Number(f"{path}.p", f"{title}: p of the paired test", "p"),
        Number(f"{path}.holm_p", f"{title}: p over all recipes (Holm)", "p"),
        Number(f"{path}.correct", "Correct", "count"),
        Number(f"{path}.count", "Samples", "count"),
        Number(f"{path}.worse", "Now worse", "count"),
        Number(f"{path}.better", "Now better", "count"),
        Number(f"{path}.flipped", "Flipped", "percent"),
        Number(f"{path}.worst", f"Worst {about.noun}", "percent" if shares else "number", write=reached["write"]),
        Number(f"{path}.smallest", f"Smallest {words.worsening(about)} seen with 80% power", against, write=partial(words.change, metric=about, signed=False)),
    )


def numbers(arms: tuple[Arm, ...]) -> dict[str, tuple[Number, ...]]:
    """Groups of numbers that at least one of the arms has."""
    named = {
        "Weights": tuple(Number(f"placements.{name}", title, "bytes") for name, title in PLACED.items()),
        "Operators": tuple(Number(f"operators.{name}", name, "count") for name in dict.fromkeys(name for arm in arms for name in arm.operators)),
        "Time spent": tuple(Number(f"seconds.{name}", name.capitalize(), "seconds") for name in dict.fromkeys(name for arm in arms for name in arm.seconds)),
    }
    beside = max((arm.beside for arm in arms), key=len, default=())
    scores = {words.capital(metric(arms).title): of_score(metric(arms), "accuracy")}
    scores |= {words.capital(score.metric.title): of_score(score.metric, f"beside.{i}") for i, score in enumerate(beside)}
    present = {title: tuple(one for one in group if any(one.read(arm) is not None for arm in arms)) for title, group in (FIXED | scores | named).items()}
    return {title: group for title, group in present.items() if group}
