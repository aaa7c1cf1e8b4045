"""Fine-tunings side by side: each run in a process of its own, compared sample by sample, told as one report."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from compress.finetune.config import Finetuning
from evaluators.progress import Progress, automatic
from evaluators.results import Estimate
from evaluators.sources import check, fingerprint
from evaluators.statistics import accuracy_difference, holm, mcnemar, mean, sign_flips, smallest_difference, smallest_drop, wilson
from evaluators.store import Claim
from evaluators.worker import Worker, tell


@dataclass(frozen=True)
class Comparison:
    """A run or a merge against another on the same samples. `worse` and `better` count samples; p is Holm-adjusted over the runs of the document.

    smallest  the smallest drop in accuracy, or rise of a loss, that this sample would have shown; None where nothing differs
    """

    against: str
    difference: Estimate
    worse: int
    better: int
    p: float
    smallest: float | None


@dataclass(frozen=True)
class Tuning:
    """One run's row. score: share of right answers, or mean loss of a sample; perplexity where tokens are predicted."""

    name: str
    status: str
    cause: str = ""
    facts: Mapping[str, Any] | None = None
    scores: np.ndarray | None = None
    score: Estimate | None = None
    comparison: Comparison | None = None
    merges: tuple[tuple[Mapping[str, Any], Comparison | None], ...] = ()

    @property
    def evaluation(self) -> Mapping[str, Any]:
        """The last evaluation of the log."""
        return next((e for e in reversed(self.facts["log"]) if "evaluation loss" in e), {})

    @property
    def tokens_per_second(self) -> float:
        steps = [e for e in self.facts["log"] if "tokens" in e]
        return sum(e["tokens"] for e in steps) / sum(e["seconds"] for e in steps)


def finetune(path: str | os.PathLike, folder: str | os.PathLike, progress: Progress | None = None) -> list[Tuning]:
    """Every run of a document that is not done yet, each in a process of its own; the rows of all of them.

    A run is looked at again where its document, code or data have changed; a checkpoint that no longer fits is an error, and stays.

    progress  None: a live table on a terminal, lines elsewhere
    """
    document, folder, outcomes, shown = Finetuning.load(path), Path(folder), {}, progress or automatic()
    for reference in document.references():
        check(reference, document.folder)
    with Claim(folder):
        shown.begin(f"fine-tuning {document.name}", list(document.runs))
        try:
            for name in document.runs:
                shown.stage(name, "starting")
                with Worker(document.threads) as worker:
                    given = str(path), name, str(folder / name), [fingerprint(reference, document.folder) for reference in document.references(name)]
                    outcome = worker.call("evaluators.finetuning:run", *given, limit=document.limit_seconds, hear=partial(shown.stage, name, "training"))
                outcomes[name] = outcome
                shown.stage(name, outcome.status, outcome.cause)
        finally:
            shown.end()
    return rows(document, folder, outcomes)


def run(path: str, name: str, folder: str, contents: list) -> dict[str, Any]:
    """In the run's own process."""
    from compress.finetune.running import run

    return run(Finetuning.load(path), name, Path(folder), contents, lambda entry: tell(words(entry)))


def words(entry: Mapping[str, Any]) -> str:
    """What a step or an evaluation says."""
    if "evaluation loss" in entry:
        return f"step {entry['step']} of {entry['steps']}: evaluation loss {entry['evaluation loss']:.3f}, score {entry['score']:.4f}"
    left = (entry["steps"] - entry["step"]) * entry["seconds"]
    return f"step {entry['step']} of {entry['steps']}: loss {entry['loss']:.3f}, {entry['tokens'] / entry['seconds']:,.0f} tokens/s, about {left:,.0f} s left"


def rows(document: Finetuning, folder: Path, outcomes: Mapping[str, Any]) -> list[Tuning]:
    facts = {name: outcome.value for name, outcome in outcomes.items() if outcome.status == "done"}
    scores = {name: np.load(folder / name / "scores.npy", allow_pickle=False) for name in facts if document.test}
    pairs = {name: document.baseline(name) for name in scores if document.baseline(name) in scores}
    binary = document.task == "classification"
    raw = {name: compared(scores[other], scores[name], other, binary) for name, other in pairs.items()}
    adjusted = holm({name: comparison.p for name, comparison in raw.items()})
    return [
        Tuning(
            name,
            outcome.status,
            outcome.cause,
            facts.get(name),
            scores.get(name),
            estimate(scores[name], binary) if name in scores else None,
            replace(raw[name], p=adjusted[name]) if name in raw else None,
            tuple(merge_rows(facts[name]["merges"], binary)) if name in facts else (),
        )
        for name, outcome in outcomes.items()
    ]


def merge_rows(merges: list[Mapping[str, Any]], binary: bool):
    """Each variant, compared with the adapter on its base."""
    for merge in merges:
        first = np.asarray(merges[0]["scores"])
        yield merge, None if merge is merges[0] else compared(first, np.asarray(merge["scores"]), merges[0]["name"], binary)


def estimate(scores: np.ndarray, binary: bool) -> Estimate:
    return wilson(int(scores.sum()), len(scores)) if binary else mean(scores, np.ones(len(scores)))


def compared(baseline: np.ndarray, other: np.ndarray, against: str, binary: bool) -> Comparison:
    """Paired. Right answers: exact McNemar; losses: sign-flip permutation, and the bootstrap interval of the mean difference."""
    difference = other - baseline
    worse, better = int((difference < 0).sum()), int((difference > 0).sum())
    if binary:
        found = accuracy_difference(worse, better, len(other))
        return Comparison(against, found, worse, better, mcnemar(worse, better), smallest_drop(len(other), (worse + better) / len(other)))
    least = smallest_difference(difference, np.ones(len(other)))
    return Comparison(against, estimate(difference, False), better, worse, sign_flips(difference), least)  # a smaller loss is better
