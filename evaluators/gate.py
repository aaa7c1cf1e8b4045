"""Whether the arms of a study keep what is asked of them, judged by the ends of confidence intervals and not by the estimates between them."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

from compress.errors import InputError
from evaluators.derive import Reader, load_results
from evaluators.metrics import accuracy
from evaluators.naming import fits
from evaluators.report import words
from evaluators.report.files import write
from evaluators.report.reading import is_baseline, metric
from evaluators.results import Arm, Metric, Score
from evaluators.store import Store

Outcome = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True)
class Limits:
    """What is asked of every arm; None asks nothing.

    accuracy_drop  points, of scores that are shares
    drop           how much worse a score may be, in the unit of its differences: points of shares, percent of perplexities, else the score's own
    score          the worst that a score may be, in its unit: percent of shares
    size           bytes
    """

    accuracy_drop: float | None = None
    drop: float | None = None
    score: float | None = None
    speedup: float | None = None
    size: int | None = None


@dataclass(frozen=True)
class Finding:
    arm: str
    asked: str  # "accuracy", "drop", "score", "speedup", "size", or "run": that there is a result
    outcome: Outcome
    said: str


def check(folder: str | os.PathLike, limits: Limits, baseline: str | os.PathLike | None = None, arms: Sequence[str] = ()) -> list[Finding]:
    """A finding for each limit and each arm of the study in `folder` but its float32 arms.

    baseline  another study's folder. Accuracy is then compared with its arm of the same name, answer by answer, and what ran there has to run here;
              without it accuracy is compared with float32 of the same study, as speed always is: times of two studies were not taken side by side
    arms      parts of arms' names, as "int8-static/litert", or globs; none means all

    InputError where there is no study, nothing to judge, no limit, or one that the study's score cannot have.
    """
    if limits == Limits():
        raise InputError("nothing to check: give --max-accuracy-drop, --max-drop, --worst-score, --min-speedup or --max-size")
    every = [arm for arm in load_results(folder).arms if not is_baseline(arm)]
    judged = [arm for arm in every if wanted(arm.id, arms)]
    fitting(limits, metric(judged))
    before = Before(Path(folder), Path(baseline)) if baseline else None
    gone = before.gone([arm.id for arm in judged], arms) if before else []
    if not judged and not gone:
        there = f"is named {' or '.join(arms)}; there are: {', '.join(arm.id for arm in every)}" if every else "but float32"
        raise InputError(f"{folder}: no arm {there}")
    return [*gone, *(finding for arm in judged for finding in judge(arm, limits, before))]


def fitting(limits: Limits, about: Metric) -> None:
    """InputError for a limit that scores of this kind cannot have."""
    if about.kind == "likeness" and (limits.drop is not None or limits.accuracy_drop is not None):
        raise InputError(
            f"{about.title} compares with float32's outputs, so it cannot drop: ask for a value by --worst-score, in {about.unit or 'its own unit'}"
        )
    if about.unit != "%" and limits.accuracy_drop is not None:
        raise InputError(f"--max-accuracy-drop is in points of a share, and this study's score is {about.title}: use --max-drop, {drop_unit(about)}")


def drop_unit(about: Metric) -> str:
    """What --max-drop counts in."""
    if about.unit == "%":
        return "in points"
    return "in percent of float32's" if about.kind == "perplexity" else f"in {about.unit or 'the unit of the score'}"


def wanted(name: str, patterns: Sequence[str]) -> bool:
    return not patterns or any(fits(name, pattern) for pattern in patterns)


class Before:
    """The arms of an earlier study, and how the answers of this one's differ from theirs."""

    def __init__(self, folder: Path, baseline: Path):
        self.folder, self.baseline = folder, baseline
        self.arms = {arm.id: arm for arm in load_results(baseline).arms}

    def gone(self, now: Sequence[str], patterns: Sequence[str]) -> list[Finding]:
        missing = [arm.id for arm in self.arms.values() if arm.status == "done" and not is_baseline(arm) and wanted(arm.id, patterns) and arm.id not in now]
        return [Finding(name, "run", "failed", "the baseline has this arm, this study has not") for name in missing]

    def ran(self, arm: str) -> bool:
        return arm in self.arms and self.arms[arm].status == "done"

    def accuracy(self, arm: str) -> Score | str:
        """The arm's score against the baseline's arm of the same name, or why there is none."""
        if not self.ran(arm):
            return "the baseline has no result for this arm"
        with Store(self.folder, create=False) as here, Store(self.baseline, create=False) as there:
            now, then = Reader(here), Reader(there)
            mine, theirs = now.answers(arm), then.answers(arm)
            if mine is None or theirs is None:
                return "one of the two studies has no answers of this arm"
            if now.planned[arm]["task"] != then.planned[arm]["task"]:
                return f"the two studies have other tasks ({then.planned[arm]['task']} and {now.planned[arm]['task']})"
            ours, their_data = (reader.piece(arm, "data").facts for reader in (now, then))
            if ours["files"] != their_data["files"] or now.counted(arm, mine) != then.counted(arm, theirs):
                return f"the two studies have other test samples ({their_data['count']} and {ours['count']})"
            return accuracy.derive(now.task(arm), mine.arrays, theirs.arrays, now.labels(arm))[0]


