"""Targets as documents, and what setting up the emulated one must not do: change the machine, trust what is not signed, leave half of itself behind."""

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from compress.errors import CompressError, Refused, Unreachable
from evaluators.emulation import debian, guest, setup
from evaluators.emulation.profiles import PROFILES
from evaluators.targets import TARGETS, open_target

ROOT = Path(__file__).parents[1]
needs_tools = pytest.mark.skipif(bool(setup.missing()), reason=f"the emulated machine needs {'; '.join(setup.missing())}")

# class, instruction word and text, as binutils 2.40 assembled them
WORDS = """
dot 4e829420 sdot v0.4s, v1.16b, v2.16b
dot 2e859483 udot v3.2s, v4.8b, v5.8b
dot 4fa2e820 sdot v0.4s, v1.16b, v2.4b[3]
dot 6fbde3df udot v31.4s, v30.16b, v29.4b[1]
dot 4e829c20 usdot v0.4s, v1.16b, v2.16b
dot 4f82f820 usdot v0.4s, v1.16b, v2.4b[2]
dot 4f02f020 sudot v0.4s, v1.16b, v2.4b[0]
mmla 4e82a420 smmla v0.4s, v1.16b, v2.16b
mmla 6e82a420 ummla v0.4s, v1.16b, v2.16b
mmla 4e82ac20 usmmla v0.4s, v1.16b, v2.16b
int_mla 0e228020 smlal v0.8h, v1.8b, v2.8b
int_mla 4e628020 smlal2 v0.4s, v1.8h, v2.8h
int_mla 2e628020 umlal v0.4s, v1.4h, v2.4h
int_mla 6ea2c020 umull2 v0.2d, v1.4s, v2.4s
int_mla 4e629420 mla v0.8h, v1.8h, v2.8h
int_mla 0f722020 smlal v0.4s, v1.4h, v2.h[3]
int_mla 0f72a020 smull v0.4s, v1.4h, v2.h[3]
int_mla 6fa20020 mla v0.4s, v1.4s, v2.s[1]
fmla 4e22cc20 fmla v0.4s, v1.4s, v2.4s
fmla 4e62cc20 fmla v0.2d, v1.2d, v2.2d
fmla 4f821020 fmla v0.4s, v1.4s, v2.s[0]
fmla 4e420c20 fmla v0.8h, v1.8h, v2.8h
fmla 4f321820 fmla v0.8h, v1.8h, v2.h[7]
fmla 1f020c20 fmadd s0, s1, s2, s3
ldst 3dc00020 ldr q0, [x1]
ldst a8c107e0 ldp x0, x1, [sp], #16
ldst 4cdf2000 ld1 {v0.16b-v3.16b}, [x0], #64
ldst b8200041 ldadd w0, w1, [x2]
branch 14000000 b
branch 94000000 bl
branch b4000000 cbz x0
branch 37180000 tbnz w0, #3
branch 54000001 b.ne
branch d61f0060 br x3
branch d65f03c0 ret
total d503201f nop
total d53bd040 mrs x0, tpidr_el0
total d4000001 svc #0x0
total 4ea28420 add v0.4s, v1.4s, v2.4s
total 4ea29c20 mul v0.4s, v1.4s, v2.4s
total 4e606820 sadalp v0.4s, v1.8h
total 6ea29420 mls v0.4s, v1.4s, v2.4s
total 0e629020 sqdmlal v0.4s, v1.4h, v2.4h
total 6e42fc20 bfdot v0.4s, v1.8h, v2.8h
total 4f62f020 bfdot v0.4s, v1.8h, v2.2h[1]
total 6e42ec20 bfmmla v0.4s, v1.8h, v2.8h
total 4ea2cc20 fmls v0.4s, v1.4s, v2.4s
total 4e22dc20 fmulx v0.4s, v1.4s, v2.4s
total 0e22e020 pmull v0.8h, v1.8b, v2.8b
total 9b020c20 madd x0, x1, x2, x3
"""


# Documents


def test_a_target_is_named_by_kind_by_argument_or_by_the_file_beside_the_study(tmp_path):
    (tmp_path / "targets.yaml").write_text("phone-core: {kind: arm64, profile: cortex-a53, samples: 5}\n")
    assert open_target("cpu", tmp_path).untimed == ""
    assert open_target("arm64:armv8.6", tmp_path).profile == "armv8.6"
    own = open_target("phone-core", tmp_path)
    assert (own.profile, own.sample_count(600), own.sample_count(3)) == ("cortex-a53", 5, 3)
    assert own.identity() != open_target("arm64:cortex-a53").identity()


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("gpu", "", "no target 'gpu'"),
        ("arm46:cortex-a76", "", "did you mean 'arm64'"),
        ("cpu:3", "", "takes no argument"),
        ("cuda:first", "", "device: Input should be a valid integer"),
        ("arm64", "", "profile: Field required"),
        ("arm64:cortex-a77", "", "'cortex-a76'"),
        ("mine", "mine: {kind: arm64, profil: cortex-a76}", "profil: Extra inputs"),
        ("mine", "mine: {kind: arm64, profile: cortex-a76, samples: 0}", "samples: "),
        ("mine", "mine: {profile: cortex-a76}", "no target ''"),
        ("mine", "mine: cortex-a76", "mine: Input should be"),
        ("mien", "mine: {kind: cpu}", "did you mean 'mine'"),
    ],
)
def test_a_target_that_cannot_be_one_is_named(tmp_path, name, text, words):
    if text:
        (tmp_path / "targets.yaml").write_text(text)
    with pytest.raises(CompressError, match=re.escape(words)):
        open_target(name, tmp_path)


