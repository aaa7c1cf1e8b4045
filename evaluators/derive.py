"""From the raw samples in study.sqlite to the rows of a report."""

import os
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from evaluators import estimating, explained, statistics
from evaluators.dataset import labels
from evaluators.metrics import METRICS, SCORED, accuracy, latency, memory, size
from evaluators.report.reading import baseline_of, is_baseline
from evaluators.report.reading import metric as judged_by
from evaluators.report.words import capital
from evaluators.results import Arm, Metric, Results
from evaluators.store import Piece, Store
from evaluators.tasks import Task, open_task

NO_SCORE = "there is no float32 of the same runtime to compare its outputs with, so it has no score"
STAGES = ("runtime", "target", "export", "data", *METRICS, "latency")
EVIDENCE = ("operators", "layers", "alone")


def load_results(folder: str | os.PathLike) -> Results:
    """What the study in `folder` knows by now. InputError where there is no study.sqlite."""
    folder = Path(folder)
    with Store(folder, create=False) as store:
        settings = store.fact("settings", {})
        arms = Reader(store).arms()
        return Results(
            study=store.fact("study", ""),
            created=store.fact("created", ""),
            command=store.fact("command", ""),
            environment=store.fact("environment", {}) | runtime_facts(store, arms),
            protocol=(protocol(settings, threads(store), judged_by(arms)) if settings else {}) | told(store, arms),
            arms=adjusted(arms),
            wall_seconds=store.fact("wall_seconds", 0.0),
        )


def runtime_facts(store: Store, arms: list[Arm]) -> dict[str, str]:
    found = {}
    for arm in arms:
        piece = store.piece(store.links(arm.id).get("runtime"))
        if piece and piece.status == "done":
            found[f"Runtime {arm.runtime}"] = ", ".join(f"{name} {value}" for name, value in piece.facts["versions"].items())
    return found


def told(store: Store, arms: list[Arm]) -> dict[str, str]:
    """How the metrics that arms have were measured, where a metric has words of its own, and how estimates came about."""
    pieces = {kind for arm in store.arms().values() for kind in arm["pieces"]}
    parts = [getattr(METRICS.load(kind), "PROTOCOL", {}) for kind in METRICS if kind in pieces]
    parts += [estimating.PROTOCOL] if any(arm.estimated for arm in arms) else []
    parts.append(explained.protocol(arms))
    return {title: text for part in parts for title, text in part.items()}


