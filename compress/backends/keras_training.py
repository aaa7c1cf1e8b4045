"""Training of Keras 3 models in which every weight keeps what a recipe made of it: zeros, clusters, a number format.

What learns is a latent array per variable. Before every step the model's variables are given the values that it stands for, pruned, clustered and rounded;
the gradients at these values go to the latent arrays, which is the straight-through estimator (Bengio et al. 2013).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from compress.backends.keras_layouts import Slot, walk
from compress.backends.keras_network import KerasNetwork
from compress.backends.keras_objective import Objective
from compress.backends.keras_observing import Wrapper, wrapped
from compress.backends.training_data import Batches, Checkpoint, advice
from compress.errors import InputError, TrainingError
from compress.formats import Activations, StaticActivations
from compress.numerics import encode
from compress.training import Constraint, Course

SAVE_SECONDS = 10.0
BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-7  # Keras's Adam
AVERAGE = 0.99  # of the ranges of static activations: what stays of the old one at every step


@dataclass(frozen=True, eq=False)
class Part:
    """A variable that learns.

    parameter  what Adam moves, float32: the variable itself, latent values of its shape, or centroids [clusters] or [out * clusters]
    first, second  Adam's moments
    keep       1 where the parameter may differ from 0, in its shape; None for everywhere
    codes      int32, the centroid of each value, flattened in Keras's layout
    mask       0 or 1 in the variable's shape, where codes alone do not say what is pruned
    """

    name: str
    slot: Slot
    constraint: Constraint
    parameter: tf.Variable
    first: tf.Variable
    second: tf.Variable
    keep: tf.Variable | None
    codes: tf.Tensor | None
    mask: tf.Tensor | None

    @property
    def own(self) -> bool:
        """Whether the parameter is the model's variable."""
        return self.parameter is self.slot.variable.value

    def values(self) -> tf.Tensor:
        """Latent values in Keras's layout: pruned and clustered, not rounded."""
        if self.codes is None:
            return self.parameter + 0.0  # a pruned -0 becomes 0
        found = tf.reshape(tf.gather(self.parameter, self.codes), self.slot.variable.shape)
        return found if self.mask is None else found * self.mask + 0.0

    def canonical(self) -> np.ndarray:
        return self.slot.layout.canonical(self.values().numpy())

    def place(self) -> None:
        """Gives the model the latent values, inside a graph."""
        if self.constraint.format is None and not self.own:
            self.slot.variable.assign(self.values())

    def place_rounded(self) -> None:
        """Gives the model the values that the format holds; the core's own arithmetic, so the codes are those of the exported file."""
        if self.constraint.format is not None:
            decoded = encode(self.canonical(), self.constraint.format).decode()
            self.slot.variable.assign(self.slot.layout.keras(decoded, tuple(self.slot.variable.shape)))

    def gradient(self, gradient: Any) -> tf.Tensor:
        """The parameter's gradient, from that of the variable."""
        gradient = tf.cast(tf.convert_to_tensor(gradient), tf.float32)
        if self.mask is not None:
            gradient = gradient * self.mask
        if self.codes is not None:
            gradient = tf.math.unsorted_segment_sum(tf.reshape(gradient, [-1]), self.codes, self.parameter.shape[0])
        return gradient if self.keep is None else gradient * self.keep

    def learn(self, gradient: tf.Tensor, rate: tf.Tensor, power_1: tf.Tensor, power_2: tf.Tensor) -> None:
        tf.raw_ops.ResourceApplyAdam(
            var=self.parameter.handle, m=self.first.handle, v=self.second.handle, beta1_power=power_1, beta2_power=power_2,
            lr=rate, beta1=BETA_1, beta2=BETA_2, epsilon=EPSILON, grad=gradient,
        )  # fmt: skip
        if self.keep is not None:
            self.parameter.assign(self.parameter * self.keep)

    def remask(self, mask: np.ndarray) -> None:
        """A new mask, canonical."""
        self.keep.assign(in_keras(self.slot, mask))
        self.parameter.assign(self.parameter * self.keep)

    def state(self) -> dict[str, tf.Variable]:
        found = {"parameter": self.parameter, "first": self.first, "second": self.second}
        return found if self.keep is None else {**found, "keep": self.keep}


