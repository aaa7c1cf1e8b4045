"""Numbers as people read them: always with a unit, an interval where there is one, and a dash where there is nothing."""

from math import floor, isfinite, log10

from evaluators.results import Estimate, Metric

NOTHING = "–"
MINUS = "\u2212"
RUNTIME_NAMES = {"litert": "LiteRT", "onnxruntime": "ONNX Runtime", "torch": "PyTorch eager", "torch-compiled": "PyTorch compiled", "executorch": "ExecuTorch"}
TARGET_NAMES = {"cpu": "this CPU"}


def runtime_name(runtime: str) -> str:
    return RUNTIME_NAMES.get(runtime, runtime)


def number(value: float | None, digits: int = 3) -> str:
    """`value` to `digits` significant digits, never in exponent form: 0.0123, 1.23, 123, 1,234."""
    if value is None or not isfinite(value):
        return NOTHING
    places = 0 if value == 0 else max(0, digits - 1 - floor(log10(abs(value))))
    return f"{value:,.{places}f}".replace("-", MINUS)


def megabytes(size: float | None) -> str:
    """Bytes as MB (1,000,000 bytes), or kB under 0.1 MB."""
    if size is None or not isfinite(size):
        return NOTHING
    if 0 < abs(size) < 100_000:
        return f"{number(size / 1e3)} kB"
    return f"{number(size / 1e6)} MB"


def milliseconds(value: float | None) -> str:
    return NOTHING if value is None or not isfinite(value) else f"{number(value)} ms"


def instructions(count: int) -> str:
    """Millions of instructions."""
    return f"{number(count / 1e6)} M instructions"


def times(value: float | None) -> str:
    return NOTHING if value is None or not isfinite(value) else f"{value:.2f}×"


def percent(share: float | None, places: int = 1) -> str:
    return NOTHING if share is None or not isfinite(share) else f"{100 * share:.{places}f}%"


def points(share: float | None, signed: bool = True) -> str:
    """A difference of two shares in percentage points."""
    if share is None or not isfinite(share):
        return NOTHING
    text = f"{100 * share:{'+' if signed else ''}.1f}".replace("-", MINUS)
    return text.replace("+0.0", "0.0").replace(f"{MINUS}0.0", "0.0") if abs(share) < 0.0005 else text


def in_unit(value: float | None, metric: Metric, unit: bool = True) -> str:
    """A score: "87.8%", "12.34", "34.2 dB"."""
    if metric.unit == "%":
        return percent(value) if unit else percent(value).removesuffix("%")
    return number(value, 4) + (f" {metric.unit}" if unit and metric.unit else "")


def change(value: float | None, metric: Metric, signed: bool = True, unit: bool = True) -> str:
    """A difference of two scores: "−2.2 points" of shares, "+2.04%" of perplexities, "−0.310 dB"."""
    if value is None or not isfinite(value):
        return NOTHING
    if metric.unit == "%":
        return points(value, signed) + " points" * unit
    if metric.kind == "perplexity":
        text = f"{100 * value:{'+' if signed else ''}.2f}".replace("-", MINUS)
        return text + "%" * unit
    text = number(value) if value < 0 or not signed else f"+{number(value)}"
    return text + (f" {metric.unit}" if unit and metric.unit else "")


def score_interval(estimate: Estimate | None, metric: Metric) -> str:
    return interval(estimate, lambda end: in_unit(end, metric, unit=False))


def change_interval(estimate: Estimate | None, metric: Metric, signed: bool = True) -> str:
    return interval(estimate, lambda end: change(end, metric, signed, unit=False))


def worsening(metric: Metric) -> str:
    """What a change for the worse is."""
    return "drop" if metric.higher_is_better else "rise"


def capital(text: str) -> str:
    """With a capital in front; the rest as it is: "SQNR"."""
    return text[:1].upper() + text[1:]


def factor(ratio: float) -> str:
    """A ratio inside a sentence: "3.5 times"."""
    return f"{ratio:.2f}".rstrip("0").rstrip(".") + " times"


def seconds(value: float) -> str:
    if value < 120:
        return f"{number(value)} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def p_value(p: float | None) -> str:
    if p is None or not isfinite(p):
        return NOTHING
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def interval(estimate: Estimate | None, form=number) -> str:
    """The 95% interval alone, "[1.9, 2.1]", each end in `form` without its unit."""
    if estimate is None:
        return ""
    low, high = (form(end).removesuffix("×").removesuffix("%").removesuffix(" ms") for end in (estimate.low, estimate.high))
    return f"[{low}, {high}]"


def reach(estimate: Estimate) -> str:
    """The interval of a ratio without its middle: "0.99 to 1.01×"."""
    return f"{estimate.low:.2f} to {estimate.high:.2f}×"


def count(n: int, noun: str, plural: str = "") -> str:
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"


def listed(items: list[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else "none"


def first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")
