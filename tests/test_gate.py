"""The gate judges by the ends of intervals, names by how much something fails, and never passes what it could not judge."""

from dataclasses import replace
from xml.etree import ElementTree

import pytest

pytest.importorskip("altair", reason="the report needs altair, vl-convert, jinja2 and rich")
from results_fixture import results

from compress.errors import InputError
from compress.units import parse_bytes
from evaluators.gate import Finding, Limits, check, judge, write_junit
from evaluators.results import Estimate


@pytest.fixture(scope="module")
def arm():
    return next(arm for arm in results().arms if arm.status == "done" and arm.latency and arm.latency.verdict != "baseline" and arm.accuracy.difference)


def only(arm, limits, before=None) -> Finding:
    (found,) = judge(arm, limits, before)
    return found


def timed(arm, speedup):
    return replace(arm, latency=replace(arm.latency, speedup=speedup))


def test_speed_is_judged_by_the_lower_end(arm):
    assert only(timed(arm, Estimate(1.6, 1.5, 1.7)), Limits(speedup=1.5)).outcome == "passed"
    near = only(timed(arm, Estimate(1.6, 1.4, 1.8)), Limits(speedup=1.5))
    assert near.outcome == "failed" and "0.10×" in near.said and "more processes or blocks" in near.said
    assert "more processes or blocks" not in only(timed(arm, Estimate(1.2, 1.1, 1.3)), Limits(speedup=1.5)).said


def test_accuracy_is_judged_by_the_lower_end(arm):
    def drop(low, value):
        return replace(arm, accuracy=replace(arm.accuracy, difference=Estimate(value, low, 0.01)))

    assert only(drop(-0.009, -0.002), Limits(accuracy_drop=1.0)).outcome == "passed"
    near = only(drop(-0.014, -0.002), Limits(accuracy_drop=1.0))
    assert near.outcome == "failed" and "over by 0.4 points" in near.said and "samples would narrow" in near.said
    assert "narrow" not in only(drop(-0.03, -0.02), Limits(accuracy_drop=1.0)).said


def test_size_is_exact(arm):
    assert only(arm, Limits(size=arm.size.file_bytes)).outcome == "passed"
    over = only(arm, Limits(size=arm.size.file_bytes - 1000))
    assert over.outcome == "failed" and "1,000 over" in over.said


@pytest.mark.parametrize("limits", [Limits(speedup=1.0), Limits(accuracy_drop=1.0)])
def test_what_cannot_be_judged_does_not_pass(arm, limits):
    blind = replace(arm, latency=None, untimed="it is emulated", accuracy=replace(arm.accuracy, difference=None))
    found = only(blind, limits)
    assert found.outcome == "failed" and "cannot be judged" in found.said


@pytest.mark.parametrize(("status", "outcome"), [("refused", "skipped"), ("failed", "failed"), ("pending", "failed")])
def test_an_arm_without_result(arm, status, outcome):
    found = only(replace(arm, status=status, cause="no kernel\nmore"), Limits(size=1))
    assert (found.asked, found.outcome, found.said) == ("run", outcome, f"{status}: no kernel")


def test_junit_has_every_finding(tmp_path):
    found = [Finding("a/b", "size", "passed", "fine"), Finding("a/c", "size", "failed", "<too> large"), Finding("a/d", "run", "skipped", "none")]
    write_junit(found, tmp_path / "j.xml")
    suite = ElementTree.parse(tmp_path / "j.xml").getroot()
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("3", "1", "1")
    assert [case.get("classname") for case in suite] == ["a/b", "a/c", "a/d"]
    assert suite[1].find("failure").get("message") == "<too> large" and suite[2].find("skipped") is not None


def test_nothing_asked_is_an_error(tmp_path):
    with pytest.raises(InputError, match="--max-size"):
        check(tmp_path, Limits())
    with pytest.raises(InputError, match="compresskit compare"):
        check(tmp_path, Limits(size=1))


@pytest.mark.parametrize(("said", "size"), [("6MB", 6_000_000), ("1.5 MiB", 1_572_864), ("500kB", 500_000)])
def test_sizes_as_people_write_them(said, size):
    assert parse_bytes(said) == size


@pytest.mark.parametrize("said", ["much", "6", "0MB", "-1MB"])
def test_other_sizes_are_refused(said):
    with pytest.raises(InputError, match="500kB"):
        parse_bytes(said)
