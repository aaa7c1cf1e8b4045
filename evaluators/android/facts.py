"""What a device says of itself: model, Android, cores with their frequencies, heat and battery."""

import re
from dataclasses import dataclass
from typing import Literal

PROPERTIES = {
    "maker": "ro.product.manufacturer",
    "model": "ro.product.model",
    "chip": "ro.soc.model",
    "abi": "ro.product.cpu.abi",
    "android": "ro.build.version.release",
    "build": "ro.build.fingerprint",
}
CORES = "/sys/devices/system/cpu/cpu[0-9]*"
HEAT = f"echo {CORES}; grep -H . {CORES}/cpufreq/cpuinfo_max_freq {CORES}/cpufreq/scaling_max_freq; dumpsys thermalservice | grep 'Thermal Status'"
ASK = f"getprop | grep -F '[ro.'; {HEAT}; dumpsys battery | grep -E 'level:|temperature:|powered: true'"
"""One command for all of it, HEAT for what changes while a phone works. What a device does not know, it does not print."""
THERMAL = ("none", "light", "moderate", "severe", "critical", "emergency", "shutdown")  # PowerManager.THERMAL_STATUS_*


@dataclass(frozen=True)
class Core:
    """Frequencies in kHz, 0 where they cannot be read. `allowed` is below `largest` while the system holds the core back."""

    number: int
    largest: int
    allowed: int


@dataclass(frozen=True)
class Facts:
    """Texts are "" and numbers None where the device does not say."""

    maker: str
    model: str
    chip: str
    abi: str
    android: str
    build: str
    cores: tuple[Core, ...]
    thermal: int | None
    battery: str

    @property
    def name(self) -> str:
        return " ".join(filter(None, (self.maker, self.model))) or "Android device"

    def words(self) -> str:
        """One line of everything that explains a time."""
        heat = "thermal status not told" if self.thermal is None else f"thermal status {self.thermal} ({THERMAL[min(self.thermal, 6)]})"
        parts = (self.name, self.chip, self.abi, f"Android {self.android}" if self.android else "", clusters(self.cores), heat, self.battery)
        return ", ".join(filter(None, parts))

    def lasting(self) -> list:
        """JSON of what does not change from one minute to the next."""
        return [self.maker, self.model, self.chip, self.abi, self.android, self.build, [(core.number, core.largest) for core in self.cores]]

    def throttled(self, used: tuple[int, ...]) -> str:
        """Why times taken now on these cores (none: any) would be those of a phone that is held back; "" where they would not."""
        if self.thermal:
            return f"its thermal status is {self.thermal} ({THERMAL[min(self.thermal, 6)]})"
        held = [core for core in self.cores if core.allowed < core.largest and (not used or core.number in used)]
        return f"it holds back {', '.join(f'core {c.number} at {c.allowed / 1e6:.2f} of {c.largest / 1e6:.2f} GHz' for c in held)}" if held else ""


def parse(output: str) -> Facts:
    """The facts in what ASK or HEAT printed."""
    said = dict(re.findall(r"^\[(ro\.\S+)\]: \[(.*)\]\s*$", output, re.MULTILINE))
    speeds = {(int(number), name): int(value) for number, name, value in re.findall(r"/cpu(\d+)/cpufreq/(\w+)_max_freq:(\d+)", output)}
    numbers = sorted(map(int, re.findall(r"/sys/devices/system/cpu/cpu(\d+)(?=\s)", output)))
    cores = tuple(Core(number, speeds.get((number, "cpuinfo"), 0), speeds.get((number, "scaling"), 0)) for number in numbers)
    heat = re.search(r"Thermal Status: (\d+)", output)
    thermal = int(heat[1]) if heat else None
    texts = {name: said.get(key, "") for name, key in PROPERTIES.items()}
    return Facts(**texts, cores=cores, thermal=thermal, battery=battery(output))


def battery(output: str) -> str:
    """ "battery 80%, 35.7 degrees, USB powered"."""
    level, tenths = (re.search(rf"^\s*{name}: (\d+)", output, re.MULTILINE) for name in ("level", "temperature"))
    source = re.search(r"(\w+) powered: true", output)
    parts = (f"battery {level[1]}%" if level else "", f"{int(tenths[1]) / 10:.1f} degrees" if tenths else "", f"{source[1]} powered" if source else "")
    return ", ".join(filter(None, parts))


def clusters(cores: tuple[Core, ...]) -> str:
    """ "4 x 1.80 GHz + 3 x 2.40 GHz + 1 x 2.80 GHz"."""
    if not all(core.largest for core in cores):
        return f"{len(cores)} cores, whose frequencies cannot be read" if cores else ""
    speeds = sorted({core.largest for core in cores})
    return " + ".join(f"{sum(core.largest == speed for core in cores)} x {speed / 1e6:.2f} GHz" for speed in speeds)


def chosen(wanted: Literal["big", "little", "all"] | tuple[int, ...], threads: int, cores: tuple[Core, ...]) -> tuple[int, ...]:
    """Numbers of the cores to run on: whole clusters, fastest or slowest first, until they hold all threads. () for all, also where speeds are not told."""
    if not isinstance(wanted, str):
        return wanted
    speeds = sorted({core.largest for core in cores}, reverse=wanted == "big")
    if wanted == "all" or not all(core.largest for core in cores):
        return ()
    found: list[int] = []
    for speed in speeds:
        if len(found) < threads:
            found += [core.number for core in cores if core.largest == speed]
    return tuple(sorted(found))
