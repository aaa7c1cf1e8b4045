"""What a process on the emulated machine can find out about itself. Imported there, so only the standard library is needed."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

COUNTS = "COMPRESSKIT_COUNTS"  # the file that counter.c writes
CLASSES = ("total", "dot", "mmla", "int_mla", "fmla", "ldst", "branch")


def counted(run: Callable[[], Any]) -> list[int]:
    """Instructions of one call by class, those of the interpreter left out."""
    os.getppid()  # the plugin's mark
    run()
    os.getppid()
    before, after = map(json.loads, Path(os.environ[COUNTS]).read_text(encoding="ascii").splitlines()[-2:])
    return [after[name] - before[name] for name in CLASSES]


def peak_bytes() -> int:
    """The largest resident set that this process had: VmHWM less what belongs to the emulator by now, itself and the code that it translated.

    What it translated since the peak is taken off too, so it is no less than what the guest holds now.
    """
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    ranges = [tuple(int(end, 16) for end in line.split()[0].split("-")) for line in Path("/proc/self/maps").read_text().splitlines()]
    sizes = {True: 0, False: 0}  # of the guest's mappings, and of the emulator's
    for start, size in resident():
        sizes[any(low <= start < high for low, high in ranges)] += size
    return max(int(peak.split()[1]) * 1024 - sizes[False], sizes[True])


def resident() -> Iterator[tuple[int, int]]:
    """Start and resident bytes of every mapping, as this machine's kernel has them: qemu 7.2 shows only the guest's in `maps`, at the same addresses."""
    start = 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        word, *rest = line.split()
        if word == "Rss:":
            yield start, int(rest[0]) * 1024
        elif not word.endswith(":"):
            start = int(word.split("-")[0], 16)
