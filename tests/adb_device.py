"""A device for adb without a phone: Debian's arm64 adbd under qemu, in namespaces of its own, with adb's server beside it.

Nothing of the machine is changed: emulation of arm64 programs (binfmt_misc) is registered in the user namespace, the network is a loopback that only its
processes see, and adb's server accepts on a socket that is opened outside and handed in. What a phone has and Debian has not (getprop, dumpsys,
frequencies of cores) answers from files in `Devices.data`.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp

SUITE = "trixie"  # the first with adbd, and its qemu runs whole roots
PORTS = 5601  # of the first device; below 5586 adb's server would find it by itself
APPLETS = "cat dd df echo env grep kill ls mkdir mv ps rm sed sh sha256sum sleep taskset timeout uname"
LIBRARIES = ("executorch", "executorch_threadpool", "executorch_kernels_optimized", "executorch_kernels_quantized", "executorch_backend_xnnpack")
STUBS = {"getprop": "cat /data/properties", "dumpsys": 'cat "/data/dumpsys/$1"'}
PROPERTIES = "[ro.product.model]: [Debian on qemu]\n[ro.product.cpu.abi]: [arm64-v8a]\n"
ROOM_BYTES = 64 << 20  # of /data/local/tmp
ELF = rb"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
MASK = rb"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"
BIND, RECURSIVE, PRIVATE, NEW_MOUNTS = 0x1000, 0x4000, 0x40000, 0x20000
LIBC = ctypes.CDLL(None, use_errno=True)


# Made once, in the cache beside the emulated machine


def made(tell: Callable[[str], None]) -> Path:
    """A folder with the device's root, qemu, adb and the runner for it. Unreachable says what this machine lacks."""
    from evaluators.android.executorch_runner import SOURCE
    from evaluators.emulation import setup
    from evaluators.store import identity

    machine = setup.set_up(tell)
    name = identity(setup.recipe(), Path(__file__).read_text(encoding="utf-8"), SOURCE.read_text(encoding="utf-8"))[:12]
    place = setup.cache_folder() / f"adb-device-{name}"
    with setup.alone():
        if not place.is_dir():
            work = Path(mkdtemp(prefix=".arm64-adb-", dir=setup.cache_folder()))
            try:
                build(work, machine / "root", tell)
                os.replace(work, place)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    return place


def build(work: Path, machine: Path, tell: Callable[[str], None]) -> None:
    from evaluators.android.executorch_runner import SOURCE
    from evaluators.emulation import debian, setup

    root, tools = work / "root", work / "tools"
    debian.unpack(("adbd", "busybox-static", "libstdc++6"), "arm64", work / "apt", root, tell, SUITE)
    debian.unpack(("qemu-user",), debian.native(), work / "apt", work / "qemu", tell, SUITE)
    (work / "qemu/usr/bin/qemu-aarch64").rename(work / "qemu-aarch64")
    shutil.rmtree(work / "qemu")
    debian.unpack(("g++-12-aarch64-linux-gnu",), debian.native(), work / "apt", tools, tell)
    libraries = machine / "opt/site/executorch/lib"
    linked = [f"-L{libraries}", "-Wl,--no-as-needed", *(f"-l{name}" for name in LIBRARIES), "-Wl,-rpath,/opt/executorch"]
    tell("the runner")
    setup.cross_compile(tools, machine, SOURCE, "-o", str(work / "runner"), *linked)
    shutil.rmtree(tools)
    lay_out(root, libraries)


