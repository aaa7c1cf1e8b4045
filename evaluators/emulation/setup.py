"""Sets the emulated machine up in a cache folder: qemu, Debian's arm64 Python, the aarch64 builds of the runtimes, and the counting plugin.

Everything is made in a temporary folder, tried, and renamed at the end: a folder under its own name is whole.
"""

import fcntl
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from importlib.util import find_spec
from pathlib import Path
from tempfile import mkdtemp

from compress.errors import CompressError, Unreachable
from evaluators.emulation import debian
from evaluators.emulation.guest import COUNTS
from evaluators.emulation.launch import launch
from evaluators.emulation.profiles import PROFILES
from evaluators.store import identity

CACHE = "COMPRESSKIT_CACHE"
HERE = files("evaluators.emulation")
COUNTER, WHEELS, EXECUTORCH = HERE / "counter.c", HERE / "wheels.txt", HERE / "executorch.cpp"
MADE = "made.json"
ARM64 = ("python3.11", "libstdc++6", "libgomp1")
HOST = ("qemu-user", "g++-12-aarch64-linux-gnu")
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64", "any")
TRY = "import numpy, onnxruntime, ai_edge_litert.interpreter, evaluators.runtimes.executorch_native as native, os; native.interface(); os.getppid()"


def cache_folder() -> Path:
    """Where set up things are kept: $COMPRESSKIT_CACHE, or compresskit/ in the user's cache (XDG)."""
    own = os.environ.get(CACHE)
    return Path(own).absolute() if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "compresskit"


def home() -> Path:
    """The folder of the machine that this version sets up; another version has another."""
    return cache_folder() / f"arm64-{recipe()}"


@cache
def recipe() -> str:
    """Stands for everything that decides what is set up, except for the newest security fixes of Debian."""
    sources = (HERE / name for name in ("counter.c", "executorch.cpp", "wheels.txt", "profiles.py", "setup.py"))
    return identity(debian.SUITE, *(source.read_text(encoding="utf-8") for source in sources))[:12]


def made() -> dict | None:
    """What was set up: versions of packages and wheels; None where nothing is."""
    path = home() / MADE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def wheels() -> dict[str, str]:
    """Versions of the guest's Python packages by name."""
    return dict(re.findall(r"^(\S+)==(\S+)", WHEELS.read_text(encoding="utf-8"), re.MULTILINE))


def compiler() -> str | None:
    return shutil.which("cc") or shutil.which("gcc")


def missing() -> list[str]:
    """What this machine lacks to set it up, in words."""
    if not sys.platform.startswith("linux"):
        return [f"Linux: qemu runs programs of another Linux machine, and this is {sys.platform}"]
    if platform.machine() != "x86_64":
        return [f"an x86-64 machine, and this is {platform.machine()}"]
    own = [] if compiler() else ["a C compiler (apt-get install gcc)"]
    return debian.missing() + own + ([] if find_spec("pip") else ["pip, in this Python environment"])


def set_up(tell: Callable[[str], None]) -> Path:
    """Sets the machine up unless it is there; its folder. Unreachable says what is missing."""
    with alone():
        if made() is not None:
            return home()
        lacks = missing()
        if lacks:
            raise Unreachable(f"the emulated arm64 machine needs {'; '.join(lacks)}")
        work = Path(mkdtemp(prefix=".arm64-", dir=cache_folder()))
        try:
            build(work, tell)
            os.replace(work, home())
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
    return home()


@contextmanager
def alone() -> Iterator[None]:
    """One set-up at a time; what a killed one left is removed."""
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".arm64.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in folder.glob(".arm64-*"):
            shutil.rmtree(left, ignore_errors=True)
        yield