class Reader:
    """Reads arms with what they share: the float32 arm of their group, labels, and artifacts that two runtimes load."""

    def __init__(self, store: Store):
        self.store, self.planned = store, store.arms()
        self.links = {name: store.links(name) for name in self.planned}
        self.sharing = Counter(links.get("export") for links in self.links.values())
        self.baselines = {self.group(arm): name for name, arm in reversed(self.planned.items()) if arm["baseline"]}
        self.cache: dict[str, Piece | None] = {}
        self.fitted = store.fact("fitted", {})
        self.least_sqnr = store.fact("settings", {}).get("least_sqnr")

    def group(self, arm: dict[str, Any]) -> tuple:
        return arm["model"], arm["label"], arm["target"]

    def arms(self) -> list[Arm]:
        found = [self.arm(name) for name in self.planned]
        return [replace(arm, **self.explained(arm, baseline_of(arm, found))) for arm in found]

    def explained(self, arm: Arm, baseline: Arm | None) -> dict[str, Any]:
        """What is known of why the arm is as it is."""
        if arm.status != "done" or baseline is None or is_baseline(arm):
            return {}
        pieces = {kind: self.done(arm.id, kind) for kind in ("export", *EVIDENCE)}
        facts = {kind: piece.facts if piece else None for kind, piece in pieces.items()}
        return explained.rows(arm, baseline, facts, self.done(arm.id, "runtime").facts["versions"])

    def piece(self, name: str | None, kind: str) -> Piece | None:
        key = self.links.get(name, {}).get(kind) if name else None
        if key and key not in self.cache:
            self.cache[key] = self.store.piece(key)
        return self.cache.get(key)

    def done(self, name: str | None, kind: str) -> Piece | None:
        piece = self.piece(name, kind)
        return piece if piece and piece.status == "done" else None

    def arm(self, name: str) -> Arm:
        planned, runtime, export = self.planned[name], self.done(name, "runtime"), self.done(name, "export")
        names = {key: planned[key] for key in ("model", "recipe", "recipe_id", "target", "untimed")}
        column = {
            "runtime": planned["runtime"] or (runtime.owner if runtime else planned["label"]),
            "exporter": planned["exporter"] or (runtime.facts["exporter"] if runtime else ""),
        }
        found = Arm(name, **names, **column, **self.status(name), seconds=self.seconds(name))
        if not export:
            return found
        found = replace(found, **self.file_rows(name, export), **self.measurements(name))
        return replace(found, notes=(*found.notes, NO_SCORE)) if self.answers(name) and not found.accuracy else found

    def status(self, name: str) -> dict[str, str]:
        pieces = [self.piece(name, stage) for stage in STAGES]
        bad = next((piece for piece in pieces if piece and piece.status != "done"), None)
        if bad:
            return {"status": bad.status, "cause": bad.cause, "trace": bad.trace}
        return {"status": "done" if all(self.done(name, kind) for kind in self.planned[name]["pieces"]) else "pending"}

    def seconds(self, name: str) -> dict[str, float]:
        """Own time of each piece; an export that several runtimes load is shared equally among their arms."""
        pieces = {kind: self.piece(name, kind) for kind in self.planned[name]["pieces"]}
        found = {kind: piece.seconds for kind, piece in pieces.items() if piece}
        if "export" in found:
            found["export"] /= self.sharing[pieces["export"].key]
        return found

    def file_rows(self, name: str, export: Piece) -> dict[str, Any]:
        artifact = export.facts["artifact"]
        float32 = self.done(self.baselines.get(self.group(self.planned[name])), "export")
        answers = self.answers(name)
        notes = (*artifact["notes"], *(self.task(name).notes(answers.arrays, self.labels(name)) if answers else ()))
        there = self.done(name, "gpu")
        return {
            "size": size.derive(export.facts, float32.facts["artifact"]["ledger"]["file_bytes"] if float32 else None),
            "artifact": f"artifacts/{artifact['path']}",
            "sha256": artifact["sha256"],
            "tensors": size.tensor_rows(export.facts, there.facts["computed"] if there else {}),
            "operators": artifact["contents"]["operators"],
            "notes": (*notes, *self.metric_notes(name), *self.latency_notes(name)),
        }

    def answers(self, name: str | None) -> Piece | None:
        """What holds an arm's answers to the test samples."""
        pieces = (self.done(name, kind) for kind in SCORED) if name else ()
        return next((piece for piece in pieces if piece and self.counted(name, piece)), None)

    def counted(self, name: str, piece: Piece) -> int:
        """How many answers a piece of an arm holds."""
        return next((len(array) for kept, array in piece.arrays.items() if kept.startswith(self.task(name).ANSWERS)), 0)

    def task(self, name: str) -> Task:
        return open_task(self.planned[name]["task"])

    def metric_notes(self, name: str) -> tuple[str, ...]:
        pieces = (self.done(name, kind) for kind in METRICS)
        return tuple(note for piece in pieces if piece for note in piece.facts.get("notes", ()))

    def labels(self, name: str) -> np.ndarray | None:
        """[samples, ...]: what its answers are compared with."""
        found = labels(self.store.folder / "data" / self.links[name]["data"])
        return None if found is None else found[: self.counted(name, self.answers(name))]

    def latency_notes(self, name: str) -> tuple[str, ...]:
        timed = self.done(name, "latency")
        return () if timed is None or timed.facts["steady"] else ("its time was not steady within 2% when the warm-up reached its limit of 10 s",)

    def measurements(self, name: str) -> dict[str, Any]:
        baseline = self.baselines.get(self.group(self.planned[name]))
        timed, fitted = self.done(name, "latency"), self.fitted.get(self.planned[name]["target"])
        answers = self.answers(name)
        found: dict[str, Any] = {}
        for kind in METRICS:
            rows = self.done(name, kind) and getattr(METRICS.load(kind), "rows", None)
            if rows:
                found |= rows(partial(self.done, name), partial(self.done, baseline))
        if fitted and "instructions" in found:
            ledger = self.done(name, "export").facts["artifact"]["ledger"]
            found["estimated"] = estimating.estimate(fitted, found["instructions"], ledger["file_bytes"])
        if answers:
            float32 = self.answers(baseline)
            given = self.task(name), answers.arrays, float32.arrays if float32 else None, self.labels(name), baseline == name
            found["accuracy"], *found["beside"] = accuracy.derive(*given) or [None]
            if found["accuracy"] and self.least_sqnr is not None:
                found["accuracy"] = replace(found["accuracy"], metric=replace(found["accuracy"].metric, least=self.least_sqnr))
            found["beside"] = tuple(found["beside"])
        if timed:
            pair = self.store.piece(timed.facts["pair"])
            found["latency"] = latency.derive(timed.facts, timed.arrays["blocks"], pair and pair.arrays, baseline == name, self.planned[name]["threads"])
        return found


