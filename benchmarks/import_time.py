"""What `import compress` costs beyond a bare interpreter."""

import subprocess
import sys

from benchmarks.ratio import timed

USED = "import compress; compress.Recipe, compress.compress, compress.encode"
RESIDENT = USED + "\nprint([int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('VmRSS')][0])"


def best(code: str) -> float:
    return min(timed(lambda: subprocess.run([sys.executable, "-c", code], check=True)) for _ in range(7))


def run():
    seconds = best("import compress") - best("pass")
    yield "import compress", f"{seconds * 1000:.0f} ms", "under 200 ms", seconds < 0.2
    first_use = best(USED) - best("pass")
    yield "the same with its names used (NumPy, pydantic, YAML)", f"{first_use * 1000:.0f} ms", "none", True
    kilobytes = int(subprocess.run([sys.executable, "-c", RESIDENT], check=True, capture_output=True, text=True).stdout)
    yield "resident with its names used", f"{kilobytes / 1000:.0f} MB", "under 60 MB", kilobytes < 60_000
