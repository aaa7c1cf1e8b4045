"""One small network of digits in each framework that trains, for the laws of tests/test_training.py."""

import sys
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import pytest

from compress import open_model
from compress.numerics import encode
from compress.training import Budget, Course, Training


@cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """float32 images [5000, 14, 14, 1], every second pixel, and their labels."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "digits"))
    try:
        from data import digits as read
    finally:
        sys.path.pop(0)
    images, labels = read()
    return np.ascontiguousarray(images[:, ::2, ::2]), labels


class Case:
    """A convolution and a linear layer, with its data. `kernels` names their weights, `place` finds a pixel (sample, y, x)."""

    name: str
    kernels: tuple[str, str]

    def images(self, channels_last: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def opened(self, seed: int):
        raise NotImplementedError

    @cached_property
    def data(self) -> Training:
        images, labels = digits()
        return Training({"image": self.images(images[1000:3000])}, labels[1000:3000], learning_rate=3e-3)

    def course(self, constraints, steps: int = 40, **given) -> Course:
        return Course("steps.0 (test)", constraints, given.pop("budget", None) or Budget(steps=steps), given.pop("data", None) or self.data, **given)

    def train(self, constraints, steps: int = 40, start=None, **given):
        """The network after a course, from the trained one or `start`."""
        return (start or self.trained).train(self.course(constraints, steps, **given))[0]

    @cached_property
    def trained(self):
        return self.opened(1).train(self.course({}, 250))[0]

    def sparse(self, share: float = 0.7) -> dict[str, np.ndarray]:
        """Masks of the trained network's largest weights."""
        weights = values(self.trained)
        return {name: np.abs(weights[name]) > np.quantile(np.abs(weights[name]), share) for name in self.kernels}

    def accuracy(self, network, fmt=None) -> float:
        images, labels = digits()
        weights = {name: encode(network.weights()[name].value, fmt).decode() for name in self.kernels} if fmt else {}
        logits = network.with_weights(weights).run({"image": self.images(images[:1000])})[0]
        return float((logits.argmax(-1) == labels[:1000]).mean())

    def features(self, network) -> np.ndarray:
        """Outputs of the convolution for some test images."""
        raise NotImplementedError

    def first_loss(self, constraints, **given) -> float:
        losses = []
        self.train(constraints, 1, progress=lambda step, steps, loss: losses.append(loss), **given)
        return losses[0]


def values(network) -> dict[str, np.ndarray]:
    return {name: weight.value for name, weight in network.weights().items()}


class Keras(Case):
    name, kernels = "keras", ("conv/kernel", "logits/kernel")

    def images(self, channels_last):
        return channels_last

    def opened(self, seed, last=None, filters=8):
        import keras

        keras.utils.set_random_seed(seed)
        image = keras.Input((14, 14, 1), name="image")
        x = keras.layers.Conv2D(filters, 3, 2, activation="relu", name="conv")(image)
        return open_model(keras.Model(image, keras.layers.Dense(10, last, name="logits")(keras.layers.Flatten()(x))), None)

    def gradient(self, network, images, labels) -> np.ndarray:
        """Of the cross entropy by the linear layer's canonical weight."""
        import tensorflow as tf

        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, network.model(images)))
        return tape.gradient(loss, network.slots[self.kernels[1]].variable.value).numpy().T

    def features(self, network):
        layer = network.model.get_layer("conv")
        return np.asarray(layer(digits()[0][:100]))

    @staticmethod
    def distance(outputs, labels):
        import tensorflow as tf

        return tf.reduce_mean(tf.abs(outputs - labels))

    @staticmethod
    def broken(outputs, labels):
        """0, with a gradient that is no number."""
        import tensorflow as tf

        return tf.reduce_sum(tf.sqrt(outputs * 0))

    def clean(self, network) -> bool:
        """Whether nothing of a training hangs on the model."""
        return all("call" not in vars(layer) for layer in network.model.layers)


class Pytorch(Case):
    name, kernels = "pytorch", ("conv.weight", "logits.weight")

    def images(self, channels_last):
        return np.ascontiguousarray(channels_last.transpose(0, 3, 1, 2))

    def opened(self, seed, filters=8):
        import torch

        class Model(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.conv = torch.nn.Conv2d(1, filters, 3, 2)
                self.logits = torch.nn.Linear(36 * filters, 10)

            def forward(self, image):
                return self.logits(torch.relu(self.conv(image)).flatten(1))

        torch.manual_seed(seed)
        return open_model(Model(), {"image": self.images(digits()[0][:1])})

    def gradient(self, network, images, labels) -> np.ndarray:
        import torch

        copy = network.with_weights({}).model.requires_grad_(True)
        torch.nn.functional.cross_entropy(copy(torch.from_numpy(images)), torch.from_numpy(labels)).backward()
        return copy.logits.weight.grad.numpy()

    def features(self, network):
        import torch

        with torch.no_grad():
            return network.model.conv(torch.from_numpy(self.images(digits()[0][:100]))).numpy()

    @staticmethod
    def distance(outputs, labels):
        return (outputs - labels).abs().mean()

    @staticmethod
    def broken(outputs, labels):
        return (outputs * 0).sqrt().sum()

    def clean(self, network) -> bool:
        return not any(module._forward_pre_hooks or module._forward_hooks for module in network.model.modules())


@cache
def training_case(name: str) -> Case:
    pytest.importorskip("mlxtend")
    for package in {"keras": ("tensorflow", "keras"), "pytorch": ("torch",)}[name]:
        pytest.importorskip(package)
    return {"keras": Keras, "pytorch": Pytorch}[name]()
