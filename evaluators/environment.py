"""Where a measurement ran, as far as it explains a time. No user names, host names or absolute paths."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from evaluators.worker import THREAD_VARIABLES

FLAGS = (
    *("sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_int8", "amx_bf16"),
    *("asimd", "asimdhp", "fphp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme"),
)
PACKAGES = {
    "tensorflow": ("tensorflow", "keras", "ai-edge-litert", "litert-torch", "litert-quantizer"),
    "torch": ("torch", "torchao", "litert-torch"),
    "onnx": ("onnx", "onnxruntime", "onnxscript", "onnx2torch"),
    "executorch": ("executorch", "torch", "torchao"),
}
"""Packages of each extra whose version can change what is measured."""


def versions(*extras: str) -> dict[str, str]:
    """Installed versions of the packages of some extras, or of all. Nothing is imported."""
    found = {}
    for package in dict.fromkeys(["numpy", *(p for extra in extras or PACKAGES for p in PACKAGES.get(extra, ()))]):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def environment() -> dict[str, str]:
    """Facts in words by title: what a reader needs to judge a time or to repeat it."""
    import psutil  # which a board need not have

    memory = psutil.virtual_memory()
    return {
        "CPU": cpu_model(),
        "CPU features": " ".join(cpu_flags()) or "not told by this system",
        "Cores": f"{cores()} usable of {psutil.cpu_count(logical=False) or '?'} physical and {os.cpu_count()} logical; simultaneous multithreading {smt()}",
        "Affinity": ", ".join(map(str, sorted(os.sched_getaffinity(0)))),
        "Governor": read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or "not told by this system",
        "CPU quota": quota(),
        "Load average at start": f"{os.getloadavg()[0]:.2f}",
        "Memory": f"{memory.total / 2**30:.1f} GiB, {memory.available / 2**30:.1f} GiB available",
        "System": f"{platform.system()} {platform.release()} {platform.machine()}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "Packages": ", ".join(f"{name} {number}" for name, number in versions().items() if number != "not installed"),
        "Thread variables": " ".join(f"{name}={os.environ[name]}" for name in THREAD_VARIABLES if name in os.environ) or "none set",
    }


def cores() -> int:
    """Physical cores that this process may use."""
    import psutil

    return max(1, min(len(os.sched_getaffinity(0)), psutil.cpu_count(logical=False) or 1))


def read(path: str) -> str:
    """A one-line system file, "" where this system has none."""
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def cpu_facts() -> dict[str, str]:
    lines = (line.partition(":") for line in read("/proc/cpuinfo").split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}


def cpu_model() -> str:
    facts = cpu_facts()
    part = f"ARM part {facts['CPU part']}" if "CPU part" in facts else platform.machine()
    return facts.get("model name") or part


def cpu_flags() -> list[str]:
    facts = cpu_facts()
    present = set((facts.get("flags") or facts.get("Features") or "").split())
    return [flag for flag in FLAGS if flag in present]


def smt() -> str:
    return {"1": "on", "0": "off"}.get(read("/sys/devices/system/cpu/smt/active"), "unknown")


def quota() -> str:
    """The container's limit on CPU time (cgroup v2)."""
    limit, _, period = read("/sys/fs/cgroup/cpu.max").partition(" ")
    return f"{int(limit) / int(period):g} cores" if limit.isdigit() else "none"
