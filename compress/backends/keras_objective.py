"""The loss of a Keras model's outputs, alone or with a teacher's."""

from typing import Any

import keras
import tensorflow as tf

from compress.backends.keras_network import KerasNetwork
from compress.backends.training_data import Batches, check_labels
from compress.errors import InputError
from compress.training import Course

SMALLEST = 1e-7  # probability whose logarithm is taken


class Objective:
    """(inputs in the model's order, labels) -> scalar loss, inside a graph."""

    def __init__(self, network: KerasNetwork, course: Course, batches: Batches):
        self.network, self.course, self.loss = network, course, course.data.loss
        self.distill = course.budget.distill
        if self.distill and course.teacher is None:
            raise InputError(f"{course.name}: the budget distils, but there is no teacher")
        logits = self.loss == "cross_entropy" or self.distill
        self.probabilities = bool(logits) and ends_in_softmax(network.model)
        self.notes = ("training: the model ends in a softmax, so the loss takes the logarithm of its outputs for logits",) if self.probabilities else ()
        check_labels(course, batches, first(network.run_symbolic(network.model)))

    def __call__(self, tensors: list[tf.Tensor], labels: tf.Tensor) -> tf.Tensor:
        outputs = self.network.call(self.network.model, tensors)
        loss = self.task(outputs, labels)
        if self.distill is None:
            return loss
        teacher = self.course.teacher
        return (1 - self.distill.weight) * loss + self.distill.weight * self.divergence(outputs, teacher.call(teacher.model, tensors))

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