def adjusted(arms: list[Arm]) -> tuple[Arm, ...]:
    """The arms with the p of their scores adjusted over all recipes that are compared with the same float32 arm (Holm)."""
    families: dict[tuple, dict[str, float]] = {}
    for arm in arms:
        if arm.accuracy and arm.accuracy.p is not None:
            families.setdefault((arm.model, arm.exporter, arm.runtime, arm.target), {})[arm.id] = arm.accuracy.p
    together = {name: p for family in families.values() for name, p in statistics.holm(family).items()}
    return tuple(replace(arm, accuracy=replace(arm.accuracy, holm_p=together[arm.id])) if arm.id in together else arm for arm in arms)


def threads(store: Store) -> str:
    """How many threads the arms that are timed have: "1", "1 or 4"."""
    return " or ".join(map(str, sorted({arm["threads"] for arm in store.arms().values() if not arm["untimed"]}))) or "no"


RIGHT = (
    "Wilson interval; difference to float32 on the same runtime by paired bootstrap and exact McNemar test (Holm's adjustment over the recipes of a runtime); "
    "smallest drop that the exact test would have shown with 80% power."
)
PAIRED = (
    "Difference to float32 on the same runtime, sample by sample, by the same bootstrap and by a sign-flip permutation test of the mean difference (Holm's "
    "adjustment over the recipes of a runtime); smallest difference that a paired t-test would have shown with 80% power at the spread of these."
)
NATS = " Differences are those of nats a token, told as the ratio of perplexities less 1."
LIKENESS = (
    "It compares with float32's outputs on the same runtime and target. Nothing is tested: how much is too much is the user's to say (`least_sqnr` in the "
    "study, `compresskit check --worst-score`)."
)


def scoring(metric: Metric) -> str:
    """How a score and its difference to float32 were estimated."""
    if metric.kind == "right":
        return RIGHT
    better = f"{'higher' if metric.higher_is_better else 'lower'} is better"
    mean = "the exponential of the mean nats a token" if metric.kind == "perplexity" else f"a mean over {metric.noun}s"
    drawn = f"Bootstrap interval over {metric.noun}s, {statistics.SCORE_RESAMPLES:,} resamples, widened for few of them"
    rest = {"mean": PAIRED, "perplexity": PAIRED + NATS, "likeness": LIKENESS}[metric.kind]
    asked = "" if metric.least is None else f" An arm counts as without loss where its whole interval reaches {metric.least:g} {metric.unit}."
    return f"{capital(metric.title)} is {mean}; {better}. {drawn}. {rest}{asked}"


def protocol(settings: dict[str, Any], threads: str, metric: Metric) -> dict[str, str]:
    """How it was measured, in words with their numbers."""
    timing = settings["latency"]
    processes = timing.get("processes", 1)  # of a study that was measured before there was a choice: one
    again = f" All of it in {processes} processes of each arm, one after the other, which load in a random order and its reverse." if processes > 1 else ""
    over = "processes" if again else "blocks"
    ratios = "each process's median ratio of paired block medians" if again else "the paired ratios of block medians"
    return {
        "Latency": f"A fresh process per arm, batch 1, {threads} thread(s), pinned. All arms of a runtime are loaded and warmed up (at least 10 runs and "
        f"{timing['warmup_seconds']:g} s, until the median of 5 runs stays within 2%), then timed in {timing['blocks']} blocks each of at least "
        f"{timing['runs']} runs and {timing['seconds']:g} s, one arm at a time in a random order and its reverse, nothing else at work. Inputs are the same "
        f"{latency.INPUTS} test samples for every arm; each block starts with one untimed run; Python's garbage collection is off. The time is the geometric "
        f"mean of the {over}' medians.{again}",
        "Speedup": f"Geometric mean of {ratios}, float32 on the same runtime over the arm, with a 95% interval from "
        f"{statistics.RESAMPLES:,} bootstrap resamples of {over}, widened for few of them (Hesterberg 2015). The noise floor is the same "
        "ratio for float32 against itself. Faster or slower is said where the interval excludes 1 and the effect is above 1% and above the noise floor.",
        "Percentiles": "Order statistics with binomial intervals, only where the count carries them (LoadGen's rule: 44 runs for the 90th, 459 for the 99th).",
        "Memory": f"Peak resident memory (VmHWM) of a fresh process that loads the artifact and runs {memory.RUNS} samples, less what it was when only the "
        "runtime was imported. Compiled arms find their kernels in the compiler's cache, filled by the accuracy run.",
        capital(metric.title): f"The first {settings['samples']} test samples in the same order for every arm, one a run. {scoring(metric)}",
        "Size": "The file as written; deflated at level 9; every tensor read back from the file.",
    }