def in_keras(slot: Slot, value: np.ndarray) -> np.ndarray:
    return slot.layout.keras(np.asarray(value, np.float32), tuple(slot.variable.shape))


def part(name: str, slot: Slot, constraint: Constraint) -> Part:
    for what in ("mask", "codes"):
        given = getattr(constraint, what)
        if given is not None and given.shape != slot.layout.shape:
            raise InputError(f"{name}: a {what} of shape {list(given.shape)} does not fit, expected {list(slot.layout.shape)}")
    start, keep, codes, mask = slot.value, None, None, None
    if constraint.codes is not None:
        start, keep, codes = clusters(slot, constraint)
        mask = None if constraint.zero or constraint.mask is None else tf.constant(in_keras(slot, constraint.mask))
    elif constraint.mask is not None:
        keep = in_keras(slot, constraint.mask)
        start = start * keep
    if constraint.codes is None and constraint.format is None and slot.variable.dtype == "float32":
        parameter = slot.variable.value
        parameter.assign(start)
    else:
        parameter = tf.Variable(start, dtype=tf.float32)
    first, second = tf.Variable(tf.zeros(parameter.shape)), tf.Variable(tf.zeros(parameter.shape))
    return Part(name, slot, constraint, parameter, first, second, None if keep is None else tf.Variable(keep, dtype=tf.float32), codes, mask)


def clusters(slot: Slot, constraint: Constraint) -> tuple[np.ndarray, np.ndarray | None, tf.Tensor]:
    """(centroids: the mean of each cluster's values, which of them may move or None for all, the centroid of each value)."""
    codes = constraint.codes.astype(np.int64)
    count = int(codes.max()) + 1
    size = count * len(codes) if constraint.per_axis else count
    if constraint.per_axis:
        codes = codes + count * np.arange(len(codes)).reshape(-1, *[1] * (codes.ndim - 1))
    values = slot.layout.canonical(slot.value)
    centroids = np.bincount(codes.ravel(), values.ravel(), size) / np.maximum(np.bincount(codes.ravel(), minlength=size), 1)
    keep = None
    if constraint.zero:
        keep = np.ones(size, np.float32)
        keep[::count] = 0
        centroids = centroids * keep
    return centroids.astype(np.float32), keep, tf.constant(slot.layout.keras(codes, tuple(slot.variable.shape)).ravel().astype(np.int32))


