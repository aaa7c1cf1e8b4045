"""An NVIDIA GPU of this machine, found at run time."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from typing import Any, ClassVar

from pydantic import Field

from compress.errors import Refused, Unreachable
from evaluators.environment import cores
from evaluators.runtimes import DEVICE
from evaluators.targets import Listed, Settings
from evaluators.worker import Worker, here

RUNTIMES = ("torch", "torch-compiled", "onnxruntime")  # those with a `load_on`
LIMIT = 120  # seconds in which PyTorch must have found the device


class Cuda(Settings):
    """A device by PyTorch's number. Results depend on the card and its driver; clocks are as the driver sets them."""

    ARGUMENT: ClassVar = "device"
    untimed: ClassVar = ""
    metrics: ClassVar = ("accuracy", "gpu")
    device: int = Field(0, ge=0)

    @property
    def name(self) -> str:
        return f"cuda:{self.device}"

    @property
    def title(self) -> str:
        return f"NVIDIA GPU {self.device}"

    def identity(self) -> Any:
        return [facts(self.name)[fact] for fact in ("name", "capability", "memory_bytes", "driver", "cuda")]

    def sample_count(self, wanted: int) -> int:
        return wanted

    def thread_count(self, wanted: int) -> int:
        return wanted

    def start(self, threads: int) -> Worker:
        launch = here()
        return Worker(threads, replace(launch, environment={**launch.environment, DEVICE: self.name}))

    def side_by_side(self, threads: int) -> int:
        return max(1, cores() // threads)

    def environment(self) -> dict[str, str]:
        found = facts(self.name)
        clocks = f"SM clock {found['sm_mhz']} of at most {found['largest_sm_mhz']} MHz at start" if found["sm_mhz"] else "clocks not told"
        power = f", power limit {found['limit_watts']} W" if found["limit_watts"] else ""
        return {
            f"GPU {self.name}": f"{found['name']}, compute capability {'.'.join(map(str, found['capability']))}, {found['memory_bytes'] / 2**30:.1f} GiB, "
            f"L2 cache {found['l2_bytes'] / 2**20:g} MiB; driver {found['driver']}, CUDA {found['cuda']}, cuDNN {found['cudnn']}; {clocks}{power}"
        }

    def runtimes(self) -> tuple[str, ...]:
        return tuple(name for name in RUNTIMES if name != "onnxruntime" or not self.onnxruntime_lacks())

    def onnxruntime_lacks(self) -> str:
        try:
            return facts(self.name)["onnxruntime"]
        except Unreachable as error:
            return str(error)

    def refuse(self, runtime: str, threads: int) -> None:
        if runtime not in RUNTIMES:
            raise Refused(f"{runtime} does not compute on NVIDIA GPUs from here; {', '.join(RUNTIMES)} do")
        if runtime == "onnxruntime" and (lack := self.onnxruntime_lacks()):
            raise Refused(lack)

    def check(self) -> None:
        facts(self.name)


TARGET = Cuda


def listed() -> Iterator[Listed]:
    lack = driver_lacks()
    if lack:
        yield Listed("cuda:0", False, lack, ())
        return
    import pynvml

    for device in range(pynvml.nvmlDeviceGetCount()):
        target = Cuda(device=device)
        try:
            yield Listed(target.name, True, target.environment()[f"GPU {target.name}"], target.runtimes())
        except Unreachable as error:
            yield Listed(target.name, False, str(error), ())


def driver_lacks() -> str:
    """Why no GPU can be used here, seen without PyTorch; "" where it is worth asking PyTorch."""
    for package, name, extra in (("torch", "PyTorch", "torch"), ("pynvml", "nvidia-ml-py", "gpu")):
        if find_spec(package) is None:
            return f"{name} is not installed: pip install 'compresskit[{extra}]'"
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return f"this machine has no NVIDIA driver that answers ({error})"
    return ""


@cache
def facts(device: str) -> dict[str, Any]:
    """What a fresh process finds, so that this one does not import PyTorch. Unreachable, with the reason, where it finds nothing to compute on."""
    if lack := driver_lacks():
        raise Unreachable(f"target {device}: {lack}")
    with Worker(1) as worker:
        outcome = worker.call("evaluators.runtimes.cuda:facts", device, limit=LIMIT)
    if outcome.status != "done":
        raise Unreachable(f"target {device}: {outcome.cause}")
    return outcome.value
