"""One NVIDIA GPU through PyTorch and NVML: what it is, and the sessions that run there with its own clock, memory and energy."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from importlib.util import find_spec
from typing import Any

import numpy as np
import pynvml
import torch

from compress.errors import Unreachable
from compress.network import Inputs

ENERGY_SECONDS = 2.0  # NVML's counter moves every 20 to 100 ms
QUEUED = 16  # inferences in a row between two waits, so that a sustained run keeps the device busy
NO_CUDA = "PyPI's Linux build has it: pip install --force-reinstall --index-url https://pypi.org/simple torch=={}"


def facts(device: str) -> dict[str, Any]:
    """JSON of what a report says of a device and what results there depend on. Unreachable where PyTorch cannot use it."""
    if torch.version.cuda is None:
        raise Unreachable(f"the PyTorch installed here, {torch.__version__}, is built without CUDA; {NO_CUDA.format(torch.__version__.partition('+')[0])}")
    try:
        torch.cuda.init()
    except RuntimeError as error:
        raise Unreachable(f"PyTorch finds no GPU that it can use: {error}") from error
    index, count = torch.device(device).index, torch.cuda.device_count()
    if index >= count:
        raise Unreachable(f"there is no {device}: this machine has {', '.join(f'cuda:{n}' for n in range(count))}")
    properties = torch.cuda.get_device_properties(index)
    try:
        card = handle(device)
    except pynvml.NVMLError as error:
        raise Unreachable(f"NVML does not know {device} ({properties.name}): {error}; a part of a card (MIG) is not supported") from error
    return {
        "name": properties.name,
        "capability": [properties.major, properties.minor],
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
        "driver": pynvml.nvmlSystemGetDriverVersion(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "sm_mhz": told(pynvml.nvmlDeviceGetClockInfo, card, pynvml.NVML_CLOCK_SM),
        "largest_sm_mhz": told(pynvml.nvmlDeviceGetMaxClockInfo, card, pynvml.NVML_CLOCK_SM),
        "limit_watts": round((told(pynvml.nvmlDeviceGetEnforcedPowerLimit, card) or 0) / 1000) or None,
        "onnxruntime": onnxruntime_lacks(),
    }


def onnxruntime_lacks() -> str:
    """Why ONNX Runtime cannot compute on a GPU here, "" where it can."""
    if find_spec("onnxruntime") is None:
        return "onnxruntime is not installed"
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        return ""
    return f"onnxruntime {onnxruntime.__version__} has no CUDA provider: pip uninstall onnxruntime, then pip install onnxruntime-gpu"


def handle(device: str) -> Any:
    """NVML's handle of a device of PyTorch's, whose numbers differ where CUDA_VISIBLE_DEVICES is set."""
    pynvml.nvmlInit()
    return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")


def told(read: Callable[..., int], *arguments: Any) -> int | None:
    """What NVML says; None where this card or driver does not tell."""
    try:
        return read(*arguments)
    except pynvml.NVMLError:
        return None


def process_bytes(device: str) -> int | None:
    """This process's memory on a device; None where NVML does not name it, as in a container with process ids of its own."""
    running = told(pynvml.nvmlDeviceGetComputeRunningProcesses, handle(device)) or []
    return next((process.usedGpuMemory for process in running if process.pid == os.getpid()), None)


def use(device: str) -> int | None:
    """This process computes on `device` from now on: float32 products without TF32, those of half types summed in float32.

    Bytes that CUDA takes there before anything else does, None where NVML does not tell.
    """
    torch.cuda.set_device(device)
    torch.backends.cuda.matmul.fp32_precision = torch.backends.cudnn.conv.fp32_precision = "ieee"
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.zeros(1, device=device)
    torch.cuda.synchronize()
    return process_bytes(device)


class CudaSession:
    """A loaded artifact on a device.

    place     brings one batch there
    compute   queues the work on `stream`, and gives the outputs as they will lie on the device
    fetch     waits for them and brings them back, in the model's order
    notes     what is to be said of how it computes here
    computed  how weights compute here (placement and reason by name), where that is not what their file says
    context   bytes of the process on the device before the artifact was loaded, where NVML tells
    """

    def __init__(
        self,
        device: str,
        place: Callable[[Inputs], Any],
        compute: Callable[[Any], Any],
        fetch: Callable[[Any], list[np.ndarray]],
        *,
        context: int | None,
        stream: "torch.cuda.Stream | None" = None,
        notes: Sequence[str] = (),
        computed: Mapping[str, tuple[str, str]] | None = None,
    ):
        self.device, self.place, self.compute, self.fetch = device, place, compute, fetch
        self.context, self.notes, self.computed = context, tuple(notes), dict(computed or {})
        self.of_pytorch = stream is None  # then its memory is PyTorch's allocator's
        self.stream = stream or torch.cuda.current_stream(device)

    def run(self, inputs: Inputs) -> list[np.ndarray]:
        return self.fetch(self.compute(self.place(inputs)))

    @cached_property
    def scratch(self) -> torch.Tensor:
        """Twice the L2 cache."""
        return torch.empty(2 * torch.cuda.get_device_properties(self.device).L2_cache_size, dtype=torch.int8, device=self.device)

    def timed(self, inputs: Inputs) -> int:
        """Nanoseconds by the device's clock (CUDA events) from an idle device with a flushed L2 cache and the batch in its memory to the last kernel."""
        placed, start, end = self.place(inputs), torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        self.scratch.zero_()
        torch.cuda.synchronize()
        start.record(self.stream)
        self.compute(placed)
        end.record(self.stream)
        end.synchronize()
        return round(1e6 * start.elapsed_time(end))

    def memory(self, inputs: Sequence[Inputs]) -> dict[str, int | None]:
        """Bytes once `inputs` have run: the process's by NVML with CUDA's share of it, and the peaks of PyTorch's allocator where it is the one in use."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        for batch in inputs:
            self.run(batch)
        found = {"process_bytes": process_bytes(self.device), "context_bytes": self.context, "allocated_bytes": None, "reserved_bytes": None}
        if self.of_pytorch:
            found |= {"allocated_bytes": torch.cuda.max_memory_allocated(), "reserved_bytes": torch.cuda.max_memory_reserved()}
        return found

    def energy(self, inputs: Sequence[Inputs]) -> dict[str, float]:
        """The whole card's `watts` while inferences follow each other for 2 seconds, and `millijoules` for each; {} where NVML has no counter."""
        card = handle(self.device)
        if told(pynvml.nvmlDeviceGetTotalEnergyConsumption, card) is None:
            return {}
        placed, runs = [self.place(batch) for batch in inputs], 0
        torch.cuda.synchronize()
        before, started = pynvml.nvmlDeviceGetTotalEnergyConsumption(card), time.perf_counter()
        while time.perf_counter() - started < ENERGY_SECONDS:
            for _ in range(QUEUED):
                self.compute(placed[runs % len(placed)])
                runs += 1
            torch.cuda.synchronize()
        seconds, spent = time.perf_counter() - started, pynvml.nvmlDeviceGetTotalEnergyConsumption(card) - before
        return {"watts": spent / 1000 / seconds, "millijoules": spent / runs}
