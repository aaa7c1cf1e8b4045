"""Boards over ssh, by a real sshd on loopback: who is trusted, what is sent, what is measured, and what is left when a board goes away."""

import io
import json
import os
import re
import time
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import tiny_study
import yaml

import evaluators
from compress.errors import BrokenFile, Refused, Unreachable
from evaluators.boards import code, place, wire
from evaluators.metrics import accuracy
from evaluators.progress import TextProgress
from evaluators.store import Store
from evaluators.targets import made, open_target, own
from evaluators.targets.ssh import FOUND, Ssh

pytest.importorskip("asyncssh", reason="boards over ssh need asyncssh: pip install 'compresskit[ssh]'")
from sshd import sshd  # noqa: E402
from sshd_arm64 import sshd_arm64  # noqa: E402

STUDY = tiny_study.STUDY.replace(", int16x8]", "]") + "targets: [cpu, board, doomed]\n"


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    """A board with a Python that has NumPy and ONNX Runtime."""
    pytest.importorskip("onnxruntime")
    try:
        with sshd(tmp_path_factory.mktemp("board")) as found:
            yield found
    except Unreachable as error:
        pytest.skip(str(error))


def target(board, **settings) -> Ssh:
    return made("ssh", {name: value for name, value in (board.settings | settings).items() if name != "kind"}, "this")


def refusal(document: Ssh) -> str:
    with pytest.raises(Unreachable) as error:
        document.check()
    return str(error.value)


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


# Trust


def test_a_host_key_that_is_not_known_is_refused(board, tmp_path):
    for known in (f"[127.0.0.1]:{board.port + 1} {(board.folder / 'host.pub').read_text()}", None):
        file = tmp_path / "known_hosts"
        file.unlink(missing_ok=True)
        if known is not None:
            file.write_text(known)
        said = refusal(target(board, known_hosts=str(file)))
        assert "is not in" in said and "SHA256:" in said and f"ssh-keyscan -p {board.port} 127.0.0.1 >> {file}" in said
        assert file.exists() == (known is not None) and (known is None or file.read_text() == known)


def test_a_host_key_that_has_changed_is_refused(board, tmp_path):
    file = tmp_path / "known_hosts"
    file.write_text(f"[127.0.0.1]:{board.port} {(board.folder / 'other.pub').read_text()}")
    said = refusal(target(board, known_hosts=str(file)))
    assert "has changed" in said and said.count("SHA256:") == 2 and f"ssh-keygen -R '[127.0.0.1]:{board.port}' -f {file}" in said


def test_what_a_board_sends_is_never_unpickled():
    value = {"facts": [1, (2.5, None), np.int8(3)], "arrays": {"x": np.arange(3, dtype=np.int8), "y": np.zeros((0, 2))}}
    whole = wire.pack(value)[wire.LENGTH.size :]
    found = wire.unpack(whole)
    assert found["facts"] == [1, [2.5, None], 3] and all(np.array_equal(found["arrays"][name], value["arrays"][name]) for name in "xy")
    assert found["arrays"]["x"].dtype == np.int8 and found["arrays"]["y"].shape == (0, 2)
    with pytest.raises(ValueError, match="[Oo]bject"):
        wire.pack(np.array([print], dtype=object))
    pickled = io.BytesIO()
    np.save(pickled, np.array([print], dtype=object), allow_pickle=True)
    text = json.dumps({wire.ARRAY: 0}).encode()
    evil = wire.LENGTH.pack(len(text)) + text + pickled.getvalue()
    for wrong in (evil, b"", whole[:-1], whole[:20], b"\xff" * 40):
        with pytest.raises(ValueError):
            wire.unpack(wrong)
    with pytest.raises(ValueError, match="message of"):
        wire.length(wire.LENGTH.pack(1 << 40))


# What is in the way is said


def test_a_key_that_the_board_does_not_accept_is_named(board):
    said = refusal(target(board, key=str(board.folder / "other")))
    assert "does not accept the key" in said and "ssh-copy-id" in said
    assert "cannot be used" in refusal(target(board, key=str(board.folder / "host.pub")))


@pytest.mark.parametrize(
    ("python", "words"),
    [
        ("no-such-python", "ended with exit code 127"),
        ('exec {python} -c "import sys; sys.version_info = (3, 9, 2); $2"', "is Python 3.9.2, and 3.11 or later is needed"),
        ('exec {python} -S "$@"', "has no NumPy: run"),
        ("echo welcome; exec false", "ended with exit code 1"),
        ("kill -9 $$", "was ended by SIGKILL"),
    ],
)
def test_a_python_that_does_not_do_is_named(board, tmp_path, python, words):
    name = script(tmp_path / "python", python.format(python=board.settings["python"])) if " " in python else python
    assert words in refusal(target(board, python=name))