def judge(arm: Arm, limits: Limits, before: Before | None) -> Iterator[Finding]:
    if arm.status != "done":
        lost = arm.status != "refused" or (before is not None and before.ran(arm.id))
        yield Finding(arm.id, "run", "failed" if lost else "skipped", f"{arm.status}: {words.first_line(arm.cause) or 'not run yet'}")
        return
    if limits.size is not None:
        yield size(arm, limits.size)
    if limits.speedup is not None:
        yield speedup(arm, limits.speedup)
    for asked, most in (("accuracy", limits.accuracy_drop), ("drop", limits.drop)):
        if most is not None:
            yield drop(asked, arm, most, before)
    if limits.score is not None:
        yield score(arm, limits.score)


def size(arm: Arm, most: int) -> Finding:
    over = arm.size.file_bytes - most
    said = f"{arm.size.file_bytes:,} bytes, {f'{over:,} over' if over > 0 else f'{-over:,} under'} the {most:,} allowed"
    return Finding(arm.id, "size", "failed" if over > 0 else "passed", said)


def speedup(arm: Arm, least: float) -> Finding:
    found = arm.latency.speedup if arm.latency else None
    if found is None:
        why = f"no latency is measured there: {arm.untimed}" if arm.untimed else "there is no float32 to compare with"
        return Finding(arm.id, "speedup", "failed", f"cannot be judged, {why}; leave this arm out by --arm")
    said = f"{words.times(found.value)} {words.interval(found, words.times)} as fast as float32; asked for {words.times(least)}"
    if found.low >= least:
        return Finding(arm.id, "speedup", "passed", said)
    short = f"short by {words.times(least - found.low)} at the interval's lower end"
    return Finding(arm.id, "speedup", "failed", f"{said}: {short}{'' if found.value < least else '; more processes or blocks would narrow it'}")


def drop(asked: str, arm: Arm, most: float, before: Before | None) -> Finding:
    found = before.accuracy(arm.id) if before else arm.accuracy
    if isinstance(found, str) or found is None or found.difference is None:
        why = found if isinstance(found, str) else "there is no float32 to compare with"
        return Finding(arm.id, asked, "failed", f"cannot be judged: {why}")
    about, scale = found.metric, 100 if found.metric.unit == "%" or found.metric.kind == "perplexity" else 1
    against = f"{words.change(found.difference.value, about)} against {'the baseline' if before else 'float32'}"
    said = (
        f"{words.in_unit(found.value.value, about)}, {against} {words.change_interval(found.difference, about)}; "
        f"allowed a {words.worsening(about)} of {words.change(most / scale, about, signed=False)}"
    )
    over = found.drop.high - most / scale
    if over <= 0:
        return Finding(arm.id, asked, "passed", said)
    hint = "" if found.drop.value * scale > most else f"; more than {found.count:,} samples would narrow it"
    return Finding(arm.id, asked, "failed", f"{said}: over by {words.change(over, about, signed=False)} at the interval's worse end{hint}")


def score(arm: Arm, worst: float) -> Finding:
    found = arm.accuracy
    if found is None:
        return Finding(arm.id, "score", "failed", "cannot be judged: there is no score, as there is no float32 to compare with")
    about, bound = found.metric, worst / 100 if found.metric.unit == "%" else worst
    end = found.value.low if about.higher_is_better else found.value.high
    said = (
        f"{about.title} {words.in_unit(found.value.value, about)} {words.score_interval(found.value, about)}; asked for {words.in_unit(bound, about)} or better"
    )
    fine = end >= bound if about.higher_is_better else end <= bound
    return Finding(arm.id, "score", "passed" if fine else "failed", said)


def write_junit(findings: Sequence[Finding], path: Path, name: str = "compresskit") -> None:
    """JUnit XML: a test case for each finding."""
    count = {outcome: str(sum(f.outcome == outcome for f in findings)) for outcome in ("failed", "skipped")}
    suite = ElementTree.Element("testsuite", name=name, tests=str(len(findings)), failures=count["failed"], skipped=count["skipped"], errors="0")
    for finding in findings:
        case = ElementTree.SubElement(suite, "testcase", classname=finding.arm, name=finding.asked)
        if finding.outcome == "passed":
            ElementTree.SubElement(case, "system-out").text = finding.said
        else:
            ElementTree.SubElement(case, {"failed": "failure", "skipped": "skipped"}[finding.outcome], message=finding.said)
    ElementTree.indent(suite)
    write(path, ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n")
