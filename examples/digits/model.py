"""A small Keras 3 convolutional network for 28x28 digits, trained when first asked for."""

from pathlib import Path
from types import ModuleType

import keras

TRAINED = Path(__file__).with_name("build") / "digits.keras"


def convolution(layers: ModuleType, x, filters: int, name: str, stride: int = 1):
    x = layers.Conv2D(filters, 3, stride, "same", use_bias=False, name=name)(x)
    return layers.ReLU(name=f"{name}_relu")(layers.BatchNormalization(name=f"{name}_norm")(x))


def separable(layers: ModuleType, x, filters: int, name: str, stride: int = 1):
    """A depthwise and a 1x1 convolution, each with its batch norm (Howard et al. 2017)."""
    x = layers.DepthwiseConv2D(3, stride, "same", use_bias=False, name=f"{name}_depthwise")(x)
    x = layers.ReLU(name=f"{name}_depthwise_relu")(layers.BatchNormalization(name=f"{name}_depthwise_norm")(x))
    x = layers.Conv2D(filters, 1, use_bias=False, name=f"{name}_pointwise")(x)
    return layers.ReLU(name=f"{name}_pointwise_relu")(layers.BatchNormalization(name=f"{name}_pointwise_norm")(x))


def untrained(library: ModuleType = keras) -> keras.Model:
    """Logits [batch, 10] of images [batch, 28, 28, 1] in 0..1, made of the layers of keras or tf_keras."""
    layers = library.layers
    image = library.Input((28, 28, 1), name="image")
    x = convolution(layers, image, 32, "conv1", stride=2)
    x = separable(layers, x, 64, "block1")
    x = separable(layers, x, 64, "block2", stride=2)
    x = layers.AveragePooling2D(2, 2, "same", name="pool")(x)
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dense(64, "relu", name="hidden")(x)
    return library.Model(image, layers.Dense(10, name="logits")(x), name="digits")


def load() -> keras.Model:
    """The trained network; the first call trains it, which takes under a minute, and keeps the file in build/."""
    if not TRAINED.exists():
        from train import main

        main()
    return keras.models.load_model(TRAINED, compile=False)
