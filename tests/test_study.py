"""Whole studies with real exporters and runtimes on a tiny model: resuming, refusing, crashing, failing."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from tiny_study import STUDY, written

import evaluators
from compress.errors import CompressError, InputError, RecipeError
from evaluators import statistics
from evaluators.progress import TextProgress
from evaluators.study import Study, chosen, matrix


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("torch")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    return written(tmp_path_factory.mktemp("study")).parent


def compare(path: Path, out: Path):
    log = StringIO()
    return evaluators.compare(path, out, progress=TextProgress(log)), log.getvalue()


def pieces(out: Path) -> dict[str, tuple]:
    """Row numbers by key: a piece that is written again gets a new number."""
    with sqlite3.connect(out / "study.sqlite") as database:
        return dict(database.execute("SELECT key, rowid FROM pieces WHERE status != 'failed'").fetchall())


def killed(path: Path, out: Path, kind: str) -> None:
    """Starts a study and ends it with SIGKILL when the first piece of a kind is there."""
    code = f"import evaluators; evaluators.compare({str(path)!r}, {str(out)!r})"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not found(out, kind):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()


def found(out: Path, kind: str) -> bool:
    if not (out / "study.sqlite").exists():
        return False
    try:
        with sqlite3.connect(out / "study.sqlite") as database:
            return bool(database.execute("SELECT 1 FROM pieces WHERE kind = ? AND status = 'done'", (kind,)).fetchall())
    except sqlite3.OperationalError:  # the tables are not there yet
        return False


@pytest.fixture(scope="module")
def finished(folder):
    """A study that was killed in the middle, resumed and finished: (folder, pieces before, results, log)."""
    out = folder / "out"
    killed(folder / "study.yaml", out, "accuracy")
    before = pieces(out)
    results, log = compare(folder / "study.yaml", out)
    return out, before, results, log


def test_a_killed_study_goes_on_and_measures_nothing_twice(finished):
    out, before, _, log = finished
    after = pieces(out)
    assert {key: after[key] for key in before} == before
    assert len(before) >= 4 and len(after) > len(before)
    assert "mlp/float32/onnxruntime/cpu: exporting" not in log  # its export was there


def test_every_arm_is_done_or_refused_with_its_reason(finished):
    _, _, results, _ = finished
    assert {arm.recipe: arm.status for arm in results.arms} == {"float32": "done", "int8-weight-only": "done", "int16x8": "refused"}
    assert "int16" in results.arms[2].cause


def test_an_arm_that_is_done_has_every_measurement(finished):
    out, _, results, _ = finished
    float32, int8, _ = results.arms
    assert int8.size.file_bytes == (out / int8.artifact).stat().st_size
    assert int8.size.ratio == pytest.approx(float32.size.file_bytes / int8.size.file_bytes) and int8.size.ratio > 2
    assert int8.accuracy.count == 40 and int8.accuracy.difference is not None and float32.accuracy.difference is None
    assert int8.latency.count == 45 and len(int8.latency.block_medians_ms) == 5 and list(int8.latency.percentiles_ms) == ["p90"]
    assert int8.latency.speedup.low <= int8.latency.speedup.value <= int8.latency.speedup.high
    assert float32.latency.verdict == "baseline" and int8.latency.noise == float32.latency.noise != None  # noqa: E711
    assert 10e6 < int8.memory.baseline_bytes < int8.memory.peak_bytes
    assert set(int8.seconds) == {"export", "accuracy", "memory", "latency"} and all(seconds > 0 for seconds in int8.seconds.values())
    assert any(tensor.planned for tensor in int8.tensors) and int8.operators and int8.sha256


def test_predictions_are_kept_sample_by_sample(finished):
    from evaluators.store import Store

    out, _, results, _ = finished
    with Store(out) as store:
        kept = store.piece(store.links(results.arms[1].id)["accuracy"])
    assert {name: (array.shape, str(array.dtype)) for name, array in kept.arrays.items()} == {"answers": ((40,), "int32"), "top": ((40, 5), "int32")}
    assert kept.arrays["answers"].tolist() == kept.arrays["top"][:, 0].tolist()


def test_a_finished_study_measures_nothing_and_says_the_same(finished, folder):
    out, _, results, _ = finished
    before = pieces(out)
    again, log = compare(folder / "study.yaml", out)
    assert pieces(out) == before and again == results
    assert not any(word in log for word in ("exporting", "accuracy", "memory", "timing", "loading"))
    assert evaluators.load_results(out) == results


def test_arms_are_timed_in_as_many_processes_as_the_study_asks_for(folder):
    several = folder / "several.yaml"
    several.write_text(STUDY.replace("processes: 1, blocks: 5, runs: 9", "processes: 5, blocks: 5, runs: 2").replace(", int16x8", ""))
    results, log = compare(several, folder / "several")
    for arm in results.arms:
        assert arm.latency.processes == 5 and arm.latency.count == 5 * 5 * 2 and len(arm.latency.block_medians_ms) == 5 * 5
        assert all(f"{arm.id}: loading, process {number} of 5" in log for number in range(1, 6))
    orders = [[line.partition("] ")[2].replace(f"process {n} ", "") for line in log.splitlines() if f"loading, process {n} of 5" in line] for n in range(1, 6)]
    assert len(orders[0]) == 3 and orders[1] == orders[0][::-1] and orders[3] == orders[2][::-1]  # what loads last is faster
    base, own = (np.array(arm.latency.block_medians_ms) for arm in results.arms)
    assert results.arms[1].latency.speedup == statistics.ratio(base, own, processes=5)
    assert "in 5 processes of each arm" in results.protocol["Latency"] and "resamples of processes" in results.protocol["Speedup"]


def test_a_new_recipe_is_timed_beside_a_fresh_float32_and_the_rest_stays(finished, folder):
    out, _, results, _ = finished
    before = pieces(out)
    wider = folder / "wider.yaml"
    wider.write_text(STUDY.replace("int16x8", "int8-dynamic"))
    more, log = compare(wider, out)
    assert all(pieces(out)[key] == row for key, row in before.items())
    assert more.arms[0].latency == results.arms[0].latency and more.arms[1].latency == results.arms[1].latency
    assert more.arms[2].latency.speedup is not None
    assert "float32/onnxruntime/cpu is timed again beside 1 arm" in log


def test_the_gate_compares_answers_with_an_earlier_study(finished, tmp_path):
    from evaluators.derive import Reader
    from evaluators.gate import Limits, check
    from evaluators.store import Store

    out, _, results, _ = finished
    name = results.arms[1].id
    earlier = shutil.copytree(out, tmp_path / "earlier")
    limits = Limits(accuracy_drop=1.0, size=results.arms[1].size.file_bytes)
    same = {finding.asked: finding for finding in check(out, limits, earlier, [name])}
    assert {asked: finding.outcome for asked, finding in same.items()} == {"size": "passed", "accuracy": "passed"}
    with Store(earlier) as store:
        kept = store.piece(store.links(name)["accuracy"])
        truth = Reader(store).labels(name)
        store.keep(replace(kept, arrays={**kept.arrays, "answers": truth.astype(np.int32)}))  # an earlier study that was always right
    (worse,) = check(out, Limits(accuracy_drop=1.0), earlier, [name])
    assert worse.outcome == "failed" and "against the baseline" in worse.said and "over by" in worse.said
    with pytest.raises(InputError, match="no arm is named"):
        check(out, limits, arms=["nothing"])


def test_results_name_no_absolute_path(finished):
    out, _, results, _ = finished
    told = f"{results.command} {results.environment} {results.protocol} {[(arm.artifact, arm.notes) for arm in results.arms]}"
    assert str(out.parent) not in told and results.command == "compresskit compare study.yaml --out out"


def test_crashing_and_broken_models_are_failed_rows_that_a_rerun_tries_again(folder):
    path = folder / "failing.yaml"
    models = '{crash: "model.py:crashing", broken: "model.py:broken", nan: "model.py:poisoned", mlp: "model.py:load"}'
    path.write_text(STUDY.replace('{mlp: "model.py:load"}', models).replace("[float32, int8-weight-only, int16x8]", "[int8-weight-only]"))
    results, _ = compare(path, folder / "failing")
    arms = {arm.model: arm for arm in results.arms}
    assert {name: arm.status for name, arm in arms.items()} == {"crash": "failed", "broken": "failed", "nan": "failed", "mlp": "done"}
    assert "SIGSEGV" in arms["crash"].cause and "Segmentation fault" in arms["crash"].trace
    assert arms["broken"].cause == "RuntimeError: the weights are gone" and "model.py" in arms["broken"].trace
    assert "0.weight" in arms["nan"].cause
    assert arms["mlp"].latency.verdict == "no baseline" and arms["mlp"].size.ratio is None
    before = pieces(folder / "failing")
    _, log = compare(path, folder / "failing")
    assert "crash/int8-weight-only/onnxruntime/cpu: exporting" in log and "mlp/int8-weight-only/onnxruntime/cpu: exporting" not in log
    assert pieces(folder / "failing") == before


# The document


def parse(folder: Path, text: str):
    path = folder / "edited.yaml"
    path.write_text(text)
    study = Study.load(path)
    list(matrix(study))
    return study


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("samples: 40", "sample: 40", "sample: Extra inputs"),
        ("samples: 40", "samples: 0", "samples: "),
        ("blocks: 5", "blokcs: 5", "latency.blokcs"),
        ("samples: 40", "samples: 40\nleast_sqnr: 30", "only the task `outputs`"),
        ("blocks: 5", "blocks: 4", "latency.blocks"),
        ("runs: 9", "runs: 8", "at least 44 timed runs"),
        ("processes: 1", "processes: 4", "an interval over processes needs 5 of them; or 1"),
        ("model.py:load", "model.py:laod", "did you mean 'load'"),
        ("model.py:load", "absent.keras", "no such file"),
        ('{mlp: "model.py:load"}', '{mlp: {open: "model.py:load", tests: x}}', "models.mlp.tests"),
        ('{mlp: "model.py:load"}', '{"a/b": "model.py:load"}', "one word"),
        ('test: "data.py:test"', "", "mlp have no test data"),
        ("float32, ", "float23, ", "did you mean 'float32'"),
        ("float32, ", "float32, float32, ", "named twice"),
        ("[onnxruntime]", "[onnxrutime]", "did you mean 'onnxruntime'"),
        ("[onnxruntime]", "[onnxruntime, ort]", "there already"),
        ("[onnxruntime]", "[onnxruntime]\ntargets: [gpu]", "no target 'gpu'"),
        ("name: tiny", "name: [", "not YAML"),
    ],
)
def test_a_study_that_cannot_mean_anything_names_the_field(tmp_path, old, new, words):
    written(tmp_path)
    assert STUDY.count(old)
    with pytest.raises(CompressError, match=words.replace("(", "\\(")) as caught:
        parse(tmp_path, STUDY.replace(old, new, 1))
    assert isinstance(caught.value, ValueError)


def test_a_study_that_is_not_there_is_named(tmp_path):
    with pytest.raises(RecipeError, match="absent.yaml"):
        Study.load(tmp_path / "absent.yaml")
    with pytest.raises(InputError, match="study.sqlite"):
        evaluators.load_results(tmp_path)


def test_the_matrix_is_models_by_runtimes_by_targets_by_recipes(tmp_path):
    written(tmp_path)
    study = parse(tmp_path, STUDY.replace("[onnxruntime]", "[tflite, litert-converter]"))
    assert [arm.id for arm in matrix(study)] == [
        f"mlp/{recipe}/{label}/cpu" for label in ("litert", "litert-converter") for recipe in ("float32", "int8-weight-only", "int16x8")
    ]


def test_arms_that_are_asked_for_bring_their_float32_and_nothing_else(tmp_path):
    study = Study.load(written(tmp_path))
    every = list(matrix(study))
    assert [arm.id for arm in chosen(every, ["*/int16x8/*"])] == ["mlp/float32/onnxruntime/cpu", "mlp/int16x8/onnxruntime/cpu"]
    assert chosen(every, ()) == every
    with pytest.raises(InputError, match="no arm is named \\*/int3/\\*; there are: mlp/float32/onnxruntime/cpu"):
        chosen(every, ["*/int3/*"])


def test_models_may_bring_their_own_data(tmp_path):
    written(tmp_path)
    study = parse(tmp_path, STUDY.replace('"model.py:load"', '{open: "model.py:load", test: "data.py:part"}'))
    assert study.data("mlp") == ("data.py:calibration", "data.py:part")
