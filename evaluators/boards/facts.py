"""What a board says of itself, from inside a measuring process there."""

import os
import platform
from glob import glob
from typing import Any

from compress.errors import CompressError
from evaluators.environment import cpu_flags, cpu_model, read, versions
from evaluators.runtimes import RUNTIMES

MODELS = ("/proc/device-tree/model", "/sys/class/dmi/id/product_name")


def facts() -> dict[str, Any]:
    """`runtimes` holds versions by runtime, or in words why there is none."""
    return {
        "model": next(filter(None, (read(path).strip("\0") for path in MODELS)), cpu_model()),
        "cpu": cpu_model(),
        "features": cpu_flags(),
        "cores": physical_cores(),
        "affinity": sorted(os.sched_getaffinity(0)),
        "governor": read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "temperature": temperature(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: number for name, number in versions().items() if number != "not installed"},
        "runtimes": {name: runtime(name) for name in RUNTIMES},
    }


def runtime(name: str) -> dict[str, str] | str:
    try:
        return RUNTIMES.load(name).versions()
    except (ImportError, CompressError) as error:
        return str(error)


def temperature() -> float | None:
    """Degrees Celsius of the first thermal zone, which is the processor's on the usual boards; None where there is none."""
    found = read("/sys/class/thermal/thermal_zone0/temp")
    return int(found) / 1000 if found.lstrip("-").isdigit() else None


def physical_cores() -> int:
    """Physical cores that this process may use, as `evaluators.environment.cores` says it where there is psutil."""
    all_of_them = {read(path) for path in glob("/sys/devices/system/cpu/cpu[0-9]*/topology/core_cpus_list")}
    usable = len(os.sched_getaffinity(0))
    return min(usable, len(all_of_them) or usable)
