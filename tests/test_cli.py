"""The command line as a person types it, on real files."""

import json
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from compress.commands.schemas import json_schema
from evaluators.study import Study

ROOT = Path(__file__).parents[1]
MODEL = """
import numpy as np, torch
def load():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
def data():
    return np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
"""


def command(*words: str, folder: Path = ROOT) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "compress", *words], cwd=folder, capture_output=True, text=True, env=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli")
    (path / "mine.py").write_text(MODEL)
    (path / "wrong.yaml").write_text('name: wrong\nsteps: [{step: prune, pattern: {type: "n:m", n: 5, m: 4}}]\n')
    return path


@pytest.mark.parametrize("name", ["init", "compare", "report", "check", "explain", "explain", "compress", "plan", "inspect", "recipes", "targets", "doctor"])
def test_help_has_an_example(name):
    found = command(name, "--help")
    assert found.returncode == 0 and f"compresskit {name}" in found.stdout and "--json" in found.stdout


def test_recipes_can_be_printed_edited_and_used(folder):
    assert "int4-group32" in command("recipes").stdout
    (folder / "mine.yaml").write_text(command("recipes", "int8-static").stdout.replace("name: int8-static", "name: mine"))
    found = command("plan", "mine.py:load", "-r", "mine.yaml", "-c", "mine.py:data", folder=folder)
    assert found.returncode == 0 and "int8 per-channel narrow" in found.stdout


@pytest.mark.parametrize(("suffix", "runtime"), [(".tflite", "tflite"), (".onnx", "onnx"), (".pt2", "torch")])
def test_compress_then_inspect(folder, suffix, runtime):
    made = command("compress", "mine.py:load", "-r", "int8-weight-only", "--to", runtime, "-c", "mine.py:data", "-o", f"m{suffix}", folder=folder)
    assert made.returncode == 0, made.stderr
    shown = command("inspect", f"m{suffix}", folder=folder)
    assert shown.returncode == 0 and "int8" in shown.stdout and "int8-weight-only" in shown.stdout and "Ledger: payload 2,176" in shown.stdout


def test_init_writes_a_study_that_can_be_looked_up(folder):
    made = command("init", "mine.py:load", "-o", "study.yaml", folder=folder)
    assert made.returncode == 0, made.stderr
    study = Study.load(folder / "study.yaml")
    assert list(study.models) == ["mine"] and "onnxruntime" in study.runtimes
    assert "by the names that forward has, input" in (folder / "data.py").read_text()
    again = command("init", "mine.py:load", "-o", "study.yaml", folder=folder)
    assert again.returncode == 2 and "there already" in again.stderr
    ran = command("compare", "study.yaml", "--out", "report", folder=folder)
    assert ran.returncode == 1 and "NotImplementedError: return the inputs" in ran.stdout


def test_plan_says_what_an_exporter_refuses(folder):
    found = command("plan", "mine.py:load", "-r", "int16x8", "--to", "onnx", "-c", "mine.py:data", folder=folder)
    assert found.returncode == 2 and "int16" in found.stderr and "0.weight" in found.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("plan", "mine.py:load", "-r", "int8-statik", "-c", "mine.py:data"), "did you mean 'int8-static'"),
        (("plan", "mine.py:lod", "-r", "float32", "-c", "mine.py:data"), "did you mean 'load'"),
        (("plan", "mine.py:load", "-r", "wrong.yaml", "-c", "mine.py:data"), "steps.0.pattern.n:m: "),
        (("plan", "missing.keras", "-r", "float32"), "no such model file"),
        (("plan", "mine.py:load", "-r", "float32"), "give `inputs`"),
        (("inspect", "missing.onnx"), "no such file"),
        (("inspect", "mine.py"), ".tflite, .onnx, .pt2"),
        (("compare", "missing.yaml"), "missing.yaml"),
        (("report", "no-such-folder"), "no-such-folder"),
        (("compress", "mine.py:load", "-r", "int8-static", "-o", "x.tflite"), "give `inputs`"),
    ],
)
def test_bad_input_is_one_clear_error_and_exit_code_2(folder, words, message):
    found = command(*words, folder=folder)
    assert found.returncode == 2, found.stderr
    assert message in found.stderr and "Traceback" not in found.stderr


def test_debug_shows_where_an_error_was_raised(folder):
    found = command("plan", "missing.keras", "-r", "float32", "--debug", folder=folder)
    assert found.returncode == 1 and "Traceback" in found.stderr and "no such model file" in found.stderr