@pytest.mark.parametrize("kind", list(TARGETS))
def test_every_kind_can_be_listed_and_opened_by_the_names_that_it_lists(kind):
    for one in TARGETS.load(kind).listed():
        assert one.name.partition(":")[0] == kind and one.state
        target = open_target(one.name)
        assert target.metrics and target.title and set(one.runtimes) <= set(target.runtimes())


def test_the_emulated_target_refuses_what_it_cannot_run():
    target = open_target("arm64:cortex-a76")
    with pytest.raises(Refused, match="torch is not set up"):
        target.refuse("torch", 1)
    target.refuse("litert", target.thread_count(4))
    assert target.thread_count(4) == 1


def test_this_cpu_can_be_several_targets(tmp_path):
    last = max(os.sched_getaffinity(0))
    (tmp_path / "targets.yaml").write_text(f"last: {{kind: cpu, threads: 1, cores: [{last}]}}\nnone: {{kind: cpu, cores: [9999]}}\n")
    target = open_target("last", tmp_path)
    assert target.thread_count(2) == 1 and target.side_by_side(1) == 1 and target.identity() != open_target("cpu").identity()
    with target.start(1) as worker:
        assert worker.call("os:sched_getaffinity", 0, limit=60).value == {last}
    with pytest.raises(Refused, match="1 core"):
        target.refuse("litert", 2)
    with pytest.raises(Unreachable, match="9999"):
        open_target("none", tmp_path).check()


def test_a_target_that_is_not_set_up_ends_a_study_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setenv(setup.CACHE, str(tmp_path))
    with pytest.raises(Unreachable, match="compresskit targets setup arm64"):
        open_target("arm64:cortex-a76").check()


# Setting up


def test_the_guest_has_the_versions_that_this_project_is_tested_with():
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert setup.wheels() and {name: pinned[name] for name in setup.wheels()} == setup.wheels()
    assert setup.WHEELS.read_text().count("--hash=sha256:") == len(setup.wheels())


def command(*words: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "compress", *words], cwd=ROOT, capture_output=True, text=True, env=os.environ | environment)


def test_a_machine_without_the_tools_is_told_which_are_missing(tmp_path):
    found = command("targets", "setup", "arm64", PATH=str(tmp_path), COMPRESSKIT_CACHE=str(tmp_path / "cache"))
    assert found.returncode == 2
    assert all(tool in found.stderr for tool in ("apt-get", "dpkg-deb", "a C compiler"))


def test_targets_can_be_read_by_programs(tmp_path):
    (tmp_path / "targets.yaml").write_text("one-core: {kind: cpu, threads: 1}\n")
    found = json.loads(command("targets", "--json", "--folder", str(tmp_path), COMPRESSKIT_CACHE=str(tmp_path)).stdout)
    reachable = {one["name"]: one["reachable"] for one in found}
    assert reachable.items() >= {"cpu": True, **{f"arm64:{name}": False for name in PROFILES}, "one-core": True}.items()
    assert {name.partition(":")[0] for name in reachable} == {*TARGETS, "one-core"}
    state = next(one["state"] for one in found if one["name"].startswith("arm64:"))
    assert "setup arm64" in state or "needs" in state


@needs_tools
def test_a_mirror_that_debian_did_not_sign_is_refused(tmp_path, monkeypatch):
    packages = tmp_path / "mirror/dists" / debian.SUITE / "main/binary-arm64"
    packages.mkdir(parents=True)
    (packages / "Packages").write_text("Package: python3.11\nArchitecture: arm64\nVersion: 1\nFilename: evil.deb\n")
    (packages.parents[1] / "Release").write_text(f"Suite: {debian.SUITE}\nCodename: {debian.SUITE}\nComponents: main\nArchitectures: arm64\n")
    monkeypatch.setenv(debian.MIRROR, f"file://{tmp_path}/mirror")
    with pytest.raises(Unreachable, match="not signed"):
        debian.unpack(("python3.11",), "arm64", tmp_path / "work", tmp_path / "root", lambda text: None)
    assert not (tmp_path / "root").exists()


@needs_tools
def test_a_set_up_that_is_killed_leaves_nothing_that_is_trusted(tmp_path, monkeypatch):
    monkeypatch.setenv(setup.CACHE, str(tmp_path))
    words, quiet = [sys.executable, "-m", "compress", "targets", "setup", "arm64"], subprocess.DEVNULL
    process = subprocess.Popen(words, cwd=ROOT, stdout=quiet, stderr=quiet, start_new_session=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".arm64-*/apt/sources.list")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert list(tmp_path.glob(".arm64-*/")) and setup.made() is None
    with setup.alone():
        assert [path.name for path in tmp_path.iterdir()] == [".arm64.lock"]


# The counting plugin


@pytest.mark.skipif(not setup.compiler(), reason="no C compiler")
def test_instructions_are_counted_in_their_class(tmp_path):
    undefined = re.findall(r"^extern .*?(qemu_plugin_\w+)\(", setup.COUNTER.read_text(), re.MULTILINE)
    stubs = [f"-Wl,--defsym={name}=0" for name in undefined]
    subprocess.run([setup.compiler(), "-shared", "-fPIC", "-o", str(tmp_path / "counter.so"), str(setup.COUNTER), *stubs], check=True)
    library = ctypes.CDLL(str(tmp_path / "counter.so"))
    rows = [line.split(None, 2) for line in WORDS.strip().splitlines()]
    found = {text: guest.CLASSES[library.class_of(ctypes.c_uint32(int(word, 16)))] for _, word, text in rows}
    assert found == {text: name for name, _, text in rows}
