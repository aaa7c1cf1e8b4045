"""This machine's end: a process that takes calls like any measuring process, and has them answered by a board.

The board is sent code, files and calls, which it must trust: whoever may log in there may run anything there. What it sends back is JSON and plain arrays.
"""

import asyncio
import json
import shlex
from collections.abc import Callable
from importlib.resources import files
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import asyncssh

from compress.artifact import file_hash
from compress.errors import Unreachable
from evaluators.boards import wire
from evaluators.boards.access import Access, connect
from evaluators.boards.code import code
from evaluators.worker import LOG_BYTES, Outcome

OLDEST_PYTHON = (3, 11)
MARK = "compresskit board: "  # begins the line before which a login shell may print anything
ARTIFACTS, DATA = "artifacts", "data"  # folders of a measuring process on the board
PATIENCE = 5.0  # seconds in which a process that has ended says why


def serve(pipe: Connection, settings: str, threads: int) -> None:
    """Answers the calls that come through a pipe, in a process of its own. `settings` is JSON of an `Access`."""
    asyncio.run(relay(pipe, Access(**json.loads(settings)), threads))


async def relay(pipe: Connection, settings: Access, threads: int) -> None:
    board = None
    while True:
        try:
            function, arguments = await asyncio.to_thread(pipe.recv)  # while this waits, keepalives go on
        except EOFError:
            return
        try:
            board = board or await Board.reach(settings, threads)
            outcome = await board.call(function, arguments, pipe.send)
        except Unreachable as error:
            outcome = Outcome("failed", cause=str(error))
        pipe.send(outcome)


class Board:
    """A measuring process on a board, and the connection to it."""

    def __init__(self, settings: Access, process: asyncssh.SSHClientProcess):
        self.settings, self.name, self.process = settings, settings.host, process
        self.errors = b""  # the last of what the other side said besides
        self.listening = asyncio.create_task(self.listen())

    @classmethod
    async def reach(cls, settings: Access, threads: int) -> "Board":
        """A board on which the measuring code of this machine is at work. Unreachable says what is in the way."""
        connection = await connect(settings)
        boot = (files("evaluators.boards") / "boot.py").read_bytes()
        command = f"exec {shlex.quote(settings.python)} -c 'import sys; exec(sys.stdin.buffer.read({len(boot)}))'"
        try:
            board = cls(settings, await connection.create_process(command, encoding=None))
        except asyncssh.Error as error:
            raise Unreachable(f"{settings.host} starts no program: {error}") from error
        await board.hand_over(boot, threads)
        return board

    async def hand_over(self, boot: bytes, threads: int) -> None:
        digest, packed = code()
        wanted = {"mark": MARK, "python": OLDEST_PYTHON, "code": digest, "threads": threads, "cores": self.settings.cores}
        await self.write(boot + json.dumps(wanted).encode() + b"\n")
        found, python = await self.greeting(), self.settings.python
        if tuple(found["python"]) < OLDEST_PYTHON:
            version, oldest = (".".join(map(str, numbers)) for numbers in (found["python"], OLDEST_PYTHON))
            raise Unreachable(f"{python} on {self.name} is Python {version}, and {oldest} or later is needed; `python` in targets.yaml names another")
        if not found["numpy"]:
            raise Unreachable(f"{python} on {self.name} has no NumPy: run `{python} -m pip install numpy` there; `python` in targets.yaml names another")
        if not found["code"]:
            await self.write(b"%d\n" % len(packed) + packed)

    async def greeting(self) -> dict[str, Any]:
        """What is there, after whatever a login shell prints."""
        while line := await self.heard(self.process.stdout.readline()):
            _, mark, found = line.partition(MARK.encode())
            if mark:
                return json.loads(found)
        raise Unreachable(await self.end())

    async def call(self, function: str, arguments: tuple, hear: Callable[[str], None]) -> Outcome:
        """The outcome of a call there; what the board lacks of the files that it names is sent before."""
        files, arguments = located(arguments)
        hashes = {name: digest or file_hash(path) for name, (path, digest) in files.items()}
        lacking = await self.ask("files", hashes)
        sent = [lacking]
        for name in lacking.value or ():
            path, _ = files[name]
            sent.append(await self.ask("keep", name, hashes[name], path.stat().st_size, file=path))
        refused = next((outcome for outcome in sent if outcome.status != "done"), None)
        return refused or await self.ask("call", function, arguments, hear=hear)

    async def ask(self, *request: Any, file: Path | None = None, hear: Callable[[str], None] = lambda text: None) -> Outcome:
        """The answer to a request, with the bytes of a file behind it where one is given."""
        await self.write(wire.pack(request))
        if file:
            with file.open("rb") as stream:
                while block := stream.read(wire.BLOCK):
                    await self.write(block)
        while True:
            match await self.message():
                case {"told": str(text)}:
                    hear(text)
                case {"status": "done" | "refused" | "failed" as status, "value": value, "cause": str(cause), "trace": str(trace)}:
                    return Outcome(status, value, cause, trace)
                case _:
                    raise Unreachable(f"{self.name} sent what is not an answer")

    async def message(self) -> Any:
        try:
            size = wire.length(await self.heard(self.process.stdout.readexactly(wire.LENGTH.size)))
            return wire.unpack(await self.heard(self.process.stdout.readexactly(size)))
        except ValueError as error:
            raise Unreachable(f"{self.name} sent what cannot be read: {error}") from error

    async def write(self, data: bytes) -> None:
        try:
            self.process.stdin.write(data)
        except OSError as error:
            raise Unreachable(await self.end()) from error
        await self.heard(self.process.stdin.drain())

    async def heard(self, channel: Any) -> Any:
        """What a channel's coroutine gives; Unreachable where the connection, or the process at its other end, is gone."""
        try:
            return await channel
        except (asyncio.IncompleteReadError, asyncssh.Error, OSError) as error:
            raise Unreachable(await self.end()) from error

    async def listen(self) -> None:
        while said := await self.process.stderr.read(LOG_BYTES):
            self.errors = (self.errors + said)[-LOG_BYTES:]

    async def end(self) -> str:
        """Why nothing more comes from there, in words."""
        await asyncio.wait([self.listening, asyncio.create_task(self.process.wait_closed())], timeout=PATIENCE)
        last = self.errors.decode(errors="replace").strip().rpartition("\n")[2]
        if self.process.exit_signal:
            return f"Python on {self.name} was ended by SIG{self.process.exit_signal[0]}"
        if self.process.exit_status is None:
            return f"the connection to {self.name} was lost"
        return f"{self.settings.python} on {self.name} ended with exit code {self.process.exit_status}: {last or 'it said nothing'}"


def located(arguments: tuple) -> tuple[dict[str, tuple[Path, str]], tuple]:
    """Files that a call names, by their names on the board, with their hash where it is known; and its arguments with the folders that they lie in there."""
    match arguments:
        case ({"path": name, "sha256": digest} as artifact, folder, runtime, threads, data, *rest):
            samples = {f"{DATA}/{path.name}": (path, "") for path in Path(data).iterdir()}
            return {f"{ARTIFACTS}/{name}": (Path(folder) / name, digest)} | samples, (artifact, ARTIFACTS, runtime, threads, DATA, *rest)
    return {}, arguments
