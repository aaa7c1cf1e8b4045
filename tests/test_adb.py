"""Phones over adb: what their programs print, and a real adbd with everything that can go wrong on it. The device is tests/adb_device.py's."""

import os
import shutil
import socket
import socketserver
import threading
import time
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from adb_device import Devices, made

import compress
import evaluators
import exporters
from compress import references
from compress.artifact import Artifact, Contents, Ledger
from compress.errors import CompressError, Refused, Unreachable
from compress.network import InputSpec
from evaluators import dataset
from evaluators.android import benchmark_model, executorch_runner
from evaluators.android.device import FOLDER, connect
from evaluators.android.facts import chosen, parse
from evaluators.android.phone import PHONE, Phone
from evaluators.artifact_facts import to_facts
from evaluators.emulation import setup
from evaluators.metrics import android
from evaluators.progress import TextProgress
from evaluators.report import html, markdown
from evaluators.runtimes import RUNTIMES
from evaluators.study import LatencySettings, Study
from evaluators.targets import adb, open_target

OUTPUTS = Path(__file__).parent / "adb_outputs"
MODEL = """
import numpy as np, torch
from torch import nn

def load():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 14 * 14, 10)).eval()

def part(seed, count):
    return {"input": np.random.default_rng(seed).standard_normal((count, 3, 16, 16)).astype(np.float32)}, np.arange(count) % 10

def calibration():
    return part(1, 8)

def test(limit):
    return part(2, limit)
"""
STUDY = """
name: phone
models: {plain: "model.py:load"}
calibration: "model.py:calibration"
test: "model.py:test"
samples: 6
recipes: [float32, int8-static]
runtimes: [executorch]
targets: [phone]
latency: {processes: 1, blocks: 5, runs: 9, seconds: 0, warmup_seconds: 0}
"""


def recorded(name: str) -> str:
    return (OUTPUTS / f"{name}.txt").read_text()


# What benchmark_model prints: recorded from builds of TensorFlow Lite from 2019 to 2.20 and of LiteRT, as their users published it


@pytest.mark.parametrize(
    ("name", "runs", "mean", "median", "p95", "init", "first", "warmup", "megabytes"),
    [
        ("tflite", 24, 42394.8, 42419, 42671, 207799, 90710, 11, 26.6797),
        ("tflite-old", 50, 2950340, None, None, 17187, 3512391, 1, 46.0859),
        ("tflite-oldest", 50, 115062, None, None, 1892, 91810, 6, None),
        ("litert", 2112, 464.545, 462, 478, 4480, 1030, 1055, 9.06),
        ("litert-logcat", None, 63743.2, None, None, 119515, 87112, 0, 55.4961),
    ],
)
def test_every_build_of_benchmark_model_is_read(name, runs, mean, median, p95, init, first, warmup, megabytes):
    found = benchmark_model.parse(recorded(name), "cpu")
    assert (found.runs, found.mean_us, found.median_us, found.p95_us, found.warmup_runs) == (runs, mean, median, p95, warmup)
    assert (found.init_us, found.first_us) == pytest.approx((init, first))
    assert found.memory_bytes == (None if megabytes is None else round(megabytes * 2**20))
    assert found.middle_us == (median or mean)


def test_what_a_delegate_took_is_said():
    assert benchmark_model.parse(recorded("tflite"), "cpu").coverage() == "TfLiteXNNPackDelegate took 2136 of 2168 nodes in 65 partitions"
    assert benchmark_model.parse(recorded("gpu"), "gpu").coverage() == "TfLiteGpuDelegateV2 took 58 of 58 nodes in 1 partition"
    assert benchmark_model.parse(recorded("litert-logcat"), "cpu").coverage() == ""


@pytest.mark.parametrize(
    ("name", "delegate", "words"),
    [
        ("nnapi-declined", "nnapi", "NNAPI delegate took no node"),
        ("tflite", "gpu", "does not say that the GPU delegate took a node"),  # a build without the delegate ignores its flag
        ("gpu", "nnapi", "does not say that the NNAPI delegate took a node"),
    ],
)
def test_a_time_of_the_cpu_is_not_a_delegates(name, delegate, words):
    output = recorded(name).replace("TfLiteGpuDelegateV2", "TfLiteXNNPackDelegate")
    with pytest.raises(Refused, match=words):
        benchmark_model.parse(output, delegate)


