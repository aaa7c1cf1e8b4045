"""How a Python process is started on the emulated machine."""

from pathlib import Path
from tempfile import TemporaryDirectory

import compress
import evaluators
from evaluators.emulation.guest import COUNTS
from evaluators.emulation.profiles import PROFILES
from evaluators.worker import Launch

SITE = "/opt/site"  # of the guest: its Python packages
ALLOCATOR = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=65535"}
"""Lists of small free blocks that never overflow: what an allocation costs does not depend on all that were made before, in an order that paths decide."""


def command(home: Path, profile: str, counts: Path) -> list[str]:
    """The guest's Python under qemu, which writes counts to a file. qemu runs with the libraries that it came with, whatever this system has."""
    host, root = home / "host", home / "profiles" / profile
    loader = next(host.glob("lib/*/ld-linux-*.so.*"))
    libraries = f"{loader.parent}:{host / 'usr/lib' / loader.parent.name}"
    dies_with_parent = ["setpriv", "--pdeathsig", "KILL"]  # which a process can ask for itself, but not through qemu 7.2
    qemu = [*dies_with_parent, str(loader), "--library-path", libraries, str(host / "usr/bin/qemu-aarch64")]
    plugin = f"{home / 'counter.so'},out={counts}"
    return [*qemu, "-cpu", PROFILES[profile].qemu, "-L", str(root), "-plugin", plugin, str(root / "usr/bin/python3.11")]


def launch(home: Path, profile: str) -> Launch:
    """The guest sees this machine's files, but of this machine's Python packages only these two; and nothing of this process's environment."""
    scratch = TemporaryDirectory(prefix="compresskit-arm64-")
    folder = Path(scratch.name)
    for package in (compress, evaluators):
        (folder / package.__name__).symlink_to(Path(package.__file__).parent)
    environment = {"PYTHONPATH": f"{SITE}:{folder}", "LANG": "C.UTF-8", COUNTS: str(folder / "counts")} | ALLOCATOR
    return Launch(command(home, profile, folder / "counts"), environment, clean_up=scratch.cleanup)