def test_a_board_that_is_not_there_is_unreachable(board, tmp_path):
    assert "cannot be reached" in refusal(target(board, port=1))
    (tmp_path / "targets.yaml").write_text(yaml.safe_dump({"shed": board.settings | {"port": 1}}))
    found = own("shed", open_target("shed", tmp_path))
    assert not found.reachable and "cannot be reached" in found.state and not found.runtimes


# A board at work


def test_a_board_says_what_it_is_and_what_it_runs(board):
    python = script(board.folder / "chatty", f'echo "welcome to this board"; exec {board.settings["python"]} "$@"')
    document = target(board, python=python)
    found = own("board", document)
    assert found.reachable and found.runtimes == ("onnxruntime",)
    facts = FOUND[document]
    assert facts["cores"] == document.usable() and facts["packages"]["numpy"] == np.__version__
    assert document.environment()[f"Board {facts['model']}"]
    with pytest.raises(Refused, match="threads were asked for"):
        document.refuse("onnxruntime", 1 + facts["cores"])
    with pytest.raises(Refused, match="torch does not run on .*, which has onnxruntime: .*'torch'"):
        document.refuse("torch", 1)
    assert "has no core 9999 to use" in refusal(target(board, cores=(9999,)))


def test_threads_and_cores_are_set_there(board):
    last = max(os.sched_getaffinity(0))
    with target(board, cores=(last,)).start(3) as worker:
        assert worker.call("builtins:eval", "sorted(__import__('os').sched_getaffinity(0))", limit=60).value == [last]
        assert worker.call("os:sched_getaffinity", 0, limit=60).cause == "set cannot be sent to a board or back"
        assert worker.call("os:getenv", "OMP_NUM_THREADS", limit=60).value == "3"


