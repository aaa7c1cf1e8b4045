"""One device through adb's server: commands with a time limit, files by their hash, and one clear error for everything that a cable can do."""

import math
import shlex
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from compress.artifact import file_hash
from compress.errors import CompressError, MissingExtra, Unreachable

FOLDER = "/data/local/tmp/compresskit"  # all that is ever written on a device; one study at a time
ANSWER_SECONDS = 20.0  # for a small command; beyond a program's own limit, for its output to arrive
ENDED = (124, 128 + 9)  # exit codes of what `timeout -s KILL` ended
LAST_LINES = 8  # of a failed program's output, kept in the error
READY = "device"  # adb's word for a device that takes commands
REMEDIES = {
    "unauthorized": "has not allowed this computer: unlock it and accept 'Allow USB debugging'",
    "authorizing": "has not allowed this computer yet: unlock it and accept 'Allow USB debugging'",
    "offline": "does not answer adb: pull the cable and plug it in again, or `adb reconnect offline`",
    "no": "may not be opened by this user: install your system's udev rules for Android (android-sdk-platform-tools-common), and plug it in again",
}


@dataclass(frozen=True)
class Ran:
    """What came of a command over there; `output` holds both its streams."""

    code: int
    output: str

    @property
    def last(self) -> str:
        return "\n".join(self.output.strip().splitlines()[-LAST_LINES:])


def client() -> Any:
    try:
        from adbutils import AdbClient
    except ModuleNotFoundError as error:
        raise MissingExtra(f"target 'adb' needs {error.name}, which is not installed: pip install 'compresskit[adb]'") from error
    return AdbClient()  # no socket_timeout: with one, its `push` may send parts of a block


def server_runs() -> bool:
    """Whether adb's server answers; asking does not start one."""
    found = client()
    try:
        socket.create_connection((found.host, found.port), 0.5).close()
    except OSError:
        return False
    return True


def states() -> dict[str, str]:
    """State of every device that adb sees, by serial. Starts adb's server where none runs; Unreachable where there is no adb to start it with."""
    found = client()
    from adbutils.errors import AdbError

    try:
        return {one.serial: one.state for one in found.list()}
    except (AdbError, OSError, subprocess.SubprocessError) as error:
        raise Unreachable(f"adb does not work here: {error}. Install it (apt-get install adb, or Android's platform-tools)") from error


def remedy(serial: str, state: str) -> str:
    """What is wrong with a device that is not ready, and what to do."""
    for word, what in REMEDIES.items():
        if state.startswith(word):
            return f"{serial} {what}"
    return f"{serial} is in the state {state!r}: start Android on it"


def connect(serial: str) -> "Device":
    """The device of a serial, or the only one where it is "". Unreachable says what to do."""
    seen = states()
    if not serial and len(seen) == 1:
        serial = next(iter(seen))
    if not serial and seen:
        raise Unreachable(f"adb sees {len(seen)} devices, so say which: {', '.join(f'adb:{name} ({state})' for name, state in seen.items())}")
    if serial not in seen:
        others = f"; it sees {', '.join(seen)}" if seen else ""
        raise Unreachable(f"adb sees no device{f' {serial}' if serial else ''}{others}: allow USB debugging in its developer options and plug it in")
    if seen[serial] != READY:
        raise Unreachable(remedy(serial, seen[serial]))
    return Device(serial)


class Device:
    """A device that was ready when it was looked for."""

    def __init__(self, serial: str):
        self.serial, self.handle = serial, client().device(serial)

    def shell(self, command: str, limit: float = ANSWER_SECONDS) -> Ran:
        """Runs a command of the device's shell that takes less than `limit` seconds."""
        with self.reached():
            done = self.handle.shell2(command, timeout=limit, v2=True)
        return Ran(done.returncode, done.output)

    def run(self, words: Sequence[str], limit: float, cores: Sequence[int] = ()) -> str:
        """What a program prints, run on some of the cores (none: all) for at most `limit` seconds. CompressError where it fails.

        The device ends it, so it is over at the limit even where the cable is out by then.
        """
        mask = sum(1 << core for core in cores)
        given = ["timeout", "-s", "KILL", str(math.ceil(limit)), *(["taskset", f"{mask:x}"] if mask else []), *words]
        started = time.monotonic()
        done = self.shell(shlex.join(given), limit + ANSWER_SECONDS)
        if done.code in ENDED and time.monotonic() - started >= limit:
            raise CompressError(f"{program(words)} was ended on {self.serial} at its time limit of {limit:g} s; it had printed: {done.last or 'nothing'}")
        if done.code:
            raise CompressError(f"{program(words)} failed on {self.serial} with exit code {done.code}: {done.last or 'it printed nothing'}")
        return done.output

    def push(self, path: Path) -> str:
        """Where a file lies on the device: named by its hash, so what is there already is not copied again."""
        digest = file_hash(path)
        place = f"{FOLDER}/{digest[:32]}{path.suffix}"
        if self.shell(f"mkdir -p {FOLDER} && ls {place}").code == 0:
            return place
        passing = f"{FOLDER}/{uuid4().hex}"
        try:
            with self.reached():
                self.handle.sync.push(path, passing, 0o755)
        except Unreachable as error:
            self.shell(f"rm -f {passing}")
            free = self.free_bytes()
            if free is not None and free < path.stat().st_size:
                raise CompressError(f"{self.serial} has no room for {path.name}: {path.stat().st_size:,} bytes are needed, {free:,} are free") from error
            raise
        self.checked(f"echo '{digest}  {passing}' | sha256sum -c && mv {passing} {place}")
        return place

    def read(self, place: str) -> bytes:
        with self.reached():
            return self.handle.sync.read_bytes(place)

    def remove(self, place: str) -> None:
        self.checked(f"rm -rf {place}")

    def free_bytes(self) -> int | None:
        """Room where files are put, None where the device does not say."""
        words = self.shell(f"df -k {FOLDER}").output.split()
        numbers = [int(word) for word in words if word.isdigit()]
        return numbers[2] * 1024 if len(numbers) >= 3 else None

    def checked(self, command: str) -> str:
        done = self.shell(command)
        if done.code:
            raise CompressError(f"`{command}` failed on {self.serial} with exit code {done.code}: {done.last}")
        return done.output

    @contextmanager
    def reached(self) -> Iterator[None]:
        """Turns whatever adb, its server or a cable does into Unreachable."""
        from adbutils.errors import AdbError

        try:
            yield
        except (AdbError, EOFError, OSError) as error:
            state = "the server does not answer"
            if server_runs():
                state = states().get(self.serial, "it is not connected any more")
            raise Unreachable(f"{self.serial} was lost ({type(error).__name__}: {error}; adb says: {state}); the same command goes on from here") from error


def program(words: Sequence[str]) -> str:
    """A program's name with its first argument, as an error shows it."""
    return " ".join(Path(word).name for word in words[:2])
