"""An arm on a GPU: the memory that it takes there, and what is to be said of how it computes."""

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from evaluators.dataset import stored_samples
from evaluators.metrics.session import load
from evaluators.results import Gpu, Memory

RUNS = 5


def measure(facts: dict[str, Any], folder: str, runtime: str, threads: int, data: str, samples: int) -> tuple[dict[str, Any], dict]:
    artifact, session = load(facts, folder, runtime, threads)
    inputs = list(islice(stored_samples(Path(data), artifact.contents.inputs), min(RUNS, samples)))
    return {"memory": session.memory(inputs), "notes": list(session.notes), "computed": session.computed}, {}


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
