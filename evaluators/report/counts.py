"""Instructions of emulated machines in words, and the table that puts them beside milliseconds."""

from dataclasses import dataclass

from evaluators.report import words
from evaluators.report.reading import grouped, is_baseline, label
from evaluators.results import Arm, Instructions, Results

CLASSES = {  # what the classes are called
    "dot": "dot product",
    "mmla": "matrix multiply",
    "int_mla": "integer multiply-add",
    "fmla": "float multiply-add",
    "ldst": "loads and stores",
    "branch": "branches",
}


@dataclass(frozen=True)
class Beside:
    """Arms that differ only in where they ran; `rows` are the name of an arm without its target, and its arms in the order of `targets`."""

    targets: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Arm | None, ...]], ...]


def beside(results: Results) -> Beside | None:
    """Every model, recipe, exporter and runtime on every target; None where nothing was emulated."""
    if not any(arm.instructions for arm in results.arms):
        return None
    targets = tuple(dict.fromkeys(arm.target for arm in results.arms))
    several = len({arm.model for arm in results.arms}) > 1
    rows = []
    for (model, *_), arms in grouped(results.arms, lambda arm: (arm.model, arm.recipe, arm.exporter, arm.runtime)).items():
        own = {arm.target: arm for arm in arms}
        rows.append((f"{model}: {label(arms[0])}" if several else label(arms[0]), tuple(own.get(target) for target in targets)))
    return Beside(targets, tuple(rows))


def cost(arm: Arm | None) -> str:
    """ "0.0455 ms", "0.239 M instructions", the status of an arm without a result."""
    if arm is None or arm.status != "done":
        return arm.status if arm else words.NOTHING
    return words.milliseconds(arm.latency.median_ms.value) if arm.latency else words.instructions(arm.instructions.total) if arm.instructions else words.NOTHING


def gain(arm: Arm | None) -> str:
    """ "1.80× fewer, SDOT", "0.60× as fast", "baseline, FMLA"; "" where there is nothing to compare."""
    if arm is None or arm.status != "done":
        return ""
    if arm.latency:
        return "baseline" if is_baseline(arm) else f"{words.times(arm.latency.speedup.value)} as fast" if arm.latency.speedup else ""
    return ", ".join(filter(None, (fewer(arm), arm.instructions.kernels))) if arm.instructions else ""


def fewer(arm: Arm) -> str:
    """How this arm's instructions compare with float32's on the same runtime and target."""
    if is_baseline(arm):
        return "baseline"
    ratio = arm.instructions.fewer
    if ratio is None:
        return ""
    if abs(ratio - 1) < 0.005:
        return "as many"
    return f"{words.times(ratio)} fewer" if ratio > 1 else f"{words.times(1 / ratio)} as many"


def agreement(arm: Arm | None) -> str:
    """How its outputs compare with those of the same file on this machine."""
    found = arm.agreement if arm else None
    if found is None:
        return ""
    if found.bit_equal:
        return "outputs bit-equal to this CPU's"
    return f"outputs differ by {found.max_error:.1e} at most, of {words.number(found.largest)}"


def estimated(arm: Arm | None) -> str:
    """ "about 12.3 ms ± 1.5 (calibrated on ssh:pi@board)"; "" where no device has been measured."""
    found = arm.estimated if arm else None
    return f"about {words.milliseconds(found.ms)} ± {words.number(found.error_ms, 2)} (calibrated on {found.device})" if found else ""


def in_short(arm: Arm | None) -> str:
    return "; ".join(filter(None, (cost(arm), gain(arm), estimated(arm), agreement(arm))))


def classes(found: Instructions) -> list[tuple[str, int]]:
    """Names and counts of the classes that occur."""
    return [(name, getattr(found, key)) for key, name in CLASSES.items() if getattr(found, key)]


def reasons(results: Results) -> list[str]:
    """Why targets have no latency, one sentence for each reason."""
    groups = grouped((arm for arm in results.arms if arm.untimed), lambda arm: arm.untimed)
    return [f"No latency on {words.listed(list(dict.fromkeys(arm.target for arm in arms)))}: {reason}." for reason, arms in groups.items()]
