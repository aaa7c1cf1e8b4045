"""Peak resident memory of a fresh process that loads an artifact and runs it, less what it was when it had only imported the runtime."""

from itertools import islice
from pathlib import Path
from typing import Any

from evaluators.metrics import Done
from evaluators.results import Memory
from evaluators.runtimes import RUNTIMES

RUNS = 5


def peak_bytes() -> int:
    """The largest resident set that this process ever had (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("this system does not tell the peak resident memory (VmHWM)")


def baseline(runtime: str) -> dict[str, Any]:
    """What the runtime costs before any model, and what it says of itself."""
    from evaluators.dataset import stored_samples  # noqa: F401
    from evaluators.metrics import session  # noqa: F401  so that both processes hold the same modules

    module = RUNTIMES.load(runtime)
    versions = module.versions()
    return {"exporter": module.EXPORTER, "suffix": module.SUFFIX, "versions": versions, "baseline_bytes": peak_bytes()}


def measure(facts: dict[str, Any], folder: str, runtime: str, threads: int, data: str, samples: int) -> tuple[dict[str, Any], dict]:
    from evaluators.dataset import stored_samples
    from evaluators.metrics.session import load

    before = baseline(runtime)["baseline_bytes"]
    artifact, session = load(facts, folder, runtime, threads)
    for sample in islice(stored_samples(Path(data), artifact.contents.inputs), min(RUNS, samples)):
        session.run(sample)
    return {"baseline_bytes": before, "peak_bytes": peak_bytes()}, {}


def rows(done: Done, before: Done) -> dict[str, Any]:
    return {"memory": derive(done("memory").facts, done("runtime").facts)}


def derive(facts: dict[str, Any], runtime_facts: dict[str, Any]) -> Memory:
    """`runtime_facts` are this machine's, for measurements of earlier versions, whose processes did not say what their runtime takes."""
    return Memory(facts["peak_bytes"], (runtime_facts | facts)["baseline_bytes"])
