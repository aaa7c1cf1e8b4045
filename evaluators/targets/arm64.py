"""An emulated arm64 core: the aarch64 builds of the runtimes run under qemu, and their instructions are counted."""

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from pydantic import Field

from compress.errors import Refused, Unreachable
from evaluators.emulation import setup
from evaluators.emulation.launch import ALLOCATOR, launch
from evaluators.emulation.profiles import PROFILES
from evaluators.environment import cores, versions
from evaluators.targets import Listed, Settings
from evaluators.worker import Worker

RUNTIMES = ("litert", "onnxruntime", "executorch")  # whose aarch64 builds are set up
SET_UP = "`compresskit targets setup arm64`"


class Arm64(Settings):
    """One core of a profile and one thread, on which counts are exact. Emulation is slow, so only the first `samples` of the study's test samples are run."""

    ARGUMENT: ClassVar = "profile"
    untimed: ClassVar = "it is emulated, and the emulator's time says nothing about a device's; instructions are counted instead"
    metrics: ClassVar = ("outputs", "emulated")
    profile: Literal[tuple(PROFILES)]
    samples: int = Field(32, ge=1)

    @property
    def title(self) -> str:
        return f"{PROFILES[self.profile].title} (emulated)"

    def identity(self) -> Any:
        return setup.recipe(), ALLOCATOR, self.profile, self.samples

    def sample_count(self, wanted: int) -> int:
        return min(wanted, self.samples)

    def thread_count(self, wanted: int) -> int:
        return 1

    def start(self, threads: int) -> Worker:
        return Worker(threads, launch(setup.home(), self.profile))

    def side_by_side(self, threads: int) -> int:
        return cores()

    def environment(self) -> dict[str, str]:
        made, home, profile = setup.made(), versions(), PROFILES[self.profile]
        builds = ", ".join(f"{name} {version}" for name, version in made["wheels"].items())
        other = [f"{name} {home[name]}" for name, version in made["wheels"].items() if home.get(name, version) not in (version, "not installed")]
        beside = f"; compared with {', '.join(other)} of this machine" if other else ""
        return {f"Emulated {profile.title}": f"qemu {made['qemu']}, -cpu {profile.qemu}; aarch64 builds of {builds}{beside}"}

    def runtimes(self) -> tuple[str, ...]:
        return RUNTIMES

    def refuse(self, runtime: str, threads: int) -> None:
        if runtime not in RUNTIMES:
            raise Refused(f"{runtime} is not set up on the emulated machine, which has {', '.join(RUNTIMES)}")

    def check(self) -> None:
        if setup.made() is None:
            lacks = setup.missing()
            how = f"which needs {'; '.join(lacks)}" if lacks else "which takes a minute or two"
            raise Unreachable(f"target arm64:{self.profile} is not set up: run {SET_UP}, {how}")


TARGET = Arm64
set_up = setup.set_up


def listed() -> Iterator[Listed]:
    made, lacks = setup.made(), setup.missing()
    for name, profile in PROFILES.items():
        state = f"emulated by qemu {made['qemu']}" if made else f"not set up, needs {'; '.join(lacks)}" if lacks else f"not set up: {SET_UP}"
        yield Listed(f"arm64:{name}", made is not None, f"{profile.about}; {state}", RUNTIMES if made else ())
