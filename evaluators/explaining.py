"""Why an arm of a study is as it is: what explains it is measured, and a report of it made."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from compress.errors import InputError
from evaluators import evidence
from evaluators.derive import load_results
from evaluators.explained import same_shapes, unexpected
from evaluators.naming import fits
from evaluators.operators import OperatorTime, from_json
from evaluators.profiling import Unmeasured
from evaluators.report import words
from evaluators.report.reading import baseline_of, is_baseline
from evaluators.report.verdicts import verdict
from evaluators.results import Arm, Layer, Results
from evaluators.store import Claim, Store


@dataclass(frozen=True)
class Explanation:
    """What is known of an arm. What was not measured is empty, and `unmeasured` says why, by what it would have been."""

    arm: str
    baseline: str
    verdict: str
    why: tuple[str, ...] = ()
    float32: tuple[OperatorTime, ...] = ()
    own: tuple[OperatorTime, ...] = ()
    measured_ms: tuple[float, float] | None = None  # float32's and the arm's latency in the study, without a profiler
    machine: dict[str, float] = field(default_factory=dict)  # a second: bytes copied (read and written) and float32 multiply-adds
    multiply_adds: int | None = None  # of one run
    uncounted: str = ""  # why they are not known
    layers: tuple[Layer, ...] = ()  # in the order of computation
    alone: str = ""  # "network" or "file": with what the model's output was measured where one layer alone is compressed
    unmeasured: dict[str, str] = field(default_factory=dict)


def explain(folder: str | os.PathLike, name: str, tell: Callable[[str], None] = lambda text: None, seconds: float = evidence.ALONE_SECONDS) -> Explanation:
    """Explains one arm of the study in `folder`; `name` is its id, or a part of it that no other arm has. `tell` hears of each stage.

    Takes some seconds, and up to `seconds` more to compress one layer at a time; a later call goes on with the layers that are left.
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
        found, missing = {}, {}
        measures = {"operators": evidence.operators, "layers": evidence.layers, "alone": partial(evidence.alone, seconds=seconds)}
        for kind, measure in measures.items():
            try:
                found[kind] = measure(evidence.Subject(store, arm, baseline, tell))
            except Unmeasured as error:
                missing[kind] = str(error)
    return explanation(named(load_results(folder), arm.id), baseline, found, missing)


def named(results: Results, name: str) -> Arm:
    found = [arm for arm in results.arms if arm.id == name] or [arm for arm in results.arms if fits(arm.id, name)]
    if len(found) == 1:
        return found[0]
    raise InputError(f"{name!r} is {'part of several arms' if found else 'no arm'}: {', '.join(arm.id for arm in found or results.arms)}")


def explanation(arm: Arm, baseline: Arm, found: dict[str, Any], missing: dict[str, str]) -> Explanation:
    times: dict[str, Any] = {}
    if "operators" in found:
        facts, same = found["operators"], same_shapes(arm, baseline)
        times = {"float32": tuple(from_json(facts["float32"])), "own": tuple(from_json(facts["own"])), "machine": facts["machine"]}
        times |= {"measured_ms": (baseline.latency.median_ms.value, arm.latency.median_ms.value)}
        times |= {"multiply_adds": facts["multiply_adds"]["count"] if same else None}
        times |= {"uncounted": facts["multiply_adds"]["uncounted"] if same else "the arm's weights have other shapes than float32's"}
    for kind, what in (("layers", "unseen"), ("alone", "left")):
        if names := found.get(kind, {}).get(what):
            missing[kind] = UNDONE[kind].format(layers=words.count(len(names), "layer"), first=names[0])
    missing |= {f"{layer} alone": cause for layer, cause in found.get("alone", {}).get("failed", {}).items()}
    way = found.get("alone", {}).get("way", "")
    return Explanation(arm.id, baseline.id, verdict(arm), arm.causes, **times, layers=arm.layers, alone=way, unmeasured=missing)


COMPILED = ("torch-compiled",)  # files are compiled anew to time their operators, which takes a minute: only when somebody asks
UNDONE = {
    "layers": "the output of {layers} is not to be seen in both files, as that of {first}",
    "alone": "no time was left for {layers}, the next is {first}; the same command goes on with them, --seconds gives it more",
}


def explain_unexpected(store: Store, results: Results, begin: Callable[[str], None]) -> Iterator[tuple[str, list[str]]]:
    """Measures what explains the arms that are slower, larger or worse than they should be; the others are linked to what is known of them.

    Operators of those that are slower on this CPU, errors by layer of those that are worse: some seconds for each. `begin` hears which arm is measured now;
    what comes back is each of them with what could not be measured, and why.
    """
    for arm in results.arms:
        baseline = baseline_of(arm, results.arms)
        if arm.status != "done" or baseline is None or is_baseline(arm):
            continue
        subject = evidence.Subject(store, arm, baseline)
        evidence.linked(subject)
        ways = unexpected(arm, subject.piece(arm, "export").facts.get("predicted"))
        wanted = [kind for kind, way in (("operators", "slower"), ("layers", "worse")) if way in ways and not subject.settled(kind)]
        if "operators" in wanted and (arm.target != evidence.HOME or arm.runtime in COMPILED):
            wanted.remove("operators")
        if wanted:
            begin(arm.id)
            yield arm.id, [failure for kind in wanted if (failure := failed(kind, subject))]


def failed(kind: str, subject: evidence.Subject) -> str:
    """Measures one kind of evidence; why that was not possible, "" where it was."""
    try:
        getattr(evidence, kind)(subject)
    except Unmeasured as error:
        return f"its {kind} were not measured: {error}"
    return ""
