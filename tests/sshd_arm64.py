"""A board of another processor: Debian's arm64 sshd in a root of its own, its Python and the aarch64 builds behind it, all of it under qemu.

As tests/adb_device.py does it: arm64 programs are registered in a user namespace (binfmt_misc), so nothing of the machine is changed. sshd runs as a plain
user of a second namespace, since the first has no second user for it to become.
"""

import json
import os
import sys
from contextlib import contextmanager
from pathlib import Path

import adb_device
from adb_device import BIND, ELF, LIBC, MASK, PRIVATE, RECURSIVE, mount

NEW_USERS = 0x10000000
USER = 1000
HOME = "/home/board"  # where the folder of a test run lies
SITES = "usr/local/lib/python3.11/dist-packages"
PACKAGES = ("openssh-server", "busybox-static", "python3.11", "libstdc++6", "libgomp1")
CPU = "cortex-a76"


def made(tell) -> tuple[Path, Path, Path]:
    """The board's root in the cache, what it has at /opt, and a qemu that runs whole roots. Unreachable says what this machine lacks."""
    from evaluators.emulation import debian, setup
    from evaluators.store import identity

    qemu = adb_device.made(tell) / "qemu-aarch64"
    place = setup.cache_folder() / f"sshd-arm64-{identity(Path(__file__).read_text(encoding='utf-8'))[:12]}"
    with setup.alone():
        if not place.is_dir():
            work = place.with_name(f".arm64-{place.name}")  # swept up with what a killed set-up leaves
            debian.unpack(PACKAGES, "arm64", work / "apt", work / "root", tell)
            lay_out(work / "root")
            os.replace(work / "root", place)
    return place, setup.home() / "root/opt", qemu


def lay_out(root: Path) -> None:
    for name in ("dev", "etc", HOME[1:], "opt", "proc", "run", SITES, "sys/devices/system/cpu", "tmp"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "etc/passwd").write_text(f"root:x:0:0::/:/bin/sh\nboard:x:{USER}:{USER}::{HOME}:/bin/sh\n")
    (root / "bin/sh").symlink_to("busybox")
    (root / "usr/bin/python3").symlink_to("python3.11")
    (root / SITES / "opt.pth").write_text("/opt/site\n")
    for name in ("possible", "present", "online"):
        (root / "sys/devices/system/cpu" / name).write_text("0\n")


@contextmanager
def sshd_arm64(folder: Path):
    """One that listens, with NumPy and the runtimes of the emulated machine. Unreachable where none can be had here, with the reason."""
    from sshd import Sshd, listening, prepared

    root, opt, qemu = made(print)
    port = prepared(folder, HOME, f"QEMU_CPU={CPU}")
    given = json.dumps({"root": str(root), "opt": str(opt), "qemu": str(qemu), "folder": str(folder)})
    apart = ["unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "--kill-child=KILL"]
    with listening(folder, [*apart, sys.executable, __file__, given]) as process:
        yield Sshd(folder, port, process, "board", "python3")


# Inside the namespaces


def board(root: str, opt: str, qemu: str, folder: str) -> None:
    """Becomes sshd in its root."""
    mount("none", "/", None, PRIVATE | RECURSIVE)
    binfmt = Path(folder, "binfmt")
    binfmt.mkdir()
    mount("binfmt_misc", str(binfmt), "binfmt_misc")
    (binfmt / "register").write_bytes(b":arm64:M::" + ELF + b":" + MASK + b":" + qemu.encode() + b":PF")  # keeping argv[0], found from outside the root
    mount("proc", f"{root}/proc", "proc")
    mount("/dev", f"{root}/dev", None, BIND | RECURSIVE)
    for source, target in ((opt, "opt"), (folder, HOME)):
        mount(source, f"{root}/{target}", None, BIND)
    for target in ("tmp", "run"):
        mount("tmpfs", f"{root}/{target}", "tmpfs")
    as_user()  # which no process may that is in another root already
    os.chroot(root)
    os.chdir("/")
    os.execve("/usr/sbin/sshd", ["/usr/sbin/sshd", "-D", "-e", "-f", f"{HOME}/sshd_config"], {"PATH": "/usr/bin:/bin", "QEMU_CPU": CPU})


def as_user() -> None:
    """Root of the namespace becomes USER of one within it."""
    if LIBC.unshare(NEW_USERS):
        raise OSError("unshare")
    Path("/proc/self/setgroups").write_text("deny")
    for name in ("uid_map", "gid_map"):
        Path(f"/proc/self/{name}").write_text(f"{USER} 0 1")


if __name__ == "__main__":
    board(**json.loads(sys.argv[1]))
