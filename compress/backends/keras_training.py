"""Training of Keras 3 models in which every weight keeps what a recipe made of it: zeros, clusters, a number format.

What learns is a latent array per variable. In every step the model's variables are given the values that it stands for, pruned, clustered and rounded, and the
gradients at these values go on to the latent arrays.
"""

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from compress.backends import training_loop
from compress.backends.keras_layouts import walk
from compress.backends.keras_network import KerasNetwork
from compress.backends.keras_objective import Objective
from compress.backends.keras_observing import Wrapper, wrapped
from compress.backends.keras_parts import BETA_1, BETA_2, parts_of
from compress.backends.training_data import Batches
from compress.formats import Activations, StaticActivations
from compress.training import Course

AVERAGE = 0.99  # of the ranges of static activations: what stays of the old one at every step


def rounding(activations: Activations, seen: tf.Variable) -> Wrapper:
    """A layer's call with its first input rounded to integers, gradients passed straight through and cut where the range cuts.

    The range is that of the moment, or of a moving average of the extremes; seen [low, high, 1 once it holds them].
    """

    def wrapper(call: Callable, first: Any, *args, **kwargs) -> Any:
        first = tf.convert_to_tensor(first)
        if not first.dtype.is_floating:
            return call(first, *args, **kwargs)
        values = tf.cast(first, tf.float32)
        ends = tf.stop_gradient(tf.stack([tf.minimum(tf.reduce_min(values), 0.0), tf.maximum(tf.reduce_max(values), 0.0)]))
        if isinstance(activations, StaticActivations):
            ends = tf.where(seen[2] > 0, AVERAGE * seen[:2] + (1 - AVERAGE) * ends, ends)
            seen.assign(tf.concat([ends, [1.0]], 0))
        largest = tf.reduce_max(tf.abs(ends))
        wide = activations.bits == 16  # symmetric
        low, high = (-largest, largest) if wide else (ends[0], ends[1])
        rounded = tf.quantization.fake_quant_with_min_max_vars(values, low, high, num_bits=activations.bits, narrow_range=wide)
        return call(tf.cast(rounded, first.dtype), *args, **kwargs)

    return wrapper


class Learner:
    """A model while it trains; its parts and ranges are all that changes from step to step."""

    def __init__(self, network: KerasNetwork, course: Course):
        self.network, self.course = network.with_weights({}), course
        self.batches = Batches(course, network.inputs)
        self.objective = Objective(self.network, course, self.batches)
        self.parts = parts_of(self.network, course)
        self.quantized = {p.name: tf.Variable(tf.zeros(3)) for p in self.parts if p.constraint.activations is not None}
        self.compiled = tf.function(self.learn)

    @property
    def wrappers(self) -> list[tuple[keras.Layer, Wrapper]]:
        """One for each layer: several weights of a layer share its input."""
        found = {id(p.slot.layer): (p.slot.layer, rounding(p.constraint.activations, self.quantized[p.name])) for p in self.parts if p.name in self.quantized}
        return list(found.values())

    def variables(self) -> dict[str, tf.Variable]:
        found = {f"{p.name}|{k}|{what}": variable for p in self.parts for k, latent in p.latents.items() for what, variable in latent.state().items()}
        return found | {f"{name}|range": seen for name, seen in self.quantized.items()}

    def state(self) -> dict[str, np.ndarray]:
        return {name: variable.numpy() for name, variable in self.variables().items()}

    def restore(self, step: int, arrays: Mapping[str, np.ndarray]) -> None:
        for name, variable in self.variables().items():
            variable.assign(arrays[name])

    def step(self, step: int, rate: float, inputs: list[np.ndarray], labels: np.ndarray) -> float:
        scalars = [tf.constant(value, tf.float32) for value in (rate, BETA_1 ** (step + 1), BETA_2 ** (step + 1))]
        return float(self.compiled([tf.constant(array) for array in inputs], tf.constant(labels), *scalars))

    def learn(self, tensors: list[tf.Tensor], labels: tf.Tensor, rate: tf.Tensor, power_1: tf.Tensor, power_2: tf.Tensor) -> tf.Tensor:
        """One step inside a graph; a loss that is not finite changes nothing."""
        with tf.GradientTape() as below:
            placed = [each.placed() for each in self.parts]
        for each, values in zip(self.parts, placed, strict=True):
            if not each.own:
                each.slot.variable.assign(values)
        with tf.GradientTape() as tape:
            loss = self.objective(tensors, labels)
        gradients = tape.gradient(loss, [each.slot.variable.value for each in self.parts])
        reached = [i for i, gradient in enumerate(gradients) if gradient is not None]
        latents = [latent for i in reached for latent in self.parts[i].latents.values()]
        above = [tf.cast(tf.convert_to_tensor(gradients[i]), tf.float32) for i in reached]
        found = below.gradient([placed[i] for i in reached], [latent.variable for latent in latents], above)

        def move() -> tf.Tensor:
            for latent, gradient in zip(latents, found, strict=True):
                latent.learn(tf.convert_to_tensor(gradient), rate, power_1, power_2)
            return loss

        return tf.cond(tf.math.is_finite(loss), move, lambda: loss)

    def culprit(self, inputs: list[np.ndarray]) -> str | None:
        found: list[str] = []

        def looking(path: str) -> Wrapper:
            def wrapper(call: Callable, *args, **kwargs) -> Any:
                outputs = call(*args, **kwargs)
                floats = [tensor for tensor in keras.tree.flatten(outputs) if tf.convert_to_tensor(tensor).dtype.is_floating]
                if not all(bool(tf.reduce_all(tf.math.is_finite(tensor))) for tensor in floats):
                    found.append(path)
                return outputs

            return wrapper

        leaves = [(layer, looking(path)) for path, layer in walk(self.network.model) if not layer._flatten_layers(include_self=False, recursive=False)]
        with wrapped(leaves):
            self.network.call(self.network.model, [tf.constant(array) for array in inputs])
        return found[0] if found else None


def train(network: KerasNetwork, course: Course) -> tuple[KerasNetwork, dict[str, np.ndarray]]:
    """A copy of the network with what its variables learned, pruned and clustered as constrained, not yet rounded to their formats; scales that learned.

    The model runs as for inference: statistics of norms stay, nothing is dropped out.
    InputError for data and constraints that do not fit; TrainingError for a loss that is NaN or infinite. An existing checkpoint of another training is
    replaced, with a warning.
    """
    learner = Learner(network, course)
    with wrapped(learner.wrappers):
        training_loop.train(learner, {name: weight.value for name, weight in network.weights().items()})
    trained = network.with_weights({p.name: p.canonical() for p in learner.parts})
    scales = {p.name: p.learned_scales() for p in learner.parts if p.growth is not None}
    return trained.noted(*learner.objective.notes), scales
