"""The parts of a study that need no model: clocks, the store, processes, references."""

import os
import signal
import sqlite3
import time
from types import SimpleNamespace

import numpy as np
import pytest

from compress.errors import InputError
from evaluators import artifacts, dataset, sources, timing
from evaluators.environment import environment
from evaluators.metrics import latency
from evaluators.naming import fits
from evaluators.store import Claim, Piece, Store, identity
from evaluators.worker import THREAD_VARIABLES, Worker

# Clocks


def test_warm_up_goes_on_until_times_are_steady():
    delays = iter([0.02, 0.015, 0.012, 0.01, 0.008, 0.006, 0.005, 0.004] + [0.003] * 500)
    found = timing.warm_up(timing.clocked(lambda _: time.sleep(next(delays))), [None], seconds=0.0)
    assert found.runs >= 14  # the last 5 and the 5 before must both lie in the steady part
    assert found.first_ns > 15e6


def test_warm_up_ends_at_its_limit_and_says_that_it_was_not_steady():
    delays = iter(0.001 * 1.2**i for i in range(50))
    assert not timing.warm_up(timing.clocked(lambda _: time.sleep(next(delays))), [None], seconds=0.0, limit=0.1).steady


def test_a_block_times_every_run_and_starts_with_the_same_input():
    seen = []
    times = timing.timed_block(timing.clocked(seen.append), ["a", "b", "c"], runs=4)
    assert seen == ["a", "a", "b", "c", "a"]
    assert times.dtype == np.int64 and times.shape == (4,) and (times > 0).all()


def test_rounds_are_balanced_and_every_second_one_is_reversed():
    orders = latency.rounds(5, 6, 0)
    assert len(orders) == 6 and all(sorted(order) == list(range(5)) for order in orders)
    assert all(orders[i + 1] == orders[i][::-1] for i in (0, 2, 4))
    assert orders == latency.rounds(5, 6, 0) != latency.rounds(5, 6, 1)


def test_fast_models_get_more_runs_in_a_block_within_bounds():
    settings = SimpleNamespace(runs=8, seconds=0.25)
    assert [latency.runs_per_block(ns, settings) for ns in (10**9, 10**6, 100)] == [8, 250, 1000]


# The store


def test_a_piece_comes_back_as_it_was_kept(tmp_path):
    piece = Piece("k", "accuracy", "a/b/c/d", "done", seconds=1.5, facts={"x": [1, 2]}, arrays={"logits": np.eye(3, dtype=np.float32)})
    with Store(tmp_path) as store:
        store.keep(piece)
    with Store(tmp_path) as store:
        found = store.settled("k")
    assert (found.kind, found.owner, found.seconds, found.facts) == ("accuracy", "a/b/c/d", 1.5, {"x": [1, 2]})
    assert np.array_equal(found.arrays["logits"], np.eye(3))


def test_refusals_are_settled_and_failures_are_not(tmp_path):
    with Store(tmp_path) as store:
        store.keep(Piece("r", "export", "", "refused", "no kernel"), Piece("f", "export", "", "failed", "boom"))
        assert store.settled("r").cause == "no kernel"
        assert store.settled("f") is None and store.piece("f").cause == "boom"


def test_pieces_are_kept_all_or_none(tmp_path):
    with Store(tmp_path) as store:
        with pytest.raises(sqlite3.IntegrityError):
            store.keep(Piece("a", "latency", "", "done"), Piece("b", "latency", "", None))
        assert store.piece("a") is None


