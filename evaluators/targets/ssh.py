"""A board that is reached over ssh, as a Raspberry Pi: the same measuring code runs there, by a Python that has NumPy and a runtime."""

from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from typing import Any, ClassVar

from pydantic import Field

from compress.errors import Refused, Unreachable
from evaluators.targets import Listed, Settings
from evaluators.worker import Worker, here

ANSWER_SECONDS = 120.0  # for a board that is to say what it is, which means loading every runtime
FOUND: dict["Ssh", dict[str, Any]] = {}
"""What boards said of themselves when they were last checked by this process: evaluators/boards/facts.py."""


class Ssh(Settings):
    """A board by `user@host`, or by a name that ~/.ssh/config has. Threads and cores are the board's."""

    ARGUMENT: ClassVar = "host"
    untimed: ClassVar = ""
    metrics: ClassVar = ("accuracy", "memory")
    host: str = Field(pattern=r"^([^@\s]+@)?[^@\s-][^@\s]*$")
    port: int | None = Field(None, ge=1, le=65535)
    key: str = ""  # a file; else those that ssh itself would try
    known_hosts: str = "~/.ssh/known_hosts"
    python: str = "python3"  # in the board's PATH, or a path from the user's home there
    threads: int | None = Field(None, ge=1)
    cores: tuple[int, ...] = ()

    @property
    def title(self) -> str:
        return f"{FOUND[self]['model']} (over ssh)" if self in FOUND else "a board over ssh"

    def identity(self) -> Any:
        decide = ("model", "cpu", "features", "cores", "affinity", "packages", "runtimes")
        return self.host, self.port, self.cores, {name: self.found[name] for name in decide}

    @property
    def found(self) -> dict[str, Any]:
        if self not in FOUND:
            self.check()
        return FOUND[self]

    def sample_count(self, wanted: int) -> int:
        return wanted

    def thread_count(self, wanted: int) -> int:
        return self.threads or wanted

    def start(self, threads: int) -> Worker:
        """Two processes: one here, which holds the connection, and one there. Whichever of them ends, so does the other."""
        return Worker(threads, replace(here(), serve=("evaluators.boards.client:serve", self.model_dump_json(exclude={"threads"}), threads)))

    def side_by_side(self, threads: int) -> int:
        return max(1, self.usable() // threads)

    def usable(self) -> int:
        return min(len(self.cores) or self.found["cores"], self.found["cores"])

    def environment(self) -> dict[str, str]:
        known = self.found
        heat = "temperature not told" if known["temperature"] is None else f"{known['temperature']:.1f} °C at the start"
        facts = (
            f"{known['cpu']}, {' '.join(known['features']) or 'features not told'}",
            f"{known['cores']} core(s), {known['memory_bytes'] / 2**30:.1f} GiB",
            f"governor {known['governor'] or 'not told'}, {heat}",
            known["system"],
            f"Python {known['python']}",
            *(f"{name} {number}" for name, number in known["packages"].items()),
        )
        return {f"Board {known['model']}": "; ".join(facts)}

    def runtimes(self) -> tuple[str, ...]:
        """Those that its last check found."""
        return tuple(name for name, versions in FOUND.get(self, {"runtimes": {}})["runtimes"].items() if isinstance(versions, dict))

    def refuse(self, runtime: str, threads: int) -> None:
        versions = self.found["runtimes"][runtime]
        if isinstance(versions, str):
            raise Refused(f"{runtime} does not run on {self.host}, which has {', '.join(self.runtimes()) or 'no runtime'}: {versions}")
        if threads > self.usable():
            raise Refused(f"{threads} threads were asked for; {self.host} has {self.usable()} core(s) to use")

    def check(self) -> None:
        if not find_spec("asyncssh"):
            raise Unreachable("boards over ssh need asyncssh, which is not installed: pip install 'compresskit[ssh]'")
        with self.model_copy(update={"cores": ()}).start(1) as worker:
            outcome = worker.call("evaluators.boards.facts:facts", limit=ANSWER_SECONDS)
        if outcome.status != "done":
            raise Unreachable(f"target ssh:{self.host}: {outcome.cause}")
        absent = set(self.cores) - set(outcome.value["affinity"])
        if absent:
            raise Unreachable(f"target ssh:{self.host} has no core {', '.join(map(str, sorted(absent)))} to use: it has {outcome.value['affinity']}")
        FOUND[self] = outcome.value


TARGET = Ssh


def listed() -> Iterator[Listed]:
    yield Listed("ssh:USER@HOST", False, "a board: name one, as ssh:pi@raspberrypi.local, or give it a name and settings in targets.yaml", ())
