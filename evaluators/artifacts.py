"""Exports, as they run in a process of their own."""

import time
from functools import cache
from hashlib import sha256
from math import log10
from pathlib import Path
from typing import Any

import numpy as np

from compress.artifact import Artifact, deflated_bytes
from compress.backends import open_model
from compress.errors import Refused
from compress.network import Network
from compress.pipeline import Compressed, compress
from compress.plan import Plan
from compress.recipe import Recipe
from compress.references import load_data, load_model, load_training
from compress.samples import Data
from evaluators.artifact_facts import to_facts
from evaluators.worker import resolve, tell

EXPORT = "exporters:export"
TRAINED = "trained"
TELL_SECONDS = 3.0
STRANGERS = 3  # constants that are named


@cache
def opened(model: str, calibration: str | None, folder: str) -> tuple[Network, Data | None]:
    """A study's model and calibration data, once per process: exporters keep what they derive from a network object."""
    data = load_data(calibration, Path(folder))[0] if calibration else None
    return open_model(load_model(model, Path(folder)), inputs=data), data


class Steps:
    """Tells of the optimizer steps of a training, every few seconds."""

    def __init__(self):
        self.name, self.begun, self.done, self.told = "", 0.0, 0, 0.0

    def __call__(self, name: str, step: int, steps: int, loss: float) -> None:
        now = time.monotonic()
        if name != self.name:
            self.name, self.begun, self.done, self.told = name, now, step, now  # a training that goes on from a checkpoint begins in the middle
        elif now - self.told > TELL_SECONDS:
            self.told = now
            left = (now - self.begun) / (step - self.done) * (steps - step)
            tell(f"{name}: step {step} of {steps}, loss {loss:.4g}, about {left:.0f} s left")


def export_recipe(
    model: str, calibration: str | None, training: tuple[str | None, float], folder: str, recipe: str, exporter: str, out: str, name: str, export: str
) -> dict[str, Any]:
    """Writes one artifact to `out`/`name` and returns its facts. `recipe` is YAML; what it trains is kept beside the artifacts, for the other exporters."""
    network, data = opened(model, calibration, folder)
    parsed = Recipe.parse(recipe)
    taught = load_training(*training, Path(folder)) if parsed.trains else None
    trained = Path(out).parent / TRAINED / sha256(model.encode()).hexdigest()[:8]
    small = compress(network, parsed, calibration=data, training=taught, checkpoints=trained, progress=Steps())
    artifact = resolve(export)(small, Path(out) / name, exporter)
    return {
        "artifact": to_facts(artifact, name),
        "deflated_bytes": deflated_bytes(artifact.path),
        "planned": planned(small.plan),
        "layers": [decision.name for decision in small.plan.decisions if decision.steps],
        "predicted": predicted(small, artifact, export),
        "framework": network.framework,
        "errors": errors(small, artifact, export),
    }


def predicted(small: Compressed, artifact: Artifact, export: str) -> dict[str, Any]:
    """Bytes that the plan expects of the file, its graph left out, and the largest constants of the file that the plan does not know."""
    package, plan = export.partition(":")[0], small.plan
    placed = resolve(f"{package}:placements")(plan, artifact.exporter, small.network.framework, small.recipe.allow_float)
    expected = resolve(f"{package}:predicted_bytes")(plan, artifact.exporter, placed) or plan.size_bytes
    known = {decision.name for decision in plan.decisions}
    strangers = sorted(((t.name, t.size_bytes) for t in artifact.tensors if t.name not in known), key=lambda pair: -pair[1])
    return {"bytes": expected, "strangers": strangers[:STRANGERS]}


def errors(small: Compressed, artifact: Artifact, export: str) -> dict[str, float]:
    """Signal to rounding error of every weight that the file holds as it was encoded, where there is an error, in dB: 10 log10(sum of squares / sum of
    squared differences).
    """
    if resolve(f"{export.partition(':')[0]}:EXPORTERS").load(artifact.exporter).OWN_NUMBERS:
        return {}
    weights, found = small.network.weights(), {}
    left = {tensor.name for tensor in artifact.tensors if tensor.placement == "float"}
    for name, encoded in small.encoded.items():
        value = weights[name].value
        noise = float(np.square(value - encoded.decode(), dtype=np.float64).sum())
        if noise and name not in left:
            found[name] = 10 * log10(float(np.square(value, dtype=np.float64).sum()) / noise)
    return found


def planned(plan: Plan) -> dict[str, str]:
    """The plan's format of every compressed tensor, in words."""
    return {name: f"{d.format}{f', {d.activations}' if d.activations else ''}" for name, d in plan.compressed.items()}


def exporter_facts(export: str, exporter: str) -> dict[str, str]:
    """Where an exporter's files run, and their suffix. Refused for files that no runtime here loads."""
    module = resolve(f"{export.partition(':')[0]}:EXPORTERS").load(exporter)
    if not module.RUNTIME:
        raise Refused(f"{exporter} writes {module.SUFFIX} files for other programs: no runtime here loads them")
    return {"runtime": module.RUNTIME, "suffix": module.SUFFIX}
