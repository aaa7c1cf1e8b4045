"""The loss of a Keras model's outputs, alone or with a teacher's."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf

from compress.backends.keras_layouts import walk
from compress.backends.keras_network import KerasNetwork
from compress.backends.keras_observing import Wrapper, wrapped
from compress.backends.training_data import Batches, check_features, check_labels, feature_layers
from compress.training import Course

SMALLEST = 1e-7  # probability whose logarithm is taken


class Objective:
    """(inputs in the model's order, labels) -> scalar loss, inside a graph."""

    def __init__(self, network: KerasNetwork, course: Course, batches: Batches):
        self.network, self.course, self.loss = network, course, course.data.loss
        self.distill = course.budget.distill
        self.features = feature_layers(course, [path for path, _ in walk(network.model) if path])
        logits = self.loss == "cross_entropy" or self.distill
        self.probabilities = bool(logits) and ends_in_softmax(network.model)
        self.notes = ("training: the model ends in a softmax, so the loss takes the logarithm of its outputs for logits",) if self.probabilities else ()
        with tapped(network.model, self.features) as found:
            check_labels(course, batches, first(network.run_symbolic(network.model)))
        if self.features:
            with tapped(course.teacher.model, self.features) as taught:
                network.run_symbolic(course.teacher.model)
            check_features(course, found, taught)

    def __call__(self, tensors: list[tf.Tensor], labels: tf.Tensor) -> tf.Tensor:
        with tapped(self.network.model, self.features) as found:
            outputs = self.network.call(self.network.model, tensors)
        loss = self.task(outputs, labels)
        return loss if self.distill is None else self.distilled(loss, outputs, found, tensors)

    def distilled(self, loss: tf.Tensor, outputs: Any, found: Mapping[str, list[tf.Tensor]], tensors: list[tf.Tensor]) -> tf.Tensor:
        teacher, weight = self.course.teacher, self.distill.weight
        with tapped(teacher.model, self.features) as taught:
            loss = (1 - weight) * loss + weight * self.divergence(outputs, teacher.call(teacher.model, tensors))
        pairs = [(tf.cast(a, tf.float32), tf.cast(b, tf.float32)) for name in self.features for a, b in zip(found[name], taught[name], strict=True)]
        errors = [tf.reduce_mean(tf.square(a - b)) for a, b in pairs]
        return loss + self.distill.feature_weight * tf.add_n(errors) / len(errors) if errors else loss

    def task(self, outputs: Any, labels: tf.Tensor) -> tf.Tensor:
        if self.loss == "cross_entropy":
            return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, self.logits(outputs)))
        if self.loss == "mse":
            found = tf.cast(first(outputs), tf.float32)
            return tf.reduce_mean(tf.square(found - tf.cast(labels, tf.float32)))
        return tf.cast(self.loss(outputs, labels), tf.float32)

    def logits(self, outputs: Any) -> tf.Tensor:
        found = tf.cast(first(outputs), tf.float32)
        return tf.math.log(tf.maximum(found, SMALLEST)) if self.probabilities else found

    def divergence(self, outputs: Any, taught: Any) -> tf.Tensor:
        """temperature^2 * KL(teacher || student), the mean over samples."""
        temperature = self.distill.temperature
        student = tf.nn.log_softmax(self.logits(outputs) / temperature)
        teacher = tf.nn.log_softmax(self.logits(taught) / temperature)
        return temperature**2 * tf.reduce_mean(tf.reduce_sum(tf.exp(teacher) * (teacher - student), -1))


@contextmanager
def tapped(model: keras.Model, names: Iterable[str]) -> Iterator[dict[str, list[tf.Tensor]]]:
    """Inside, the floating-point outputs of the named layers are collected, in the order of their calls."""
    found: dict[str, list[tf.Tensor]] = {name: [] for name in names}

    def tapping(name: str) -> Wrapper:
        def wrapper(call: Callable, *args, **kwargs) -> Any:
            outputs = call(*args, **kwargs)
            found[name] += [tensor for tensor in map(tf.convert_to_tensor, keras.tree.flatten(outputs)) if tensor.dtype.is_floating]
            return outputs

        return wrapper

    with wrapped((layer, tapping(path)) for path, layer in walk(model) if path in found):
        yield found


def first(outputs: Any) -> Any:
    return keras.tree.flatten(outputs)[0]


def ends_in_softmax(model: keras.Model) -> bool:
    """Whether Keras's graph says that the first output is a softmax. A model of the user's own code is taken to give logits."""
    if not getattr(model, "outputs", None):
        return False
    operation = model.outputs[0]._keras_history.operation
    if isinstance(operation, keras.Model):
        return ends_in_softmax(operation)
    return isinstance(operation, keras.layers.Softmax) or getattr(operation, "activation", None) is keras.activations.softmax
