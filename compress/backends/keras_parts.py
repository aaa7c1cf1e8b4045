"""Variables of a Keras model that learn, each under the constraint that a recipe puts on it: zeros, clusters, a number format."""

from dataclasses import dataclass, replace

import numpy as np
import tensorflow as tf

from compress.backends import training_data
from compress.backends.keras_layouts import Slot
from compress.backends.keras_network import KerasNetwork
from compress.backends.keras_numerics import at_scales, rounded, stored
from compress.errors import InputError
from compress.numerics import encode, reach
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
        found = {"value": self.variable, "first": self.first, "second": self.second}
        return found if self.keep is None else {**found, "keep": self.keep}


@dataclass(frozen=True, eq=False)
class Part:
    """A variable that learns.

    latent  the variable itself, values of its shape, or centroids [clusters] or [out * clusters]; float32
    codes   int32, the centroid of each value, flattened in Keras's layout
    mask    0 or 1 in the variable's shape, where codes alone do not say what is pruned
    first   learned scales as they start, float32 [scales]; None where none learn
    growth  logarithm of what they are multiplied by: Adam's steps are relative to them then, and they stay positive
    """

    name: str
    slot: Slot
    constraint: Constraint
    latent: Latent
    codes: tf.Tensor | None
    mask: tf.Tensor | None
    first: tf.Tensor | None = None
    growth: Latent | None = None

    @property
    def latents(self) -> dict[str, Latent]:
        """All that learns, by what it is."""
        return {"latent": self.latent} if self.growth is None else {"latent": self.latent, "growth": self.growth}

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
        canonical = tf.reshape(tf.transpose(self.values(), layout.axes), layout.shape)
        found = rounded(canonical, self.constraint.format) if self.growth is None else at_scales(canonical, self.scales(), self.constraint.format)
        return tf.transpose(tf.reshape(found, [shape[axis] for axis in layout.axes]), np.argsort(layout.axes))

    def scales(self) -> tf.Tensor:
        """Learned scales [scales] as the format stores them."""
        return tf.grad_pass_through(lambda scales: stored(scales, self.constraint.format))(self.first * tf.exp(self.growth.value()))

    def learned_scales(self) -> np.ndarray:
        """As Encoded.scales."""
        return self.scales().numpy().reshape(reach.scale_shape(self.slot.layout.shape, self.constraint.format.granularity))

    def remask(self, mask: np.ndarray) -> None:
        """A new mask, canonical."""
        self.latent.keep.assign(in_keras(self.slot, mask))
        self.latent.variable.assign(self.latent.value())


def in_keras(slot: Slot, value: np.ndarray) -> np.ndarray:
    return slot.layout.keras(np.asarray(value, np.float32), tuple(slot.variable.shape))


def part(name: str, slot: Slot, constraint: Constraint) -> Part:
    training_data.check_constraint(name, constraint, slot.layout.shape)
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
    found = Part(name, slot, constraint, Latent.of(variable, keep), codes, mask)
    if not constraint.learned:
        return found
    scales = encode(found.canonical(), constraint.format).scales if constraint.scales is None else constraint.scales
    return replace(found, first=tf.constant(scales.ravel()), growth=Latent.of(tf.Variable(tf.zeros(scales.size))))


def clusters(slot: Slot, constraint: Constraint) -> tuple[np.ndarray, np.ndarray | None, tf.Tensor]:
    """(centroids, which of them may move or None for all, int32 the centroid of each value, flattened in Keras's layout)."""
    codes, centroids = training_data.clusters(slot.layout.canonical(slot.value), constraint)
    keep = None
    if constraint.zero:
        keep = np.ones(len(centroids), np.float32)
        keep[:: int(constraint.codes.max()) + 1] = 0
    return centroids, keep, tf.constant(slot.layout.keras(codes, tuple(slot.variable.shape)).ravel().astype(np.int32))


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