def test_a_benchmark_without_times_is_an_error_that_shows_its_words():
    with pytest.raises(CompressError, match="Failed to allocate tensors"):
        benchmark_model.parse(recorded("failed"), "cpu")


def test_blocks_on_a_phone_are_the_processes_that_a_study_asks_for():
    found = adb.Adb().latency(LatencySettings())
    assert (found.processes, found.blocks, found.runs, found.seconds) == (1, 6, 10, 0.25)
    alone = LatencySettings(processes=1, blocks=9, runs=5)
    assert adb.Adb().latency(alone) == alone


# What a phone says of itself


def test_facts_of_a_phone():
    phone = parse(recorded("phone"))
    assert phone.words() == (
        "Google Pixel 6, Tensor, arm64-v8a, Android 15, 4 x 1.80 GHz + 2 x 2.25 GHz + 2 x 2.80 GHz, thermal status 0 (none), "
        "battery 80%, 35.7 degrees, USB powered"
    )
    assert "core 6 at 1.83 of 2.80 GHz" in phone.throttled((6, 7)) and phone.throttled((0, 1)) == ""
    assert "severe" in parse(recorded("phone").replace("Status: 0", "Status: 3")).throttled((0,))


def test_cores_are_whole_clusters_that_hold_all_threads():
    cores = parse(recorded("phone")).cores
    assert chosen("big", 1, cores) == (6, 7) and chosen("big", 3, cores) == (4, 5, 6, 7) and chosen("little", 4, cores) == (0, 1, 2, 3)
    assert chosen("all", 1, cores) == () and chosen((2, 5), 1, cores) == (2, 5) and chosen("big", 1, ()) == ()


def test_a_device_that_says_nothing_is_said_to():
    assert parse("").words() == "Android device, thermal status not told"
    assert "frequencies cannot be read" in parse("/sys/devices/system/cpu/cpu0 /sys/devices/system/cpu/cpu1\n").words()


# States that a real adbd cannot be brought into: a server that speaks adb's host protocol


@pytest.fixture
def server(monkeypatch):
    """Says which devices adb's server shall see."""
    said = {}

    class Answer(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            size = self.request.recv(4)
            if not size:  # somebody asked whether a server runs
                return
            asked = self.request.recv(int(size, 16)).decode()
            text = "0029" if asked == "host:version" else "".join(f"{serial}\t{state}\n" for serial, state in said.items())
            self.request.sendall(b"OKAY" + f"{len(text):04x}{text}".encode())

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Answer) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(running.server_address[1]))
        yield said.update
        running.shutdown()


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("unauthorized", "accept 'Allow USB debugging'"),
        ("offline", "adb reconnect offline"),
        ("no permissions (missing udev rules?)", "udev rules"),
        ("recovery", "start Android"),
    ],
)
def test_a_device_that_takes_no_commands_is_listed_with_what_to_do(server, state, words):
    pytest.importorskip("adbutils")
    server({"R5CT123": state})
    (one,) = adb.listed()
    assert (one.name, one.reachable) == ("adb:R5CT123", False) and words in one.state
    with pytest.raises(Unreachable, match=words):
        open_target("adb:R5CT123").check()


def test_no_device_another_device_and_several_are_told_apart(server):
    pytest.importorskip("adbutils")
    with pytest.raises(Unreachable, match="adb sees no device: allow USB debugging"):
        open_target("adb").check()
    server({"A1": "device"})
    with pytest.raises(Unreachable, match="adb sees no device B2; it sees A1"):
        open_target("adb:B2").check()
    server({"B2": "unauthorized"})
    with pytest.raises(Unreachable, match=r"2 devices, so say which: adb:A1 \(device\), adb:B2 \(unauthorized\)"):
        open_target("adb").check()


def test_listing_starts_no_server(monkeypatch, tmp_path):
    pytest.importorskip("adbutils")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(port))
    (one,) = adb.listed()
    assert not one.reachable and "adb start-server" in one.state
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


# Settings


@pytest.mark.parametrize(
    ("settings", "runtime", "words"),
    [
        ("", "litert", "give its path as `benchmark_model` in targets.yaml"),
        ("", "executorch", "give its path as `executorch_runner`"),
        ("", "onnxruntime", "has no program that runs over adb"),
        (", executorch_runner: run, delegate: gpu", "executorch", "the delegate gpu is benchmark_model's"),
    ],
)
def test_what_a_phone_cannot_run_is_refused_with_where_to_get_it(tmp_path, settings, runtime, words):
    (tmp_path / "targets.yaml").write_text(f"phone: {{kind: adb, serial: A1{settings}}}\n")
    with pytest.raises(Refused, match=words):
        open_target("phone", tmp_path).refuse(runtime, 1)


