"""A model with one layer alone compressed, in an exporting process: what that layer costs by itself."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from compress.errors import Refused
from compress.network import Network
from compress.pipeline import Compressed, compress
from compress.recipe import Recipe
from compress.references import load_training
from evaluators.artifact_facts import to_facts
from evaluators.artifacts import opened
from evaluators.dataset import stored_samples
from evaluators.layers import SAMPLES, difference
from evaluators.worker import resolve

Way = Literal["network", "file"]


@dataclass(frozen=True)
class Source:
    """What an arm was exported from, as `evaluators.artifacts:export_recipe` takes it."""

    model: str
    calibration: str | None
    training: tuple[str | None, float]
    folder: str
    recipe: str  # YAML
    trained: str  # the folder of finished trainings


@dataclass(frozen=True, eq=False)
class Parts:
    """The whole recipe's result, and the float network that single layers are put into.

    That is the model itself, or what steps left in float where they train or take channels out: a layer of theirs fits no other.
    """

    small: Compressed
    base: Network

    @cached_property
    def values(self) -> dict[str, np.ndarray]:
        return {name: weight.value for name, weight in self.small.network.weights().items()}

    def network(self, layer: str, value: np.ndarray) -> Network:
        return self.base if np.array_equal(self.base.weights()[layer].value, value) else self.base.with_weights({layer: value})


@cache
def parts(source: Source) -> Parts:
    network, data = opened(source.model, source.calibration, source.folder)
    recipe = Recipe.parse(source.recipe)
    taught = load_training(*source.training, Path(source.folder)) if recipe.trains else None
    small = compress(network, recipe, calibration=data, training=taught, checkpoints=Path(source.trained))
    shapes = [{name: weight.value.shape for name, weight in one.weights().items()} for one in (network, small.network)]
    return Parts(small, small.network if recipe.trains or shapes[0] != shapes[1] else network)


def way(source: Source, exporter: str, export: str) -> Way:
    """How a layer alone is measured: `network`, by the framework with the decoded weight, or `file`, where activations are rounded too.

    Refused for an exporter whose converter picks the numbers of the whole model at once.
    """
    if resolve(f"{export.partition(':')[0]}:EXPORTERS").load(exporter).OWN_NUMBERS:
        raise Refused(f"{exporter} quantizes the whole model by numbers of its own, no layer alone")
    return "file" if any(decision.activations for decision in parts(source).small.plan.compressed.values()) else "network"


def output_db(source: Source, layer: str, data: str) -> float:
    """How far the network's outputs are from float32's where this layer's weight is what its format gives back."""
    found = parts(source)
    value = found.small.encoded[layer].decode() if layer in found.small.encoded else found.values[layer]
    return difference(outputs(found.base.with_weights({layer: value}), data), float32_outputs(source, data))


@cache
def float32_outputs(source: Source, data: str) -> Sequence[Sequence[np.ndarray]]:
    return outputs(parts(source).base, data)


def outputs(network: Network, data: str) -> list[list[np.ndarray]]:
    return [network.run(sample) for sample in islice(stored_samples(Path(data), network.inputs), SAMPLES)]


def write(source: Source, layer: str, exporter: str, export: str, out: str, name: str) -> dict[str, Any]:
    """Writes `out`/`name`, in which this layer alone has its format and activations, and returns the artifact's facts."""
    found = parts(source)
    plan = found.small.plan
    rest = {"format": None, "activations": None, "prune": None, "cluster": None, "wanted": False, "reason": f"only {layer} is compressed"}
    decisions = tuple(d if d.name == layer else replace(d, **rest, size_bytes=d.float_bytes) for d in plan.decisions)
    one = replace(
        found.small,
        network=found.network(layer, found.values[layer]),
        recipe=found.small.recipe.model_copy(update={"interface": "float32"}),
        plan=replace(plan, decisions=decisions),
        encoded={name: encoded for name, encoded in found.small.encoded.items() if name == layer},
        kept=(),
    )
    return to_facts(resolve(export)(one, Path(out) / name, exporter), name)
