"""A model on its way through a recipe: what its steps have made of it so far, and the proof that they keep each other's work."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from compress.errors import BrokenInvariant, InputError
from compress.network import COMPRESSIBLE, Network
from compress.plan import Decision, Plan, plan
from compress.recipe import Recipe
from compress.samples import Data
from compress.training import Budget, Constraint, Course, Remask, Training

Progress = Callable[[str, int, int, float], None]
"""(step's name, optimizer step, of how many, loss)"""


@dataclass(frozen=True)
class Means:
    """What a caller gives besides model and recipe.

    folder    where trainings keep their checkpoints; None keeps none
    progress  called after every optimizer step
    """

    calibration: Data | None = None
    training: Training | None = None
    folder: Path | None = None
    progress: Progress | None = None


@dataclass(frozen=True)
class Kept:
    """An invariant that was checked on the values after a step."""

    tensor: str
    claim: str  # as "at least 80% zeros"
    after: str  # the step
    measured: str


@dataclass(frozen=True, eq=False)
class Work:
    """network  with the values that the steps so far left; pruned weights are 0, clustered ones share values
    masks    bool by tensor name, True where a weight may differ from 0
    codes    cluster of each value by tensor name
    scales   that training learned, float32 by tensor name
    """

    network: Network
    original: Network
    recipe: Recipe
    plan: Plan
    means: Means
    masks: Mapping[str, np.ndarray] = field(default_factory=dict)
    codes: Mapping[str, np.ndarray] = field(default_factory=dict)
    scales: Mapping[str, np.ndarray] = field(default_factory=dict)
    kept: tuple[Kept, ...] = ()

    def taken(self, index: int) -> dict[str, Decision]:
        """The tensors that a step takes."""
        return {d.name: d for d in self.plan.decisions if index in d.steps}

    def values(self, names) -> dict[str, np.ndarray]:
        weights = self.network.weights()
        return {name: weights[name].value for name in names}

    def with_values(self, values: Mapping[str, np.ndarray]) -> "Work":
        return replace(self, network=self.network.with_weights(values))

    def with_masks(self, masks: Mapping[str, np.ndarray]) -> "Work":
        return replace(self, masks={**self.masks, **masks})

    def with_codes(self, codes: Mapping[str, np.ndarray]) -> "Work":
        return replace(self, codes={**self.codes, **codes})

    def moments(self, names) -> Mapping[str, np.ndarray]:
        """Second moments [inputs, inputs] of the layers' inputs over the calibration data."""
        if self.means.calibration is None:
            raise InputError(f"recipe {self.recipe.name!r} ranks weights by their inputs: give `calibration`, some 100 typical inputs")
        return self.network.second_moments(tuple(names), self.means.calibration)

    def without_channels(self, names, sparsity: float, multiple: int) -> "Work":
        """The network without its least salient channels, with a plan of the smaller tensors. InputError where nothing can go.

        Channels go where every weight that makes them is named.
        """
        from compress.channels import choose

        weights, found = self.network.weights(), self.network.channel_groups()
        makers = {g.id: [part.weight for part in g.role("output") if weights[part.weight].kind in COMPRESSIBLE] for g in found if not g.reason}
        selected = [group for group in found if not group.reason and all(name in names for name in makers[group.id])]
        kept = choose(selected, weights, sparsity, multiple)
        if not kept:
            whole = "; ".join(f"{group.id}: {group.reason or 'too narrow, or not all of its weights are selected'}" for group in found)
            raise InputError(f"recipe {self.recipe.name!r} takes out no channel of this model: {whole or 'no layer makes channels that another one reads'}")
        network = self.network.without_channels(kept)
        return replace(self, network=network, plan=plan(network.weights(), self.recipe))

    def label(self, index: int) -> str:
        """A step's name in messages; the encoding is what comes after the last one."""
        return f"steps.{index} ({self.recipe.steps[index].step})" if index < len(self.recipe.steps) else "encoding"

    def constraint(self, decision: Decision, index: int) -> Constraint:
        """What a tensor keeps while step `index` trains."""
        steps = [i for i in decision.steps if i <= index]
        quantize = next((self.recipe.steps[i] for i in steps if self.recipe.steps[i].step == "quantize"), None)
        codes = self.codes.get(decision.name)
        dkm = decision.cluster.dkm if decision.cluster and decision.cluster is self.recipe.steps[index] else None
        return Constraint(
            mask=self.masks.get(decision.name),
            codes=codes,
            per_axis=decision.cluster is not None and decision.cluster.per == "axis",
            zero=codes is not None and decision.prune is not None,
            format=quantize.weights if quantize else None,
            learned=quantize is not None and quantize.scales == "learned",
            scales=self.scales.get(decision.name),
            temperature=dkm.temperature if dkm else None,
            activations=quantize.activations if quantize else None,
        )

    def learned(self, index: int, budget: Budget, remask: Remask | None = None) -> "Work":
        """The network after a step's training, in which all that earlier steps made is kept."""
        if self.means.training is None:
            raise InputError(f"{self.label(index)} of recipe {self.recipe.name!r} trains: give `training`, inputs with their labels")
        budget = budget.model_copy(update={"learning_rate": budget.learning_rate or self.means.training.learning_rate})
        course = Course(
            name=self.label(index),
            constraints={d.name: self.constraint(d, index) for d in self.plan.decisions if d.steps},
            budget=budget,
            data=self.means.training,
            remask=remask,
            teacher=self.original if budget.distill else None,
            checkpoint=self.means.folder / f"{self.recipe.id}-{index}.safetensors" if self.means.folder else None,
            progress=(lambda step, steps, loss: self.means.progress(self.label(index), step, steps, loss)) if self.means.progress else None,
        )
        with locked(course.checkpoint):
            network, scales = self.network.train(course)
        return replace(self, network=network, scales={**self.scales, **scales})

    def checked(self, index: int, values: Mapping[str, np.ndarray] | None = None) -> "Work":
        """Proves on the network's values, or on the given ones, what the steps up to `index` promise. BrokenInvariant names tensor and step."""
        found = []
        promises = [d for d in self.plan.decisions if (d.prune or d.cluster) and (values is None or d.name in values)]
        values = values if values is not None or not promises else self.values(d.name for d in promises)
        for decision in promises:
            value = values[decision.name]
            for step in (self.recipe.steps[i] for i in decision.steps if i <= index):
                for claim, measured, reason in step.holds(value, self.masks.get(decision.name)):
                    if reason:
                        raise BrokenInvariant(f"{decision.name}: {claim} does not hold after {self.label(index)}: {reason}")
                    found.append(Kept(decision.name, claim, self.label(index), measured))
        return replace(self, kept=self.kept + tuple(found))


@contextmanager
def locked(checkpoint: Path | None) -> Iterator[None]:
    """Processes that export one recipe to several files train it once."""
    if checkpoint is None:
        yield
        return
    from filelock import FileLock

    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(checkpoint.with_suffix(".lock")):
        yield
