"""Variables of a Keras model that learn, each under the constraint that a recipe puts on it: zeros, clusters, a number format."""

from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from compress.backends.keras_layouts import Slot
from compress.backends.keras_network import KerasNetwork
from compress.backends.keras_numerics import rounded
from compress.errors import InputError
from compress.training import Constraint, Course

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-7  # Keras's Adam


@dataclass(frozen=True, eq=False)
class Latent:
    """What Adam moves, with its moments. `keep` is 1 where it may differ from 0, None for everywhere."""

    variable: tf.Variable
    first: tf.Variable
    second: tf.Variable
    keep: tf.Variable | None = None

    @classmethod
    def of(cls, variable: tf.Variable, keep: np.ndarray | None = None) -> "Latent":
        first, second = tf.Variable(tf.zeros(variable.shape)), tf.Variable(tf.zeros(variable.shape))
        return cls(variable, first, second, None if keep is None else tf.Variable(keep, dtype=tf.float32))

    def value(self) -> tf.Tensor:
        return tf.convert_to_tensor(self.variable) if self.keep is None else self.variable * self.keep

    def learn(self, gradient: tf.Tensor, rate: tf.Tensor, power_1: tf.Tensor, power_2: tf.Tensor) -> None:
        tf.raw_ops.ResourceApplyAdam(
            var=self.variable.handle, m=self.first.handle, v=self.second.handle, beta1_power=power_1, beta2_power=power_2,
            lr=rate, beta1=BETA_1, beta2=BETA_2, epsilon=EPSILON, grad=gradient,
        )  # fmt: skip
        if self.keep is not None:
            self.variable.assign(self.variable * self.keep)

    def state(self) -> dict[str, tf.Variable]:
        found = {"parameter": self.variable, "first": self.first, "second": self.second}
        return found if self.keep is None else {**found, "keep": self.keep}


@dataclass(frozen=True, eq=False)
class Part:
    """A variable that learns.

    latent  the variable itself, values of its shape, or centroids [clusters] or [out * clusters]; float32
    codes   int32, the centroid of each value, flattened in Keras's layout
    mask    0 or 1 in the variable's shape, where codes alone do not say what is pruned
    """

    name: str
    slot: Slot
    constraint: Constraint
    latent: Latent
    codes: tf.Tensor | None
    mask: tf.Tensor | None

    @property
    def own(self) -> bool:
        """Whether the latent is the model's variable."""
        return self.latent.variable is self.slot.variable.value

    def values(self) -> tf.Tensor:
        """Latent values in Keras's layout: pruned and clustered, not rounded."""
        if self.codes is None:
            return self.latent.value()
        found = tf.reshape(tf.gather(self.latent.value(), self.codes), self.slot.variable.shape)
        return found if self.mask is None else found * self.mask

    def canonical(self) -> np.ndarray:
        return self.slot.layout.canonical(self.values().numpy()) + np.float32(0)  # a pruned -0 becomes 0

    def placed(self) -> tf.Tensor:
        """What the model computes with, in Keras's layout; differentiable by the latent."""
        if self.constraint.format is None:
            return self.values()
        layout, shape = self.slot.layout, self.slot.variable.shape
        found = rounded(tf.reshape(tf.transpose(self.values(), layout.axes), layout.shape), self.constraint.format)
        return tf.transpose(tf.reshape(found, [shape[axis] for axis in layout.axes]), np.argsort(layout.axes))

    def remask(self, mask: np.ndarray) -> None:
        """A new mask, canonical."""
        self.latent.keep.assign(in_keras(self.slot, mask))
        self.latent.variable.assign(self.latent.value())


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
        variable = slot.variable.value
        variable.assign(start)
    else:
        variable = tf.Variable(start, dtype=tf.float32)
    return Part(name, slot, constraint, Latent.of(variable, keep), codes, mask)


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