def parts_of(network: KerasNetwork, course: Course) -> list[Part]:
    """Every variable that learns or is constrained. A variable that its layer froze does not learn, but is rounded all the same."""
    strangers = [name for name in course.constraints if name not in network.slots]
    if strangers:
        raise InputError(f"{course.name}: the model has no tensor {', '.join(map(repr, strangers))}")
    learning = {id(variable) for variable in network.model.trainable_variables}
    return [
        part(name, slot, course.constraints.get(name, Constraint()))
        for name, slot in network.slots.items()
        if id(slot.variable) in learning or name in course.constraints
    ]


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
        self.total = course.budget.total(self.batches.samples)
        self.quantized = {p.name: tf.Variable(tf.zeros(3)) for p in self.parts if p.constraint.activations is not None}
        self.compiled = tf.function(self.step)

    @property
    def wrappers(self) -> list[tuple[keras.Layer, Wrapper]]:
        """One for each layer: several weights of a layer share its input."""
        found = {id(p.slot.layer): (p.slot.layer, rounding(p.constraint.activations, self.quantized[p.name])) for p in self.parts if p.name in self.quantized}
        return list(found.values())

    def state(self) -> dict[str, tf.Variable]:
        found = {f"{p.name}|{what}": variable for p in self.parts for what, variable in p.state().items()}
        return found | {f"{name}|range": seen for name, seen in self.quantized.items()}

    def step(self, tensors: list[tf.Tensor], labels: tf.Tensor, rate: tf.Tensor, power_1: tf.Tensor, power_2: tf.Tensor) -> tf.Tensor:
        """One step inside a graph; a loss that is not finite changes nothing."""
        for each in self.parts:
            each.place()
        with tf.GradientTape() as tape:
            loss = self.objective(tensors, labels)
        variables = [p.slot.variable.value for p in self.parts]
        pairs = [(p, p.gradient(g)) for p, g in zip(self.parts, tape.gradient(loss, variables), strict=True) if g is not None]

        def learn() -> tf.Tensor:
            for each, gradient in pairs:
                each.learn(gradient, rate, power_1, power_2)
            return loss

        return tf.cond(tf.math.is_finite(loss), learn, lambda: loss)

    def remask(self, step: int) -> None:
        """Asks for new masks while the sparsity grows, and before the last step for those that stay."""
        last = step == self.total - 1
        masked = {p.name: p for p in self.parts if p.constraint.mask is not None and p.codes is None}
        if self.course.remask is None or not masked or (step % self.course.remask_every and not last):
            return
        share = 1.0 if last else step / self.total
        for name, mask in self.course.remask(share, {name: p.canonical() for name, p in masked.items()}).items():
            masked[name].remask(mask)

    def run(self, start: int, save: Callable[[int], None]) -> None:
        budget, saved = self.course.budget, monotonic()
        rate = budget.learning_rate or self.course.data.learning_rate
        for step in range(start, self.total):
            self.remask(step)
            for each in self.parts:
                each.place_rounded()
            tensors, labels = self.batches.at(step)
            decayed = rate * (1 + math.cos(math.pi * step / self.total)) / 2
            scalars = [tf.constant(value, tf.float32) for value in (decayed, BETA_1 ** (step + 1), BETA_2 ** (step + 1))]
            loss = float(self.compiled([tf.constant(tensor) for tensor in tensors], tf.constant(labels), *scalars))
            if not math.isfinite(loss):
                raise TrainingError(
                    f"{self.course.name}: the loss is {loss} at step {step + 1} of {self.total}; {self.culprit(tensors)}{advice(self.course.checkpoint)}"
                )
            if self.course.progress:
                self.course.progress(step + 1, self.total, loss)
            if step + 1 == self.total or monotonic() - saved > SAVE_SECONDS:
                save(step + 1)
                saved = monotonic()

    def culprit(self, tensors: list[np.ndarray]) -> str:
        """The first layer whose outputs are not finite, in the order of the model's calls."""
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
            self.network.call(self.network.model, [tf.constant(tensor) for tensor in tensors])
        return f"the first outputs that are not finite are those of layer {found[0]}" if found else "the outputs of every layer are finite, the loss is not"


def train(network: KerasNetwork, course: Course) -> KerasNetwork:
    """A copy of the network with what its variables learned; pruned and clustered as constrained, not yet rounded to their formats.

    The model runs as for inference: statistics of norms stay, nothing is dropped out.
    InputError for data and constraints that do not fit; TrainingError for a loss that is NaN or infinite. An existing checkpoint of another training is
    replaced, with a warning.
    """
    learner = Learner(network, course)
    checkpoint = Checkpoint(course, learner.batches, {name: weight.value for name, weight in network.weights().items()})
    start, arrays = checkpoint.read(set(learner.state()))
    for name, variable in learner.state().items() if start else ():
        variable.assign(arrays[name])

    def save(step: int) -> None:
        checkpoint.write(step, {name: variable.numpy() for name, variable in learner.state().items()})

    if not start:
        save(0)
    with wrapped(learner.wrappers):
        learner.run(start, save)
    trained = network.with_weights({p.name: p.canonical() for p in learner.parts})
    notes = tuple(note for note in learner.objective.notes if note not in network.notes)
    return KerasNetwork(trained.model, trained.inputs, trained.structure, (*trained.notes, *notes))
