"""Training of models that came from tf_keras, through TFMOT; what TFMOT cannot hold is trained by the project's own Keras 3 code, and said."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from compress.backends import keras_training, training_loop
from compress.backends.keras_network import KerasNetwork
from compress.backends.keras_objective import Objective
from compress.backends.keras_parts import BETA_1, BETA_2, Latent, in_keras
from compress.backends.training_data import Batches
from compress.errors import MissingExtra
from compress.training import Constraint, Course


def tfmot_twin() -> Any:
    """compress.backends.tf_keras_twin. TFMOT would make tf.keras mean tf_keras in this process and its children: that is undone. MissingExtra."""
    _, before = tf.keras.Model, os.environ.get("TF_USE_LEGACY_KERAS")  # once looked at, tf.keras stays what it is
    try:
        from compress.backends import tf_keras_twin
    except ModuleNotFoundError as error:
        raise MissingExtra(f"tf_keras models are trained through TFMOT, and {error.name} is missing: pip install 'compresskit[tensorflow]'") from error
    finally:
        os.environ.pop("TF_USE_LEGACY_KERAS", None)
        if before is not None:
            os.environ["TF_USE_LEGACY_KERAS"] = before
    return tf_keras_twin


class Traced:
    """A twin where an Objective expects a network."""

    def __init__(self, network: KerasNetwork, twin: Any):
        self.model, self.run_symbolic, self.twin = network.model, network.run_symbolic, twin

    def call(self, model: keras.Model, tensors: list[tf.Tensor]) -> Any:
        return self.twin.call(tensors, True)


@dataclass(frozen=True, eq=False)
class Part:
    """A weight that a wrapper of the twin holds."""

    name: str
    constraint: Constraint
    learner: "Learner"

    @property
    def codes(self) -> tf.Tensor | None:
        return self.learner.twin.held[self.name].codes

    def canonical(self) -> np.ndarray:
        return self.learner.twin.value(self.name, self.learner.network.slots[self.name])

    def remask(self, mask: np.ndarray) -> None:
        self.learner.twin.held[self.name].mask.assign(in_keras(self.learner.network.slots[self.name], mask))


class Learner:
    """A twin while it trains."""

    def __init__(self, network: KerasNetwork, course: Course, batches: Batches, twin: Any):
        self.network, self.course, self.batches, self.twin = network, course, batches, twin
        self.objective = Objective(Traced(network, twin), course, batches)
        self.parts = [Part(name, course.constraints[name], self) for name in twin.held]
        self.latents = [Latent.of(v) for v in {id(v): v for v in twin.model.trainable_variables}.values()]
        self.compiled = tf.function(self.learn)

    def variables(self) -> dict[str, tf.Variable]:
        named = {id(self.twin.variables[id(slot.variable)]): name for name, slot in self.network.slots.items() if id(slot.variable) in self.twin.variables}
        found = {f"{named.get(id(v), v.name)}|{i}": v for i, v in enumerate(self.twin.model.variables)}
        return found | {f"moment|{i}|{k}": moment for i, latent in enumerate(self.latents) for k, moment in enumerate((latent.first, latent.second))}

    def state(self) -> dict[str, np.ndarray]:
        return {name: variable.numpy() for name, variable in self.variables().items()}

    def restore(self, step: int, arrays: Mapping[str, np.ndarray]) -> None:
        for name, variable in self.variables().items():
            variable.assign(arrays[name].reshape(variable.shape))

    def values(self) -> dict[str, np.ndarray]:
        """Canonical, by tensor name."""
        return {name: self.twin.value(name, slot) for name, slot in self.network.slots.items() if id(slot.variable) in self.twin.variables}

    def step(self, step: int, rate: float, inputs: list[np.ndarray], labels: np.ndarray) -> float:
        scalars = [tf.constant(value, tf.float32) for value in (rate, BETA_1 ** (step + 1), BETA_2 ** (step + 1))]
        return float(self.compiled([tf.constant(array) for array in inputs], tf.constant(labels), *scalars))

    def learn(self, tensors: list[tf.Tensor], labels: tf.Tensor, rate: tf.Tensor, power_1: tf.Tensor, power_2: tf.Tensor) -> tf.Tensor:
        """One step inside a graph; a loss that is not finite changes nothing that learns."""
        with tf.GradientTape() as tape:
            loss = self.objective(tensors, labels)
        found = zip(self.latents, tape.gradient(loss, [latent.variable for latent in self.latents]), strict=True)
        reached = [(latent, tf.convert_to_tensor(gradient)) for latent, gradient in found if gradient is not None]

        def move() -> tf.Tensor:
            for latent, gradient in reached:
                latent.learn(gradient, rate, power_1, power_2)
            return loss

        return tf.cond(tf.math.is_finite(loss), move, lambda: loss)

    def culprit(self, inputs: list[np.ndarray]) -> str | None:
        model = self.twin.model
        layers = [layer for layer in model.layers if layer.name not in model.input_names]
        outputs = type(model)(model.inputs, [[layer.get_output_at(0)] for layer in layers])([tf.constant(array) for array in inputs])
        broken = [getattr(layer, "layer", layer).name for layer, (value,) in zip(layers, outputs, strict=True) if not np.isfinite(value).all()]
        return broken[0] if broken else None


def unheld(course: Course) -> str:
    """Why TFMOT's wrappers cannot train this, whatever the model, or an empty string."""
    if not any(c.mask is not None or c.codes is not None or c.format is not None for c in course.constraints.values()):
        return "nothing to hold"
    if any(c.learned for c in course.constraints.values()):
        return "its scales follow from the weights and do not learn"
    return "its layers are not the teacher's, whose outputs are taught" if course.budget.distill and course.budget.distill.features else ""


def train(network: KerasNetwork, course: Course) -> tuple[KerasNetwork, dict[str, np.ndarray]]:
    """As compress.backends.keras_training.train, in tf_keras and inside TFMOT's wrappers. A note says who trained, and why where it was not TFMOT."""
    batches = Batches(course, network.inputs)
    twins = tfmot_twin()
    constraints = {name: c for name, c in course.constraints.items() if c.mask is not None or c.codes is not None or c.format is not None}
    try:
        if reason := unheld(course):
            raise twins.Untwinned(reason)
        found = twins.twin(network, constraints, batches.at(0)[0])
    except twins.Untwinned as reason:
        own, scales = keras_training.train(network, course)
        return own.noted(f"{course.name} was trained by this project's own Keras 3 code, not through TFMOT: {reason}"), scales
    learner = Learner(network, course, batches, found)
    training_loop.train(learner, {name: weight.value for name, weight in network.weights().items()})
    return network.with_weights(learner.values()).noted(f"{course.name} was trained in tf_keras through TFMOT", *learner.objective.notes), {}
