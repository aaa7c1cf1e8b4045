"""Why an arm of a study is as it is: its operators timed beside float32's, and what follows from that and from its file."""

import os
import platform
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compress.errors import InputError
from evaluators.causes import Cause, Profile, causes
from evaluators.derive import load_results
from evaluators.environment import cpu_flags, cpu_model
from evaluators.exporting import ARTIFACTS
from evaluators.operators import OperatorTime, from_json
from evaluators.profiling import Unprofiled, ceilings, profiles
from evaluators.report.reading import baseline_of, is_baseline
from evaluators.report.verdicts import verdict
from evaluators.results import Arm, Results
from evaluators.store import Claim, Piece, Store, identity

TARGET = "cpu"
WORST = 5  # weights that are named


@dataclass(frozen=True)
class Explanation:
    """What is known of an arm. Operators are empty where nothing was profiled, and `unprofiled` says why."""

    arm: str
    baseline: str
    verdict: str
    why: tuple[Cause, ...] = ()
    float32: tuple[OperatorTime, ...] = ()
    own: tuple[OperatorTime, ...] = ()
    measured_ms: tuple[float, float] | None = None  # float32's and the arm's latency in the study, without a profiler
    machine: dict[str, float] = field(default_factory=dict)  # a second: bytes copied (read and written) and float32 multiply-adds
    multiply_adds: int | None = None  # of one run
    uncounted: str = ""  # why they are not known
    unprofiled: str = ""
    errors: dict[str, float] = field(default_factory=dict)  # dB: the least exact weights, signal over rounding error


def explain(folder: str | os.PathLike, name: str, tell: Callable[[str], None] = lambda text: None) -> Explanation:
    """Explains one arm of the study in `folder`; `name` is its id, or a part of it that no other arm has. `tell` hears of each stage.

    Takes some seconds: the arm and float32 of the same runtime run side by side with their runtime's profiler, on the study's own test samples.
    InputError where there is no such arm, or nothing to compare it with.
    """
    results = load_results(folder)
    arm = named(results, name)
    baseline = baseline_of(arm, results.arms)
    if arm.status != "done":
        return Explanation(arm.id, baseline.id if baseline else "", verdict(arm))
    if baseline is None or is_baseline(arm):
        raise InputError(f"{arm.id}: nothing to compare it with, {'float32 did not run there' if baseline is None else 'it is float32 itself'}")
    with Claim(Path(folder)), Store(Path(folder), create=False) as store:
        return explained(store, results, arm, baseline, tell)


def named(results: Results, name: str) -> Arm:
    found = [arm for arm in results.arms if arm.id == name] or [arm for arm in results.arms if name in arm.id]
    if len(found) == 1:
        return found[0]
    raise InputError(f"{name!r} is {'part of several arms' if found else 'no arm'}: {', '.join(arm.id for arm in found or results.arms)}")


def explained(store: Store, results: Results, arm: Arm, baseline: Arm, tell: Callable[[str], None]) -> Explanation:
    errors = piece(store, arm, "export").facts.get("errors", {})
    head = {"arm": arm.id, "baseline": baseline.id, "verdict": verdict(arm), "errors": dict(sorted(errors.items(), key=lambda item: item[1])[:WORST])}
    try:
        found = measured(store, results, arm, baseline, tell)
    except Unprofiled as error:
        return Explanation(**head, why=tuple(causes(arm, baseline, None, errors)), unprofiled=str(error))
    count = found["multiply_adds"] if same_shapes(arm, baseline) else None
    profile = Profile(
        float32=from_json(found["float32"]),
        own=from_json(found["own"]),
        **found["machine"],
        multiply_adds=count,
        flags=frozenset(cpu_flags()),
        machine=platform.machine(),
        versions=piece(store, arm, "runtime").facts["versions"],
    )
    return Explanation(
        **head,
        why=tuple(causes(arm, baseline, profile, errors)),
        float32=tuple(profile.float32),
        own=tuple(profile.own),
        measured_ms=(baseline.latency.median_ms.value, arm.latency.median_ms.value),
        machine=found["machine"],
        multiply_adds=count,
        uncounted=found["uncounted"] or ("" if count else "the arm's weights have other shapes than float32's"),
    )


def piece(store: Store, arm: Arm, kind: str) -> Piece:
    return store.piece(store.links(arm.id)[kind])


def same_shapes(arm: Arm, baseline: Arm) -> bool:
    """Whether both multiply the same: weights of the same shapes, in whatever order the files name them."""
    own, other = (Counter(tuple(sorted(t.shape)) for t in one.tensors if len(t.shape) > 1) for one in (arm, baseline))
    return own == other


def measured(store: Store, results: Results, arm: Arm, baseline: Arm, tell: Callable[[str], None]) -> dict[str, Any]:
    """Measures now, and keeps what it finds as a piece of the study. Unprofiled says why nothing can be measured."""
    if arm.target != TARGET:
        raise Unprofiled(f"operators are timed on target {TARGET}, and this arm ran on {arm.target}")
    if results.environment.get("CPU") != cpu_model():
        raise Unprofiled(f"the study was measured on another CPU: {results.environment.get('CPU')}")
    threads, limit = store.arms()[arm.id]["threads"], store.fact("settings")["limit_seconds"]
    sides = {"float32": baseline, "own": arm}
    exports = {side: piece(store, one, "export").facts["artifact"] for side, one in sides.items()}
    data, versions = store.links(arm.id)["data"], piece(store, arm, "runtime").facts["versions"]
    given = {side: (facts, str(store.folder / ARTIFACTS), arm.runtime, threads, str(store.folder / "data" / data)) for side, facts in exports.items()}
    found = profiles(given, {side: one.latency.median_ms.value for side, one in sides.items()}, threads, limit, tell)
    found |= ceilings(given["float32"], threads, limit, tell)
    key = identity("operators", [facts["sha256"] for facts in exports.values()], arm.runtime, versions, data, threads, cpu_model())
    store.keep(Piece(key, "operators", arm.id, "done", facts=found))
    store.link(arm.id, "operators", key)
    return found