def test_outputs_of_another_size_are_not_taken_for_samples():
    specs = (InputSpec("y", (1, 3), "float32"), InputSpec("z", (1,), "int64"))
    rows = [[np.arange(3, dtype=np.float32)[None], np.array([7])], [np.ones((1, 3), np.float32), np.array([8])]]
    data = executorch_runner.packed([{"y": a, "z": b} for a, b in rows], specs)
    found = executorch_runner.unpacked(data, 2, specs)
    assert all((a == b).all() and a.dtype == b.dtype for row, want in zip(found, rows, strict=True) for a, b in zip(row, want, strict=True))
    with pytest.raises(CompressError, match="39 bytes of outputs where 40 were expected"):
        executorch_runner.unpacked(data[1:], 2, specs)


# A real adbd


@pytest.fixture(scope="module")
def place():
    pytest.importorskip("adbutils")
    lacks = setup.missing() + ([] if shutil.which("unshare") else ["unshare"])
    if lacks:
        pytest.skip(f"a device needs {'; '.join(lacks)}")
    try:
        return made(print)
    except Unreachable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def devices(place, tmp_path_factory):
    from adbutils import adb_path

    try:
        devices = Devices(place, tmp_path_factory.mktemp("devices"), adb_path())
    except OSError as error:
        pytest.skip(str(error))
    before = os.environ.get("ANDROID_ADB_SERVER_PORT")
    os.environ["ANDROID_ADB_SERVER_PORT"] = str(devices.port)
    yield devices
    devices.close()
    os.environ.pop("ANDROID_ADB_SERVER_PORT") if before is None else os.environ.update(ANDROID_ADB_SERVER_PORT=before)


@pytest.fixture(scope="module")
def serial(devices):
    return devices.plug(0)


@pytest.fixture
def device(serial):
    device = connect(serial)
    yield device
    device.remove(FOLDER)


def script(folder: Path, text: str) -> Path:
    path = folder / "program"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_a_device_is_listed_with_its_facts(serial, devices):
    (one,) = adb.listed()
    assert one.name == f"adb:{serial}"
    assert one.reachable and "Debian on qemu" in one.state and "GHz" in one.state and "battery 80%, 30.1 degrees" in one.state
    assert connect("").serial == serial


