"""From what explains an arm, as pieces of the study, to the rows of a report."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from evaluators.causes import Profile, by_kind, causes
from evaluators.file_causes import BEYOND_PLAN, planned_bytes
from evaluators.layers import SAMPLES
from evaluators.operators import from_json
from evaluators.profiling import ROUNDS, SECONDS
from evaluators.report.reading import loss
from evaluators.results import Arm, Layer, OperatorRow

Facts = Mapping[str, Any]
OPERATORS = (
    "The arm and float32 run side by side in processes of their own with their runtime's profiler, on the study's test samples and threads, in "
    f"{ROUNDS} interleaved rounds of about {SECONDS:g} s; an operator's time is the median. A profiler costs time, so the sums are not the latency."
)
LAYERS = (
    f"Outputs of both files on this machine's CPU for the first {SAMPLES} test samples, layer by layer: 10 log10 of the sum of float32's "
    "squares over that of the differences."
)


def protocol(arms: Iterable[Arm]) -> dict[str, str]:
    """How what explains arms was measured, where it was."""
    arms = list(arms)
    there = {"Operators": (OPERATORS, any(arm.operator_times for arm in arms)), "Layers": (LAYERS, any(arm.layers for arm in arms))}
    return {title: text for title, (text, so) in there.items() if so}


def unexpected(arm: Arm, predicted: Facts | None) -> list[str]:
    """In what an arm is not as it should be: slower than float32, larger than float32 or than its plan, worse in its answers; [] where it is."""
    slower = bool(arm.latency and arm.latency.verdict == "slower") or bool(arm.instructions and arm.instructions.fewer and arm.instructions.fewer < 1)
    larger = bool(arm.size and arm.size.ratio and arm.size.ratio < 1)
    if arm.size and predicted:
        larger |= planned_bytes(arm.size) > BEYOND_PLAN * predicted["bytes"]
    found = {"slower": slower, "larger": larger, "worse": loss(arm) == "loss"}
    return [name for name, so in found.items() if so]


def layers(order: Facts | None, alone: Facts | None, errors: Mapping[str, float]) -> tuple[Layer, ...]:
    """Rows in the order of computation, then those whose place is not known; `order` and `alone` are pieces' facts, None where they were not measured."""
    outputs = dict(order["outputs"]) if order else {}
    single = alone["outputs"] if alone else {}
    names = dict.fromkeys((*outputs, *(order["unseen"] if order else ()), *single))
    return tuple(Layer(name, errors.get(name), outputs.get(name), single.get(name)) for name in names)


def operator_rows(facts: Facts) -> tuple[OperatorRow, ...]:
    """Both arms' operators by kind and library, the longest first."""
    sides = [by_kind(from_json(facts[side])) for side in ("own", "float32")]
    rows = [OperatorRow(*key, *sides[0].get(key, (0, 0.0)), *sides[1].get(key, (0, 0.0))) for key in dict.fromkeys((*sides[0], *sides[1]))]
    return tuple(sorted(rows, key=lambda row: -max(row.ms, row.float32_ms)))


def profile(facts: Facts, arm: Arm, baseline: Arm, versions: Mapping[str, str]) -> Profile:
    return Profile(
        float32=from_json(facts["float32"]),
        own=from_json(facts["own"]),
        **facts["machine"],
        multiply_adds=facts["multiply_adds"]["count"] if same_shapes(arm, baseline) else None,
        flags=frozenset(facts["flags"]),
        machine=facts["architecture"],
        versions=versions,
    )


def same_shapes(arm: Arm, baseline: Arm) -> bool:
    """Whether both multiply the same: weights of the same shapes, in whatever order the files name them."""
    own, other = (Counter(tuple(sorted(t.shape)) for t in one.tensors if len(t.shape) > 1) for one in (arm, baseline))
    return own == other


def rows(arm: Arm, baseline: Arm, pieces: Mapping[str, Facts | None], versions: Mapping[str, str]) -> dict[str, Any]:
    """`layers`, `operator_times` and `causes` of an arm; `pieces` has the facts of its export and of each kind of evidence.

    Causes are given where something was measured for it, and where it is not as it should be.
    """
    export = pieces["export"]
    errors, predicted, operators = export.get("errors", {}), export.get("predicted"), pieces["operators"]
    measured = any(pieces[kind] for kind in ("operators", "layers", "alone"))
    found = {"layers": layers(pieces["layers"], pieces["alone"], errors), "operator_times": operator_rows(operators) if operators else ()}
    if not measured and not unexpected(arm, predicted):
        return found
    times = profile(operators, arm, baseline, versions) if operators else None
    return found | {"causes": tuple(cause.said for cause in causes(arm, baseline, times, errors, found["layers"], predicted))}
