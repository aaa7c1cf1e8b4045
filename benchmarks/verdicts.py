"""Whether a study's verdicts can be trusted: the same file against itself, and a file that was made 2% slower."""

import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np

from evaluators.metrics import latency
from evaluators.metrics.latency import AGAIN, Member
from evaluators.results import Latency
from evaluators.study import LatencySettings
from evaluators.worker import Worker

EXAMPLE = Path(__file__).parents[1] / "examples" / "efficientnet"
FILES = {"litert": "float32.tflite", "onnxruntime": "float32.onnx"}
SAME, PLANTED = 20, 10  # runs
SLOWER = 1.02
PATIENT = LatencySettings(processes=12, blocks=24, runs=1, seconds=0, warmup_seconds=0.2)
"""Of a study that is to see 2%: arms take turns run by run, as other work comes in bursts, and in many processes each."""


def files(folder: Path) -> dict[str, tuple]:
    """Arguments of `evaluators.metrics.latency:load` by runtime: EfficientNet-Lite0 in float32, and its test samples."""
    import compress
    import exporters
    from compress.references import load_data, load_model
    from evaluators.artifact_facts import to_facts
    from evaluators.dataset import prepare

    prepare("efficientnet.py:test", str(EXAMPLE), 32, str(folder / "data"))
    network = compress.open_model(load_model("efficientnet.py:model", EXAMPLE), load_data("efficientnet.py:calibration", EXAMPLE)[0])
    found = {}
    for runtime, name in FILES.items():
        artifact = exporters.export(compress.compress(network, "float32"), folder / name)
        found[runtime] = (to_facts(artifact, artifact.path.name), str(folder), runtime, 1, str(folder / "data"))
    return found


def measured(arm: tuple, longer: float, settings: LatencySettings) -> Latency:
    """The row of `arm` run `longer` times as long beside itself, as a study measures it."""
    arms = {"float32": (*arm, 1.0), AGAIN: (*arm, 1.0), "other": (*arm, longer)}
    members: dict[str, Member] = latency.measure_group(arms, partial(Worker, 1), "benchmarks.made_slower", settings, 2, 120.0, lambda name, stage: None)
    blocks = {name: np.stack(member.blocks) for name, member in members.items()}
    return latency.derive(members["other"].facts, blocks["other"], blocks, False, 1)


def run():
    with tempfile.TemporaryDirectory(prefix="compresskit-bench-") as folder:
        for runtime, arm in files(Path(folder)).items():
            yield from planted(runtime, arm)
            yield from the_same(runtime, arm)


def the_same(runtime: str, arm: tuple):
    found = [told(f"{runtime}, the same, {number + 1} of {SAME}", measured(arm, 1.0, LatencySettings())) for number in range(SAME)]
    covered = sum(one.speedup.low <= 1 <= one.speedup.high for one in found)
    claims = sum(one.verdict != "no difference shown" for one in found)
    yield f"{runtime}: the same file twice, {SAME} times: intervals that cover 1", f"{covered} of {SAME}", "at least 90%", covered >= 0.9 * SAME
    yield f"{runtime}: the same file twice, {SAME} times: a difference claimed", f"{claims} times", "never", not claims


def planted(runtime: str, arm: tuple):
    slower, longest = 0, 0.0
    for number in range(PLANTED):
        started = time.perf_counter()
        found = told(f"{runtime}, made slower, {number + 1} of {PLANTED}", measured(arm, SLOWER, PATIENT))
        longest = max(longest, time.perf_counter() - started)
        slower += found.verdict == "slower"
    what = f"{runtime}: made {SLOWER - 1:.0%} slower, {PLANTED} runs of at most {longest:.0f} s: found"
    yield what, f"{slower} of {PLANTED}", "at least 90%, under 60 s each", slower >= 0.9 * PLANTED and longest < 60


def told(what: str, found: Latency) -> Latency:
    speedup, noise = (f"{one.value:.4f} [{one.low:.4f}, {one.high:.4f}]" for one in (found.speedup, found.noise))
    print(f"{what}: {speedup}, noise floor {noise}: {found.verdict}", file=sys.stderr, flush=True)
    return found