def test_files_are_pushed_by_their_hash_and_once(device, tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(os.urandom(200_000))
    first = device.push(path)
    assert device.read(first) == path.read_bytes()
    device.checked(f"echo changed > {first}")
    assert device.push(path) == first and device.read(first) == b"changed\n"  # what lies under that name is not written again
    path.write_bytes(b"other")
    assert device.push(path) != first and len(device.checked(f"ls {FOLDER}").split()) == 2


def test_a_program_runs_on_the_cores_that_were_chosen(device, tmp_path):
    program = device.push(script(tmp_path, "taskset -p $$; uname -m; echo $1"))
    core = max(os.sched_getaffinity(0))
    output = device.run([program, "it's"], 30, [core])
    assert output.split("mask: ")[1].split()[0] == f"{1 << core:x}" and "aarch64" in output and "it's" in output


def test_a_program_that_fails_shows_its_last_words(device, tmp_path):
    program = device.push(script(tmp_path, "echo no such model >&2; exit 5"))
    with pytest.raises(CompressError, match="exit code 5: no such model"):
        device.run([program], 30)


def test_a_hanging_program_is_ended_on_the_device_at_its_limit(device, tmp_path):
    program = device.push(script(tmp_path, "echo begun; exec sleep 4242"))
    with pytest.raises(CompressError, match="its time limit of 1 s; it had printed: begun"):
        device.run([program], 1)
    assert "4242" not in device.checked("ps")


def test_a_full_disk_is_named(device, tmp_path):
    device.checked(f"mkdir -p {FOLDER}; dd if=/dev/zero of={FOLDER}/fill bs=1048576 count=1000 2> /dev/null; true")
    path = tmp_path / "model.tflite"
    path.write_bytes(os.urandom(1_000_000))
    with pytest.raises(CompressError, match="has no room for model.tflite: 1,000,000 bytes are needed, 0 are free"):
        device.push(path)
    assert device.checked(f"ls {FOLDER}").split() == ["fill"]


def litert(tmp_path: Path, output: str) -> tuple:
    """Arguments of the functions of evaluators/metrics/android.py for a file that nobody reads, and a targets.yaml with a program that prints `output`."""
    (tmp_path / "model.tflite").write_bytes(b"model")
    (tmp_path / "output").write_text(recorded(output))
    contents = Contents("tflite", (InputSpec("x", (1, 4), "float32"),), (), (), {}, {})
    artifact = Artifact(tmp_path / "model.tflite", "litert", "float32", "0", contents, Ledger(5, 0, 0, 0, 0, 5), (), "0")
    script(tmp_path, f"echo \"$@\" >> /data/asked; cat <<'END'\n{recorded(output)}\nEND")
    return to_facts(artifact, "model.tflite"), str(tmp_path), "litert", 1, str(tmp_path)


def phone(serial: str, folder: Path, **settings) -> adb.Adb:
    programs = {"benchmark_model": folder / "program"}
    return adb.Adb(**({"serial": serial, "cool_seconds": 0, "patience_seconds": 0} | programs | settings))


@pytest.mark.parametrize(("output", "middle", "megabytes"), [("tflite-old", 2_950_340_000, 46.0859), ("litert", 462_000, 9.06)])
def test_both_dialects_of_benchmark_model_end_to_end(device, devices, tmp_path, output, middle, megabytes):
    arguments = litert(tmp_path, output)
    with phone(device.serial, tmp_path).start(1) as worker:
        facts, arrays = worker.call("evaluators.metrics.android:measure", *arguments, 8, limit=60).value
        assert (facts["peak_bytes"], facts["baseline_bytes"], arrays) == (round(megabytes * 2**20), 0, {})
        assert any("took" in note or "does not say" in note for note in facts["notes"]) and any("accuracy" in note for note in facts["notes"])
        assert any(("median" if output != "tflite-old" else "mean") in note for note in facts["notes"])
        loaded = worker.call("evaluators.metrics.android:load", *arguments, limit=60).value
        assert loaded == {"cores": [sorted(os.sched_getaffinity(0))[:2][-1]]}
        warm = worker.call("evaluators.metrics.android:warm_up", 0.5, limit=60).value
        assert warm["estimate_ns"] == middle and warm["steady"]
        assert worker.call("evaluators.metrics.android:block", 44, limit=60).value.tolist() == [middle]
    asked = (devices.data(0) / "asked").read_text().splitlines()
    assert "--num_runs=50" in asked[-3] and "--warmup_min_secs=0.5" in asked[-2] and "--num_runs=44" in asked[-1] and "--use_gpu" not in asked[-1]


def test_a_delegate_is_asked_for_and_its_absence_refused(device, devices, tmp_path):
    arguments = litert(tmp_path, "tflite")
    with phone(device.serial, tmp_path, delegate="gpu").start(1) as worker:
        outcome = worker.call("evaluators.metrics.android:measure", *arguments, 8, limit=60)
    assert outcome.status == "refused" and "may be the CPU" in outcome.cause
    assert "--use_gpu=true" in (devices.data(0) / "asked").read_text().splitlines()[-1]


def test_a_throttled_phone_is_not_measured(device, devices, tmp_path):
    arguments, status = litert(tmp_path, "tflite"), devices.data(0) / "dumpsys/thermalservice"
    status.write_text("Thermal Status: 2\n")
    try:
        with phone(device.serial, tmp_path).start(1) as worker:
            outcome = worker.call("evaluators.metrics.android:measure", *arguments, 8, limit=60)
        assert outcome.status == "failed" and "throttled" in outcome.cause and "thermal status is 2 (moderate)" in outcome.cause
    finally:
        status.write_text("Thermal Status: 0\n")
    script(tmp_path, "echo 'Thermal Status: 1' > /data/dumpsys/thermalservice")
    try:
        with pytest.raises(Unreachable, match="throttled while it was measured"):
            Phone(phone(device.serial, tmp_path), 1).run([device.push(tmp_path / "program")])
    finally:
        status.write_text("Thermal Status: 0\n")


def test_the_runner_gives_outputs_of_real_samples_and_every_time(device, place, tmp_path, monkeypatch):
    pytest.importorskip("executorch.exir")
    (tmp_path / "model.py").write_text(MODEL)
    inputs, _ = references.load_data("model.py:calibration", tmp_path)
    small = compress.compress(references.load_model("model.py:load", tmp_path), "int8-static", calibration=inputs)
    artifact = exporters.export(small, tmp_path / "a.pte")
    dataset.prepare("model.py:test", str(tmp_path), 3, str(tmp_path / "data"))
    monkeypatch.setenv(PHONE, phone(device.serial, tmp_path, executorch_runner=place / "runner").model_dump_json())
    arguments = to_facts(artifact, "a.pte"), str(tmp_path), "executorch", 1, str(tmp_path / "data")
    facts, arrays = android.measure(*arguments, 3)
    session = RUNTIMES.load("executorch").load(artifact, 1)
    wanted = np.stack([session.run(sample)[0] for sample in dataset.stored_samples(tmp_path / "data", artifact.contents.inputs)])
    assert arrays["output_0"].shape == wanted.shape and arrays["output_0"].dtype == wanted.dtype and len(arrays["answers"]) == 3
    assert np.abs(arrays["output_0"] - wanted).max() <= 0.02 * np.abs(wanted).max()  # one step of an int8 activation is about 1% of its range
    assert facts["peak_bytes"] > facts["baseline_bytes"] > 0
    assert android.load(*arguments)["cores"] and android.warm_up(0)["first_ms"] > 0
    times = android.block(7)
    assert times.shape == (7,) and times.dtype == np.int64 and times.min() > 0
    broken = tmp_path / "broken.pte"
    broken.write_bytes(b"no program")
    with pytest.raises(CompressError, match="ExecuTorch does not load the program"):
        android.measure(to_facts(artifact, "broken.pte"), *arguments[1:], 3)


@pytest.mark.slow
def test_executorch_end_to_end(serial, devices, place, tmp_path):
    pytest.importorskip("executorch.exir")
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "study.yaml").write_text(STUDY)
    (tmp_path / "targets.yaml").write_text(f"phone: {{kind: adb, serial: '{serial}', executorch_runner: {place / 'runner'}, samples: 4, cool_seconds: 0}}\n")
    results = evaluators.compare(tmp_path / "study.yaml", tmp_path / "out", progress=TextProgress(StringIO()))
    arms = {arm.recipe: arm for arm in results.arms}
    for recipe, arm in arms.items():
        assert arm.status == "done", arm.trace or arm.cause
        assert (arm.agreement.samples, arm.accuracy.count, arm.latency.count) == (4, 4, 45)
        # float kernels of another architecture add in another order; one step of an int8 activation is about 1% of its range
        assert arm.agreement.max_error <= (1e-4 if recipe == "float32" else 0.02) * arm.agreement.largest
        assert arm.memory.peak_bytes > arm.memory.baseline_bytes > 0 and arm.latency.median_ms.value > 0 and arm.latency.load_ms > 0
    assert arms["int8-static"].latency.speedup and arms["float32"].latency.noise
    assert "Debian on qemu" in results.environment["Device Debian on qemu"] and "Phone over adb" in results.protocol
    assert "Phone over adb" in html.page(results) and "Phone over adb" in markdown.page(results, {})
    assert not (devices.data(0) / "local/tmp/compresskit").exists()
    assert connect(serial).shell(f"ls {FOLDER}").code != 0


def test_two_devices_are_told_apart_and_one_that_is_unplugged_is_named(devices, device, tmp_path):
    other = devices.plug(1)
    with pytest.raises(Unreachable, match="adb sees 2 devices, so say which"):
        connect("")
    lost = connect(other)
    program = lost.push(script(tmp_path, "sleep 60"))
    threading.Timer(1.0, devices.unplug, [1]).start()
    started = time.monotonic()
    with pytest.raises(Unreachable, match=f"{other} was lost"):
        lost.run([program], 60)
    assert time.monotonic() - started < 30
    assert connect(device.serial).checked("uname -m") == "aarch64\n"


def test_a_device_that_is_not_there_ends_a_study_before_any_work(devices, serial, tmp_path):
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "study.yaml").write_text(STUDY)
    (tmp_path / "targets.yaml").write_text("phone: {kind: adb, serial: nobody}\n")
    with pytest.raises(Unreachable, match=f"adb sees no device nobody; it sees {serial}"):
        Study.load(tmp_path / "study.yaml")