def test_a_damaged_file_and_a_missing_one_are_named(tmp_path):
    with pytest.raises(InputError, match="compresskit compare"):
        Store(tmp_path / "none", create=False)
    (tmp_path / "study.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(InputError, match="study.sqlite"):
        Store(tmp_path)


def test_two_compares_do_not_share_a_folder(tmp_path):
    with Claim(tmp_path), pytest.raises(InputError, match="another command"):
        Claim(tmp_path)
    with Claim(tmp_path):
        pass


def test_identity_depends_on_values_only():
    assert identity({"a": 1, "b": [2]}) == identity({"b": [2], "a": 1}) != identity({"a": 1, "b": [3]})


# Processes


@pytest.fixture(scope="module")
def worker():
    with Worker(threads=1) as process:
        yield process


def test_a_worker_returns_values_and_causes(worker):
    assert worker.call("operator:add", 2, 3, limit=60).value == 5
    failed = worker.call("json:loads", "{", limit=60)
    assert failed.status == "failed" and failed.cause.startswith("json.decoder.JSONDecodeError") and "Traceback" in failed.trace


def test_a_call_is_heard_while_it_runs(worker):
    heard = []
    assert worker.call("evaluators.worker:tell", "step 3 of 9", limit=60, hear=heard.append).status == "done"
    assert heard == ["step 3 of 9"]
    assert worker.call("evaluators.worker:tell", "nobody listens", limit=60).status == "done"


def test_trainings_tell_how_far_they_are(monkeypatch):
    told, clock = [], iter(range(0, 100, 2))
    monkeypatch.setattr(artifacts, "tell", told.append)
    monkeypatch.setattr(artifacts, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    steps = artifacts.Steps()
    for step in range(11, 16):  # goes on from a checkpoint: two seconds for each step
        steps("steps.0 (prune)", step, 20, 0.5)
    assert told == ["steps.0 (prune): step 13 of 20, loss 0.5, about 14 s left", "steps.0 (prune): step 15 of 20, loss 0.5, about 10 s left"]


def test_refusals_of_this_project_are_told_from_failures(worker):
    refused = worker.call("evaluators.artifacts:exporter_facts", "exporters:export", "gguf", limit=60)
    assert refused.status == "refused" and "no runtime here loads them" in refused.cause


def test_a_worker_has_its_threads_fixed_before_anything_is_imported(worker):
    assert [worker.call("os:getenv", name, limit=60).value for name in THREAD_VARIABLES] == ["1"] * len(THREAD_VARIABLES)


def test_no_thread_of_onnxruntime_works_beside_what_is_measured(worker):
    pytest.importorskip("onnxruntime")
    assert worker.call("onnxruntime:get_device", limit=60).value == "CPU"
    assert len(worker.call("os:listdir", "/proc/self/task", limit=60).value) == 1


def test_pinning_holds_for_every_thread(worker):
    cores = worker.call("evaluators.timing:pin", 1, limit=60).value
    assert cores == [max(os.sched_getaffinity(0))]
    assert worker.call("os:sched_getaffinity", 0, limit=60).value == set(cores)


@pytest.mark.parametrize(
    ("function", "arguments", "cause"),
    [
        ("faulthandler:_sigsegv", (), "SIGSEGV"),
        ("os:_exit", (3,), "exit code 3"),
        ("time:sleep", (60,), "within 0.5 seconds"),
    ],
)
def test_a_process_that_dies_or_hangs_is_one_failed_call(function, arguments, cause):
    with Worker(threads=1) as process:
        outcome = process.call(function, *arguments, limit=0.5 if function == "time:sleep" else 60)
        assert outcome.status == "failed" and cause in outcome.cause
        assert not process.alive
        assert process.call("os:getpid", limit=60).status == "failed"


def test_a_worker_that_runs_out_of_memory_is_said_to_be_killed():
    with Worker(threads=1) as process:
        pid = process.call("os:getpid", limit=60).value
        outcome = process.call("os:kill", pid, signal.SIGKILL, limit=60)
    assert "SIGKILL" in outcome.cause and "memory" in outcome.cause


# References and data


def test_fingerprints_follow_contents_imports_and_named_files(tmp_path):
    (tmp_path / "model.py").write_text("from helper import x\nPATH = 'weights.bin'\ndef load(): pass\n")
    (tmp_path / "helper.py").write_text("x = 1\n")
    (tmp_path / "weights.bin").write_bytes(b"1")
    (tmp_path / "other.py").write_text("y = 1\n")
    first = sources.fingerprint("model.py:load", tmp_path)
    os.utime(tmp_path / "model.py", (1, 1))
    (tmp_path / "other.py").write_text("y = 2\n")
    assert sources.fingerprint("model.py:load", tmp_path) == first
    for name, text in (("weights.bin", "2"), ("helper.py", "x = 2\n"), ("model.py", "def load(): pass\n")):
        before = sources.fingerprint("model.py:load", tmp_path)
        (tmp_path / name).write_text(text)
        assert sources.fingerprint("model.py:load", tmp_path) != before, name


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("absent.py:load", "no such file"),
        ("model.py:laod", "did you mean 'load'"),
        ("broken.py:load", "line 1"),
        ("nowhere.at.all:load", "no module"),
        ("absent.keras", "no such file"),
    ],
)
def test_references_that_cannot_work_are_found_before_any_work(tmp_path, reference, words):
    (tmp_path / "model.py").write_text("def load(): raise RuntimeError('is not run')\n")
    (tmp_path / "broken.py").write_text("def load(:\n")
    with pytest.raises(InputError, match=words):
        sources.check(reference, tmp_path)
    sources.check("model.py:load", tmp_path)
    sources.check("json.decoder:JSONDecoder", tmp_path)


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        ("{'x': np.full((3, 2), np.nan, np.float32)}, np.zeros(3, int)", "NaN"),
        ("{'x': np.zeros((2, 2))}, np.zeros(3, int)", "2 samples for 3 labels"),
        ("{'x': np.zeros((2, 2))}", "there are none"),
        ("{'x': np.zeros((0, 2))}, np.zeros(0, int)", "no samples"),
        ("{'x': np.zeros((2, 2))}, np.zeros(2)", "integers"),
        ("{'x': np.zeros((2, 2))}, np.array([0, -1])", "start at 0"),
    ],
)
def test_test_data_that_cannot_be_used_is_named(tmp_path, returned, words):
    (tmp_path / "data.py").write_text(f"import numpy as np\ndef test(limit): return {returned}\n")
    with pytest.raises(InputError, match=words):
        dataset.prepare("data.py:test", str(tmp_path), 10, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["{'a': a, 'b': b}", "(a, b)", "[{'a': a[:2], 'b': b[:2]}, {'a': a[2:], 'b': b[2:]}]", "lambda: iter([(a, b)])"])
