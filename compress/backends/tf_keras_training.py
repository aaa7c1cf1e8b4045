"""Training of models that came from tf_keras, through TFMOT; what TFMOT cannot hold is trained by the project's own Keras 3 code, and said."""

import math
import os
from collections.abc import Callable
from time import monotonic
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from compress.backends import keras_training
from compress.backends.keras_network import KerasNetwork
from compress.backends.keras_objective import Objective
from compress.backends.training_data import Batches, Checkpoint, advice
from compress.errors import MissingExtra, TrainingError
from compress.training import Course


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


class Learner:
    """A twin while it trains, by the Adam and the cosine decay of the other backends."""

    def __init__(self, network: KerasNetwork, course: Course, batches: Batches, twin: Any):
        self.network, self.course, self.batches, self.twin = network, course, batches, twin
        self.objective = Objective(Traced(network, twin), course, batches)
        self.total = course.budget.total(batches.samples)
        self.variables = list({id(v): v for v in twin.model.trainable_variables}.values())
        self.moments = [(tf.Variable(tf.zeros(v.shape)), tf.Variable(tf.zeros(v.shape))) for v in self.variables]
        self.compiled = tf.function(self.step)

    def state(self) -> dict[str, tf.Variable]:
        named = {id(self.twin.variables[id(slot.variable)]): name for name, slot in self.network.slots.items() if id(slot.variable) in self.twin.variables}
        found = {f"{named.get(id(v), v.name)}|{i}": v for i, v in enumerate(self.twin.model.variables)}
        return found | {f"moment|{i}|{k}": moment for i, pair in enumerate(self.moments) for k, moment in enumerate(pair)}

    def values(self) -> dict[str, np.ndarray]:
        """Canonical, by tensor name."""
        return {name: self.twin.value(name, slot) for name, slot in self.network.slots.items() if id(slot.variable) in self.twin.variables}

    def step(self, tensors: list[tf.Tensor], labels: tf.Tensor, rate: tf.Tensor, power_1: tf.Tensor, power_2: tf.Tensor) -> tf.Tensor:
        """One step inside a graph; a loss that is not finite changes nothing that learns."""
        with tf.GradientTape() as tape:
            loss = self.objective(tensors, labels)
        found = zip(self.variables, self.moments, tape.gradient(loss, self.variables), strict=True)
        learning = [(v, pair, tf.convert_to_tensor(gradient)) for v, pair, gradient in found if gradient is not None]

        def learn() -> tf.Tensor:
            for variable, (first, second), gradient in learning:
                tf.raw_ops.ResourceApplyAdam(
                    var=variable.handle, m=first.handle, v=second.handle, beta1_power=power_1, beta2_power=power_2,
                    lr=rate, beta1=keras_training.BETA_1, beta2=keras_training.BETA_2, epsilon=keras_training.EPSILON, grad=gradient,
                )  # fmt: skip
            return loss

        return tf.cond(tf.math.is_finite(loss), learn, lambda: loss)

    def remask(self, step: int) -> None:
        """Asks for new masks while the sparsity grows, and before the last step for those that stay."""
        last = step == self.total - 1
        masked = {name: hold for name, hold in self.twin.held.items() if self.course.constraints[name].mask is not None and hold.codes is None}
        if self.course.remask is None or not masked or (step % self.course.remask_every and not last):
            return
        slots = self.network.slots
        for name, mask in self.course.remask(1.0 if last else step / self.total, {name: self.twin.value(name, slots[name]) for name in masked}).items():
            masked[name].mask.assign(keras_training.in_keras(slots[name], mask))

    def run(self, start: int, save: Callable[[int], None]) -> None:
        saved, rate = monotonic(), self.course.budget.learning_rate or self.course.data.learning_rate
        for step in range(start, self.total):
            self.remask(step)
            tensors, labels = self.batches.at(step)
            decayed = rate * (1 + math.cos(math.pi * step / self.total)) / 2
            powers = (keras_training.BETA_1 ** (step + 1), keras_training.BETA_2 ** (step + 1))
            scalars = [tf.constant(value, tf.float32) for value in (decayed, *powers)]
            loss = float(self.compiled([tf.constant(tensor) for tensor in tensors], tf.constant(labels), *scalars))
            if not math.isfinite(loss):
                where = f"the first outputs that are not finite are those of layer {self.culprit(tensors)}"
                raise TrainingError(f"{self.course.name}: the loss is {loss} at step {step + 1} of {self.total}; {where}{advice(self.course.checkpoint)}")
            if self.course.progress:
                self.course.progress(step + 1, self.total, loss)
            if step + 1 == self.total or monotonic() - saved > keras_training.SAVE_SECONDS:
                save(step + 1)
                saved = monotonic()

    def culprit(self, tensors: list[np.ndarray]) -> str:
        """The first layer whose outputs are not finite."""
        model = self.twin.model
        layers = [layer for layer in model.layers if layer.name not in model.input_names]
        outputs = type(model)(model.inputs, [[layer.get_output_at(0)] for layer in layers])([tf.constant(tensor) for tensor in tensors])
        broken = [getattr(layer, "layer", layer).name for layer, (value,) in zip(layers, outputs, strict=True) if not np.isfinite(value).all()]
        return broken[0] if broken else "none, only the loss"


def train(network: KerasNetwork, course: Course) -> KerasNetwork:
    """As compress.backends.keras_training.train, in tf_keras and inside TFMOT's wrappers. A note says who trained, and why where it was not TFMOT."""
    batches = Batches(course, network.inputs)
    twins = tfmot_twin()
    constraints = {name: c for name, c in course.constraints.items() if c.mask is not None or c.codes is not None or c.format is not None}
    try:
        if not constraints:
            raise twins.Untwinned("nothing to hold")
        found = twins.twin(network, constraints, batches.at(0)[0])
    except twins.Untwinned as reason:
        own = keras_training.train(network, course)
        own = KerasNetwork(own.model, own.inputs, own.structure, own.notes, network.from_tf_keras)
        return own.noted(f"{course.name} was trained by this project's own Keras 3 code, not through TFMOT: {reason}")
    learner = Learner(network, course, batches, found)
    checkpoint = Checkpoint(course, batches, {name: weight.value for name, weight in network.weights().items()})
    start, arrays = checkpoint.read(set(learner.state()))
    for name, variable in learner.state().items() if start else ():
        variable.assign(arrays[name].reshape(variable.shape))

    def save(step: int) -> None:
        checkpoint.write(step, {name: variable.numpy() for name, variable in learner.state().items()})

    if not start:
        save(0)
    learner.run(start, save)
    return network.with_weights(learner.values()).noted(f"{course.name} was trained in tf_keras through TFMOT", *learner.objective.notes)