def test_what_is_printed_as_json_is_json(folder):
    command("compress", "mine.py:load", "-r", "int8-weight-only", "-c", "mine.py:data", "-o", "j.onnx", folder=folder)
    for words in (("recipes",), ("recipes", "pqat"), ("formats", "bnb.nf4"), ("doctor",), ("targets",), ("inspect", "j.onnx")):
        assert json.loads(command(*words, "--json", folder=folder).stdout), words
    planned = json.loads(command("plan", "mine.py:load", "-r", "int8-weight-only", "--to", "onnx", "-c", "mine.py:data", "--json", folder=folder).stdout)
    assert {t["name"]: t["placement"] for t in planned["tensors"] if "placement" in t} == {"0.weight": "decoded", "2.weight": "decoded"}


def test_ctrl_c_says_that_nothing_is_lost(folder):
    (folder / "slow.py").write_text(MODEL + "\ndef slow():\n    import time\n    time.sleep(60)\n")
    (folder / "slow.yaml").write_text("name: s\nmodels: {m: 'slow.py:slow'}\ntest: 'slow.py:data'\nrecipes: [float32]\nruntimes: [onnxruntime]\n")
    words = [sys.executable, "-m", "compress", "compare", "slow.yaml", "--out", "slow"]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # what runs in the background inherits that it is ignored
    started = subprocess.Popen(words, cwd=folder, stderr=subprocess.PIPE, text=True, preexec_fn=heard)
    assert any("exporting" in line for line in started.stderr)
    started.send_signal(signal.SIGINT)
    assert "the same command goes on" in started.communicate(timeout=60)[1] and started.returncode == 130


def test_nan_weights_are_named(folder):
    (folder / "broken.py").write_text(MODEL + "\ndef broken():\n    m = load()\n    m[2].weight.data[0, 0] = float('nan')\n    return m\n")
    np.save(folder / "x.npy", np.zeros((1, 64), np.float32))
    found = command("compress", "broken.py:broken", "-r", "int8-weight-only", "-c", "x.npy", "-o", "x.onnx", folder=folder)
    assert found.returncode == 2 and "2.weight: 1 of 128 values are NaN" in found.stderr
    assert not (folder / "x.onnx").exists()


def test_a_study_from_the_command_line(folder):
    (folder / "data.py").write_text(
        "import numpy as np\n"
        "def test(limit=40):\n    r = np.random.default_rng(1)\n    return r.standard_normal((limit, 64)).astype(np.float32), r.integers(0, 4, limit)\n"
        "def calibration():\n    return test(8)\n"
    )
    (folder / "study.yaml").write_text(
        "name: small\nmodels: {m: 'mine.py:load'}\ncalibration: 'data.py:calibration'\ntest: 'data.py:test'\nsamples: 40\n"
        "recipes: [float32, int8-dynamic, int16x8]\nruntimes: [onnxruntime]\ntargets: [cpu]\n"
        "latency: {processes: 1, blocks: 5, runs: 9, seconds: 0, warmup_seconds: 0}\n"
    )
    dry = command("compare", "study.yaml", "--out", "out", "--dry-run", "--json", folder=folder)
    arms = {arm["id"]: arm for arm in json.loads(dry.stdout)["arms"]}
    assert dry.returncode == 0 and len(arms) == 3 and not (folder / "out").exists()
    assert "int16" in arms["m/int16x8/onnxruntime/cpu"]["reason"] and arms["m/int8-dynamic/onnxruntime/cpu"]["size_bytes"] > 2176
    (folder / "targets.yaml").write_text("one-core-by-a-name-of-its-own: {kind: cpu, threads: 1}\n")
    told = command("compare", "study.yaml", "--out", "out", "--dry-run", "--targets", "cpu,one-core-by-a-name-of-its-own", folder=folder)
    reason = "".join(arms["m/int16x8/onnxruntime/cpu"]["reason"].split())
    assert "".join(told.stdout.split()).count(reason) == 1 and "2 refused" in told.stdout and "planning int8-dynamic" in told.stderr
    assert all(f"m/{name}/onnxruntime/one-core-by-a-name-of-its-own" in told.stdout for name in ("float32", "int16x8"))
    first = command("compare", "study.yaml", "--out", "out", folder=folder)
    assert first.returncode == 0, first.stderr
    for name in ("report.html", "report.md", "results.json", "results.csv", "study.sqlite"):
        assert (folder / "out" / name).stat().st_size
    jsonschema.validate(json.loads((folder / "out" / "results.json").read_text()), json_schema("results"))
    before = (folder / "out" / "results.csv").read_bytes()
    again = command("compare", "study.yaml", "--out", "out", folder=folder)
    assert again.returncode == 0 and (folder / "out" / "results.csv").read_bytes() == before
    (folder / "out" / "report.html").unlink()
    assert command("report", "out", folder=folder).returncode == 0 and (folder / "out" / "report.html").exists()
