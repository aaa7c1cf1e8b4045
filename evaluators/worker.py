"""A fresh Python process that runs one call after another. If it dies or hangs, one call has failed and nothing else."""

import ctypes
import faulthandler
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, Literal

from compress.errors import CompressError, RecipeError, Refused

Hear = Callable[[str], None]
LOG_BYTES = 4000  # of a dead process's own output, kept as its trace
PARENT_DEATH = 1  # prctl's PR_SET_PDEATHSIG
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "TF_NUM_INTRAOP_THREADS",
    "TF_NUM_INTEROP_THREADS",
    "TORCHINDUCTOR_COMPILE_THREADS",
)

FIXED = {
    "PYTHONHASHSEED": "0",
    "ORT_DISABLE_TELEMETRY": "1",  # of ONNX Runtime's wheels since 1.32: a thread from their import on, which allocates and uploads while others are measured
}


@dataclass(frozen=True)
class Outcome:
    """What came of one call: a value, or why there is none. `seconds` runs from asking to answer."""

    status: Literal["done", "refused", "failed"]
    value: Any = None
    cause: str = ""
    trace: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Launch:
    """How a Python with this project on its path is started, the cores that it may use (none: all), and what is to be cleaned up when it has ended.

    `serve` is what answers its calls: `module:function`, which gets the pipe, and what else the function takes.
    """

    python: Sequence[str]
    environment: Mapping[str, str]
    cores: Sequence[int] = ()
    clean_up: Callable[[], None] = lambda: None
    serve: tuple = ("evaluators.worker:serve",)


def here() -> Launch:
    """This very Python."""
    search = os.pathsep.join(os.path.abspath(folder or ".") for folder in sys.path)
    return Launch([sys.executable], os.environ | {"PYTHONPATH": search})


class Worker:
    """One process with `threads` threads in every numeric library. To be closed; it dies with the thread that started it."""

    def __init__(self, threads: int, launch: Launch | None = None):
        self.launch = launch or here()
        self.log = tempfile.TemporaryFile()  # noqa: SIM115  close() closes it
        self.pipe, theirs = Pipe()
        fixed = dict.fromkeys(THREAD_VARIABLES, str(threads)) | FIXED
        given = theirs.fileno(), os.getpid(), list(self.launch.cores), *self.launch.serve
        self.process = subprocess.Popen(
            [*self.launch.python, "-P", "-c", f"from evaluators.worker import main; main{given}"],
            env={**self.launch.environment, **fixed},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
        )
        theirs.close()
        self.asked = 0.0

    def call(self, function: str, *arguments: Any, limit: float, hear: Hear = lambda text: None) -> Outcome:
        """The outcome of `module:function(*arguments)`, run over there within `limit` seconds. `hear` gets what the function tells meanwhile."""
        self.ask(function, *arguments)
        return self.answer(limit, hear)

    def ask(self, function: str, *arguments: Any) -> None:
        """Starts a call and returns at once; `answer` must follow."""
        self.asked = time.perf_counter()
        try:
            self.pipe.send((function, arguments))
        except OSError:  # it is dead already: answer says so, with its exit code
            return

    def answer(self, limit: float, hear: Hear = lambda text: None) -> Outcome:
        """The outcome of the call that was asked. After a crash or the time limit the process is gone."""
        found, end = "", time.monotonic() + limit
        try:
            while not isinstance(found, Outcome):
                found = self.pipe.recv() if self.pipe.poll(max(0.0, end - time.monotonic())) else self.too_late(limit)
                if isinstance(found, str):
                    hear(found)
        except (EOFError, OSError):
            found = self.died()
        return replace(found, seconds=time.perf_counter() - self.asked)

    def too_late(self, limit: float) -> Outcome:
        self.process.kill()
        self.process.wait()
        return Outcome("failed", cause=f"no answer within {limit:g} seconds: the process was ended", trace=self.last_output())

    def died(self) -> Outcome:
        code = self.process.wait()
        if code < 0:
            name = signal.Signals(-code).name
            hint = ", which is what happens when memory runs out" if name == "SIGKILL" else ""
            return Outcome("failed", cause=f"the process crashed with {name}{hint}", trace=self.last_output())
        return Outcome("failed", cause=f"the process ended by itself with exit code {code}", trace=self.last_output())

    def last_output(self) -> str:
        size = self.log.seek(0, os.SEEK_END)
        self.log.seek(max(0, size - LOG_BYTES))
        return self.log.read().decode(errors="replace")

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def close(self) -> None:
        """Ends the process at once: nothing that it holds is worth a goodbye."""
        self.process.kill()
        self.process.wait()
        self.pipe.close()
        self.log.close()
        self.launch.clean_up()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def resolve(function: str) -> Any:
    """What `module:name` names."""
    module, _, name = function.partition(":")
    return getattr(import_module(module), name)


def attempt(function: str, arguments: tuple) -> Outcome:
    try:
        return Outcome("done", resolve(function)(*arguments))
    except (Exception, SystemExit) as error:
        refused = isinstance(error, Refused | RecipeError)
        cause = str(error) if isinstance(error, CompressError) else traceback.format_exception_only(error)[-1].strip()
        return Outcome("refused" if refused else "failed", cause=cause, trace=traceback.format_exc())


def tell(text: str) -> None:
    """Says how far a long call is to whoever waits for it; nothing where nobody does."""
    if asker is not None:
        asker.send(text)


asker: Connection | None = None


def serve(connection: Connection) -> None:
    global asker
    asker = connection
    while True:
        try:
            function, arguments = connection.recv()
        except EOFError:
            return
        connection.send(attempt(function, arguments))


def main(descriptor: int, parent: int, cores: list[int], function: str, *given: Any) -> None:
    """Runs in the new process. Ctrl-C is the parent's to handle; when the parent dies, so does this."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(PARENT_DEATH, signal.SIGKILL)
    if os.getppid() != parent:
        return
    faulthandler.enable()
    if cores:
        os.sched_setaffinity(0, cores)
    resolve(function)(Connection(descriptor), *given)
