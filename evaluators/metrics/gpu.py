"""An arm on a GPU: the memory that it takes there, and what is to be said of how it computes."""

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from evaluators.dataset import stored_samples
from evaluators.metrics import Done
from evaluators.metrics.session import load
from evaluators.results import Gpu, Memory

RUNS = 5
PROTOCOL = {
    "GPU": "On a GPU one time runs from an idle device, with its L2 cache flushed (zeros written to twice its size) and the sample in its memory, to the last "
    "kernel, by CUDA events; clocks are as the driver sets them. float32 products are without TF32. Memory is the peak of PyTorch's allocator while "
    f"{RUNS} samples run; for other runtimes it is the process's by NVML less what CUDA itself takes. Energy is the whole card's, by NVML's counter, "
    "while inferences follow each other without a pause.",
}


def measure(facts: dict[str, Any], folder: str, runtime: str, threads: int, data: str, samples: int) -> tuple[dict[str, Any], dict]:
    artifact, session = load(facts, folder, runtime, threads)
    inputs = list(islice(stored_samples(Path(data), artifact.contents.inputs), min(RUNS, samples)))
    return {"memory": session.memory(inputs), "notes": list(session.notes), "computed": session.computed}, {}


def rows(done: Done, before: Done) -> dict[str, Any]:
    timed = done("latency")
    found = derive(done("gpu").facts, timed.facts if timed else {})
    return {"gpu": found, "memory": memory(found)}


def derive(facts: Mapping[str, Any], timed: Mapping[str, Any]) -> Gpu:
    """`timed` holds what the latency run read of energy, where it did."""
    return Gpu(**facts["memory"], watts=timed.get("watts"), millijoules=timed.get("millijoules"))


def memory(found: Gpu) -> Memory | None:
    """What the model takes: by PyTorch's allocator, or the process less CUDA's share where the runtime has an allocator of its own."""
    if found.allocated_bytes is not None:
        return Memory(found.allocated_bytes, 0)
    if found.process_bytes is not None and found.context_bytes is not None:
        return Memory(found.process_bytes, found.context_bytes)
    return None