def gone(process: int) -> bool:
    deadline = time.monotonic() + 20
    while Path(f"/proc/{process}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    return not Path(f"/proc/{process}").exists()


def test_a_process_that_fails_there_is_one_failure_and_nothing_is_left(board):
    with target(board).start(1) as worker:
        process = worker.call("os:getpid", limit=60).value
        assert list(board.cache.glob("run-*"))
        assert worker.call("operator:truediv", 1, 0, limit=60).cause == "ZeroDivisionError: division by zero"
        assert "seconds: the process was ended" in worker.call("time:sleep", 600, limit=0.5).cause
        assert gone(process)
    with target(board).start(1) as worker:
        assert "crashed with SIGABRT" in worker.call("os:abort", limit=60).cause
    deadline = time.monotonic() + 20
    while list(board.cache.glob("run-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not list(board.cache.glob("run-*"))


class Unplugging(TextProgress):
    """Pulls the plug of a board when its first arm is timed."""

    def __init__(self, board):
        super().__init__(StringIO())
        self.board = board

    def stage(self, arm: str, stage: str, detail: str = "") -> None:
        super().stage(arm, stage, detail)
        if arm.endswith("/doomed") and stage == "warming up" and self.board.process.is_running():
            self.board.vanish()


@pytest.fixture(scope="module")
def study(board, tmp_path_factory):
    """A study on this machine, on a board, and on one that goes away in the middle: (folder, results)."""
    for name in ("torch", "onnxscript"):
        pytest.importorskip(name)
    folder = tmp_path_factory.mktemp("study")
    with sshd(tmp_path_factory.mktemp("doomed")) as other:
        targets = yaml.safe_dump({"board": board.settings, "doomed": other.settings})
        (folder / "targets.yaml").write_text(targets)
        return folder, evaluators.compare(tiny_study.written(folder, STUDY), folder / "out", progress=Unplugging(other))


def arrays(folder: Path, arm: str, kind: str) -> dict[str, np.ndarray]:
    with Store(folder / "out", create=False) as store:
        return store.piece(store.links(arm)[kind]).arrays


def test_a_study_on_a_board_finds_what_this_machine_finds(study):
    folder, results = study
    found = {arm.id: arm for arm in results.arms if arm.target != "doomed"}
    assert {arm.status for arm in found.values()} == {"done"}, [arm.cause for arm in found.values()]
    for recipe in ("float32", "int8-weight-only"):
        here, there = (arrays(folder, f"mlp/{recipe}/onnxruntime/{name}", "accuracy") for name in ("cpu", "board"))
        assert all(np.array_equal(here[name], there[name]) for name in ("answers", "top"))
    one = found["mlp/int8-weight-only/onnxruntime/board"]
    assert one.accuracy.count == 40 and one.latency.count >= 44 and one.latency.speedup and one.memory.baseline_bytes < one.memory.peak_bytes
    assert any(key.startswith("Board ") for key in results.environment)


def test_a_board_that_goes_away_fails_its_own_arms_and_no_other(study):
    lost = [arm for arm in study[1].arms if arm.status != "done"]
    assert [(arm.target, arm.status) for arm in lost] == [("doomed", "failed")] * 2
    assert all(re.fullmatch(r"the connection to \S+@127.0.0.1 was lost", arm.cause) and arm.accuracy for arm in lost)


def test_only_what_changed_is_sent(study, board):
    folder, results = study
    kept = {path.name: path.stat().st_ino for path in (board.cache / "files").iterdir()}
    sent = {arm.sha256 for arm in results.arms}
    assert sent < set(kept) and len(kept) == len(sent) + 4  # samples, labels, names, task
    assert [path.name for path in (board.cache / "code").iterdir()] == [code.code()[0]]
    arm = next(arm for arm in results.arms if arm.target == "board")
    with Store(folder / "out") as store:
        store.write(("DELETE FROM pieces WHERE owner = ? AND kind = 'accuracy'", (arm.id,)))
    evaluators.compare(folder / "study.yaml", folder / "out", progress=TextProgress(StringIO()), targets=["cpu", "board"])
    assert {path.name: path.stat().st_ino for path in (board.cache / "files").iterdir()} == kept


# The board's side


def test_kept_files_are_bounded_and_what_is_in_use_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(place, "MOST_BYTES", 250)
    contents = {f"data/{index}": bytes([index]) * 100 for index in range(4)}
    hashes = {name: place.hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    with place.own_place(tmp_path) as first:
        assert first.lacking(hashes) == list(contents)
        for index, (name, content) in enumerate(contents.items()):
            first.keep(name, hashes[name], 100, io.BytesIO(content))
            os.utime(tmp_path / "files" / hashes[name], (index, index))
        assert {name: (first.folder / name).read_bytes() for name in contents} == contents
        with place.own_place(tmp_path) as second:
            assert second.lacking(hashes) == ["data/0", "data/1"] and first.folder.exists()
        stream = io.BytesIO(b"other bytes" + b"next")
        with pytest.raises(BrokenFile, match="9 changed while it was sent"):
            first.keep("data/9", hashes["data/0"], 11, stream)
        assert stream.read() == b"next" and len(list((tmp_path / "files").iterdir())) == 2
    assert not list(tmp_path.glob("run-*"))


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path):
    (tmp_path / "run-killed/data").mkdir(parents=True)
    with place.own_place(tmp_path) as own_one:
        assert list(tmp_path.glob("run-*")) == [own_one.folder]


# Another processor


@pytest.fixture(scope="module")
def arm64_board(tmp_path_factory):
    """A board whose sshd, Python and runtimes are arm64's, under qemu: its time is the emulator's, and nothing here looks at it."""
    try:
        with sshd_arm64(tmp_path_factory.mktemp("arm64")) as found:
            yield found
    except Unreachable as error:
        pytest.skip(str(error))


@pytest.mark.slow
def test_an_arm64_board_answers_as_this_machine_does(study, arm64_board):
    folder, results = study
    document = target(arm64_board)
    arm = next(arm for arm in results.arms if arm.id == "mlp/int8-weight-only/onnxruntime/board")
    with Store(folder / "out", create=False) as store:
        facts, data = store.piece(store.links(arm.id)["export"]).facts["artifact"], store.links(arm.id)["data"]
    call = facts, str(folder / "out/artifacts"), "onnxruntime", 1, str(folder / "out/data" / data), 8
    with document.start(1) as worker:
        outcome = worker.call(f"{accuracy.__name__}:measure", *call, limit=300)
        known = worker.call("evaluators.boards.facts:facts", limit=300).value
    assert outcome.status == "done", outcome.cause + outcome.trace
    assert "aarch64" in known["system"] and known["runtimes"]["onnxruntime"]["cpu features"] == "asimddp" and "ai-edge-litert" in known["runtimes"]["litert"]
    _, found = outcome.value
    here = arrays(folder, arm.id, "accuracy")
    assert all(np.array_equal(found[name], here[name][:8]) for name in ("answers", "top"))


@pytest.mark.slow
def test_an_arm64_board_whose_host_key_has_changed_is_refused(arm64_board, tmp_path):
    file = tmp_path / "known_hosts"
    file.write_text(f"[127.0.0.1]:{arm64_board.port} {(arm64_board.folder / 'other.pub').read_text()}")
    assert "has changed" in refusal(target(arm64_board, known_hosts=str(file)))