def test_test_data_in_any_form_gives_the_same_samples(tmp_path, form):
    lines = ["import numpy as np", "a = np.arange(8.0).reshape(4, 2)", "b = np.arange(4)", f"def test(limit): return {form}, np.arange(4)"]
    (tmp_path / "data.py").write_text("\n".join(lines))
    dataset.prepare("data.py:test", str(tmp_path), 3, str(tmp_path / "out"))
    specs = (SimpleNamespace(name="a", dtype="float32"), SimpleNamespace(name="b", dtype="int64"))
    found = list(dataset.stored_samples(tmp_path / "out", specs))
    assert dataset.labels(tmp_path / "out").tolist() == [0, 1, 2]
    assert [sample["a"].tolist() for sample in found] == [[[0, 1]], [[2, 3]], [[4, 5]]]
    assert [sample["b"].tolist() for sample in found] == [[0], [1], [2]]
    assert found[0]["a"].dtype == np.float32


# The environment


def test_the_environment_names_no_person_host_or_path():
    facts = environment()
    told = " ".join(facts.values())
    assert os.uname().nodename not in told and str(os.getcwd()) not in told and os.path.expanduser("~") not in told
    assert facts["Affinity"] and facts["Packages"] and facts["CPU"]


@pytest.mark.parametrize(
    ("pattern", "fit"),
    [
        ("m/int8/litert/cpu", True),
        ("m/int8/litert/cp", False),
        ("int8/litert", True),
        ("*/int8/*", True),
        ("*/int*", True),
        ("int4", False),
        ("int8/*", False),
    ],
)
def test_an_arm_is_named_by_its_whole_name_a_part_or_a_glob(pattern, fit):
    assert fits("m/int8/litert/cpu", pattern) == fit