def lay_out(root: Path, libraries: Path) -> None:
    for name in ("bin", "sbin", "lib"):
        if not (root / name).exists():
            (root / name).symlink_to(f"usr/{name}")
    for name in ("data", "dev", "etc", "opt/executorch", "proc", "sys/devices/system", "tmp"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "sys/devices/system/cpu").symlink_to("/data/cpu")
    (root / "etc/passwd").write_text("root:x:0:0:root:/:/bin/sh\n")
    for name in LIBRARIES:
        shutil.copy(libraries / f"lib{name}.so", root / "opt/executorch")
    for name in APPLETS.split():
        if not (root / "usr/bin" / name).exists():
            (root / "usr/bin" / name).symlink_to("busybox")
    for name, text in STUBS.items():
        (root / "usr/bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (root / "usr/bin" / name).chmod(0o755)


# Used from outside


class Devices:
    """Devices in one network; `plug` and `unplug` them by number. `port` is that of adb's server."""

    def __init__(self, place: Path, folder: Path, adb: str):
        self.folder = folder
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]
            given = {"root": str(place / "root"), "qemu": str(place / "qemu-aarch64"), "adb": adb, "folder": str(folder), "listener": listener.fileno()}
            apart = ["unshare", "--user", "--map-root-user", "--mount", "--net", "--pid", "--fork", "--kill-child=KILL"]
            self.log = (folder / "log").open("w")
            self.process = subprocess.Popen(
                [*apart, sys.executable, __file__, "network", json.dumps(given)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.log,
                text=True,
                pass_fds=[listener.fileno()],
                env=os.environ | {"HOME": str(folder), "ADB_MDNS_AUTO_CONNECT": "0"},
            )
        if self.process.stdout.readline().strip() != "ready":
            self.close()
            raise OSError(f"no device in namespaces of its own: {(folder / 'log').read_text().strip().splitlines()[-1:]}")

    def serial(self, number: int) -> str:
        return f"127.0.0.1:{PORTS + number}"

    def data(self, number: int) -> Path:
        return self.folder / str(number)

    def plug(self, number: int) -> str:
        """The serial of a device that answers by now."""
        from evaluators.android.device import client, states

        data = self.data(number)
        for name in ("local/tmp", "dumpsys"):
            (data / name).mkdir(parents=True, exist_ok=True)
        (data / "properties").write_text(PROPERTIES)
        (data / "dumpsys/thermalservice").write_text("Thermal Status: 0\n")
        (data / "dumpsys/battery").write_text("  USB powered: true\n  level: 80\n  temperature: 301\n")
        cores = sorted(os.sched_getaffinity(0))[:2]
        for core, speed in zip(cores, (1800000, 2400000), strict=False):
            (data / f"cpu/cpu{core}/cpufreq").mkdir(parents=True, exist_ok=True)
            for name in ("cpuinfo_max_freq", "scaling_max_freq"):
                (data / f"cpu/cpu{core}/cpufreq/{name}").write_text(f"{speed}\n")
        for name in ("possible", "present", "online"):
            (data / f"cpu/{name}").write_text(f"{','.join(map(str, cores))}\n")
        self.ask(f"plug {number}")
        end = time.monotonic() + 60
        while states().get(self.serial(number)) != "device":
            if time.monotonic() > end:
                raise OSError(f"adbd did not come up: {(self.folder / 'log').read_text()[-2000:]}")
            client().connect(self.serial(number))
            time.sleep(0.1)
        return self.serial(number)

    def unplug(self, number: int) -> None:
        self.ask(f"unplug {number}")

    def ask(self, words: str) -> None:
        self.process.stdin.write(f"{words}\n")
        self.process.stdin.flush()
        self.process.stdout.readline()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.log.close()


# Inside the namespaces


def mount(source: str, target: str, kind: str | None, flags: int = 0, data: str | None = None) -> None:
    texts = (None if text is None else text.encode() for text in (source, target, kind))
    if LIBC.mount(*texts, ctypes.c_ulong(flags), None if data is None else data.encode()):
        raise OSError(ctypes.get_errno(), f"{os.strerror(ctypes.get_errno())}: mount {source} at {target}")


def network(root: str, qemu: str, adb: str, folder: str, listener: int) -> None:
    """The first process: brings up what all devices share, then does what it reads."""
    mount("none", "/", None, PRIVATE | RECURSIVE)
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh14x", b"lo", 0x41))  # SIOCSIFFLAGS: up and running
    place = Path(folder, "binfmt")
    place.mkdir()
    mount("binfmt_misc", str(place), "binfmt_misc")
    (place / "register").write_bytes(b":arm64:M::" + ELF + b":" + MASK + b":" + qemu.encode() + b":PF")  # keeping argv[0], found from outside the root
    subprocess.Popen([adb, "-L", f"acceptfd:{listener}", "server", "nodaemon"], pass_fds=[listener], stdin=subprocess.DEVNULL, stdout=sys.stderr)
    os.close(listener)
    running: dict[int, subprocess.Popen] = {}
    print("ready", flush=True)
    for line in sys.stdin:
        word, number = line.split()
        if word == "plug":
            given = json.dumps({"root": root, "data": f"{folder}/{number}", "port": PORTS + int(number)})
            running[number] = subprocess.Popen([sys.executable, __file__, "device", given], stdin=subprocess.DEVNULL, stdout=sys.stderr)
        else:
            running.pop(number).kill()
        print("done", flush=True)


def device(root: str, data: str, port: int) -> None:
    """Becomes adbd in its root, with a /data of its own."""
    if LIBC.unshare(NEW_MOUNTS):
        raise OSError(ctypes.get_errno(), "unshare")
    mount("proc", f"{root}/proc", "proc")
    mount("/dev", f"{root}/dev", None, BIND | RECURSIVE)
    mount(data, f"{root}/data", None, BIND)
    mount("tmpfs", f"{root}/data/local/tmp", "tmpfs", 0, f"size={ROOM_BYTES}")
    os.chroot(root)
    os.chdir("/")
    with contextlib.suppress(OSError):
        os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    found = next(path for path in ("/usr/lib/android-sdk/platform-tools/adbd", "/usr/bin/adbd", "/usr/sbin/adbd") if os.path.exists(path))
    os.execve(found, ["adbd"], {"PATH": "/usr/bin", "HOME": "/", "ADBD_PORT": str(port), "QEMU_CPU": "cortex-a76", "TMPDIR": "/tmp"})


if __name__ == "__main__":
    {"network": network, "device": device}[sys.argv[1]](**json.loads(sys.argv[2]))
