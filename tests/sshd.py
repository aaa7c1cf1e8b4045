"""A real sshd on loopback, as this user, with keys that exist for one test run. Its sessions see this machine's files and keep what they keep in a folder."""

import os
import pwd
import shutil
import socket
import subprocess
import time
import venv
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path

import asyncssh
import psutil

from compress.errors import Unreachable
from evaluators.emulation import debian, setup

CONFIGURATION = """
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
SetEnv XDG_CACHE_HOME={folder}/cache {variables}
"""
AS_ROOT = 'mount --bind "$1" /etc/passwd && mount -t tmpfs tmpfs /run && mkdir -m 755 /run/sshd && shift && exec "$@"'
SEPARATED = "sshd:x:65533:65534::/run/sshd:/usr/sbin/nologin\n"  # the user that sshd wants where it is started by root


def lean_python(folder: Path, *packages: str) -> Path:
    """A Python of its own with these packages and nothing else, as a board has it."""
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    for package in packages:
        found = distribution(package)
        for name in {file.parts[0] for file in found.files} - {"..", "__pycache__"}:
            (site / name).symlink_to(found.locate_file(name))
    return folder / "bin/python"


@dataclass(frozen=True)
class Sshd:
    folder: Path
    port: int
    process: psutil.Process
    user: str
    python: str

    @property
    def settings(self) -> dict:
        """Of a target."""
        files = {"key": str(self.folder / "user"), "known_hosts": str(self.folder / "known_hosts")}
        return {"kind": "ssh", "host": f"{self.user}@127.0.0.1", "port": self.port, "python": self.python, **files}

    @property
    def cache(self) -> Path:
        return self.folder / "cache/compresskit/board"

    def vanish(self) -> None:
        """It and everything that it runs, as if its plug were pulled."""
        killed(self.process)


def program() -> list[str]:
    """The command that runs sshd: this machine's, or Debian's, unpacked into the user's cache. Unreachable says what is missing."""
    installed = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if installed:
        return [installed]
    root = setup.cache_folder() / f"sshd-{debian.SUITE}"
    if not root.exists():
        lacks = debian.missing()
        if lacks:
            raise Unreachable(f"sshd is not installed, and to unpack it {'; '.join(lacks)} would be needed")
        with setup.alone():
            work = root.with_name(f".arm64-{root.name}")  # swept up with what a killed set-up leaves
            debian.unpack(("openssh-server",), debian.native(), work / "apt", work / "root", print)
            os.replace(work / "root", root)
    loader = next(root.glob("lib*/**/ld-linux-*.so.*"))
    libraries = f"{loader.parent}:{root / 'usr/lib' / loader.parent.name}"
    return [str(loader), "--library-path", libraries, str(root / "usr/sbin/sshd"), "-r"]


@contextmanager
def sshd(folder: Path):
    """One that listens. Unreachable where none can be had here, with the reason."""
    command = program()
    python = lean_python(folder / "venv", "numpy", "onnxruntime")
    port = prepared(folder, str(folder))
    command += ["-D", "-e", "-f", str(folder / "sshd_config")]
    if os.geteuid() == 0:
        users = [line for line in Path("/etc/passwd").read_text().splitlines() if not line.startswith("sshd:")]
        (folder / "passwd").write_text("\n".join([*users, SEPARATED]))
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", AS_ROOT, "sh", str(folder / "passwd"), *command]
    with listening(folder, command) as process:
        yield Sshd(folder, port, process, pwd.getpwuid(os.getuid()).pw_name, str(python))


def prepared(folder: Path, seen_as: str, variables: str = "") -> int:
    """A free port, with keys and a configuration in `folder`, which sshd itself sees as `seen_as`. Sessions get the variables."""
    for name in ("host", "user", "other"):
        key = asyncssh.generate_private_key("ssh-ed25519")
        key.write_private_key(folder / name)
        key.write_public_key(folder / f"{name}.pub")
        (folder / name).chmod(0o600)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "sshd_config").write_text(CONFIGURATION.format(port=port, folder=seen_as, variables=variables))
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {(folder / 'host.pub').read_text()}")
    return port


@contextmanager
def listening(folder: Path, command: list[str]):
    """The process of sshd, once it listens; it and everything that it started ends behind."""
    with (folder / "log").open("w") as log:
        process = psutil.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        while "Server listening" not in (folder / "log").read_text():
            if process.poll() is not None:
                raise Unreachable(f"sshd does not run here: {(folder / 'log').read_text().strip()}")
            time.sleep(0.02)
        yield process
    finally:
        if process.is_running():
            killed(process)
        process.wait()


def killed(process: psutil.Process) -> None:
    for one in [*process.children(recursive=True), process]:
        with suppress(psutil.NoSuchProcess):  # a child may end by itself meanwhile
            one.kill()