def build(work: Path, tell: Callable[[str], None]) -> None:
    root, host = work / "root", work / "host"
    packages = debian.unpack(ARM64, "arm64", work / "apt", root, tell)
    qemu = debian.unpack(HOST, debian.native(), work / "apt", host, tell)["qemu-user"]
    tell(f"aarch64 wheels: {', '.join(f'{name} {version}' for name, version in wheels().items())}")
    install_wheels(root / "opt/site")
    tell("the counting plugin, and ExecuTorch's C interface")
    debian.run(compiler(), "-O2", "-shared", "-fPIC", "-o", str(work / "counter.so"), str(COUNTER), failure=CompressError)
    wheel = root / "opt/site/executorch/lib"
    cross_compile(host, root, EXECUTORCH, "-fPIC", "-shared", "-o", str(root / "opt/executorch.so"), f"-L{wheel}", "-lexecutorch")
    trim(host)
    for name in PROFILES:
        lay_out(work, name)
    tell("a first run")
    try_out(work, next(iter(PROFILES)))
    (work / MADE).write_text(json.dumps({"qemu": qemu, "wheels": wheels(), "packages": packages}, indent=1), encoding="utf-8")


def install_wheels(site: Path) -> None:
    """Wheels from the index that pip is configured with; their hashes are those of wheels.txt."""
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    abi = ["--python-version", "3.11", "--implementation", "cp", "--abi", "cp311", "--abi", "abi3", "--abi", "none"]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-compile", "--only-binary", ":all:"]
    debian.run(*pip, "--require-hashes", "--target", str(site), *platforms, *abi, "-r", str(WHEELS))


def cross_compile(host: Path, root: Path, source: Traversable, *how: str) -> None:
    """Compiles against the guest's ExecuTorch, by the cross compiler that was unpacked into `host`."""
    parts, wheel = host / "usr/aarch64-linux-gnu", root / "opt/site/executorch"
    system = [parts / "include/c++/12", parts / "include/c++/12/aarch64-linux-gnu", parts / "include"]
    places = [f"--sysroot={host}", f"-B{host / 'usr/lib/gcc-cross/aarch64-linux-gnu/12'}", *(word for folder in system for word in ("-isystem", str(folder)))]
    own = [f"-I{wheel / 'include'}", f"-I{wheel / 'include/executorch/runtime/core/portable_type/c10'}", "-DC10_USING_CUSTOM_GENERATED_MACROS"]
    libraries = f"LD_LIBRARY_PATH={host / 'usr/lib/x86_64-linux-gnu'}"  # the compiler's own; libc stays this system's
    compiler = [libraries, str(host / "usr/bin/aarch64-linux-gnu-g++-12")]
    debian.run("env", *compiler, *places, *own, "-O2", "-w", "-std=c++17", str(source), *how, failure=CompressError)


def trim(host: Path) -> None:
    """Takes out what no run needs: the compiler, the other machines of qemu, documentation."""
    for folder in ("usr/aarch64-linux-gnu", "usr/lib/gcc-cross", "usr/share"):
        shutil.rmtree(host / folder)
    for program in set((host / "usr/bin").iterdir()) - {host / "usr/bin/qemu-aarch64"}:
        program.unlink()


def lay_out(work: Path, profile: str) -> None:
    """A profile's root: links to what all share, and the files by which libraries know the CPU."""
    root = work / "profiles" / profile
    cpus = root / "sys/devices/system/cpu"
    cpus.mkdir(parents=True)
    (root / "proc").mkdir()
    for shared in ("usr", "lib", "opt"):
        (root / shared).symlink_to(f"../../root/{shared}")
    (root / "proc/cpuinfo").write_text(PROFILES[profile].cpuinfo(), encoding="ascii")
    for name in ("possible", "present", "online"):
        (cpus / name).write_text("0\n", encoding="ascii")


def try_out(work: Path, profile: str) -> None:
    """Imports the runtimes and reads a count, which also compiles their Python files for all later runs."""
    trial = launch(work, profile)
    done = subprocess.run([*trial.python, "-c", TRY], env=trial.environment, capture_output=True, text=True)
    counted = Path(trial.environment[COUNTS]).is_file() and Path(trial.environment[COUNTS]).read_text(encoding="ascii")
    trial.clean_up()
    if done.returncode or not counted:
        raise CompressError(f"{PROFILES[profile].title} does not run under qemu here: {done.stderr.strip()[-2000:] or f'exit code {done.returncode}'}")
