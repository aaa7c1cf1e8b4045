"""Small models with inputs, opened once per test run, for laws that hold for every one of them."""

import functools
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compress.backends import open_model
from compress.network import Network
from compress.training import Training


@dataclass(frozen=True, eq=False)
class Case:
    network: Network
    data: dict[str, np.ndarray]  # 16 samples

    @property
    def training(self) -> Training:
        """Labels that say nothing: what is kept does not depend on what is learned."""
        outputs = [self.network.run(self.sample(i))[0] for i in range(16)]
        shape = np.concatenate(outputs).shape
        return Training(self.data, np.arange(np.prod(shape[:-1])).reshape(shape[:-1]) % shape[-1])

    def sample(self, index: int = 0) -> dict[str, np.ndarray]:
        return {name: values[index : index + 1] for name, values in self.data.items()}


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(7).standard_normal((16, *shape)).astype(np.float32)


def torch_case(model, **data) -> Case:
    return Case(open_model(model, data), data)


def seeded():
    import torch

    torch.manual_seed(0)
    return torch.nn


def torch_linear() -> Case:
    return torch_case(seeded().Linear(64, 32), input=noise(64))


def torch_conv() -> Case:
    return torch_case(seeded().Conv2d(32, 32, 3, padding=1), input=noise(32, 8, 8))


def torch_cnn() -> Case:
    import torch

    nn = seeded()
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1, groups=32),
        nn.BatchNorm2d(32),
        nn.ReLU6(),
        nn.ConvTranspose2d(32, 16, 2, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 32),
    )
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    return torch_case(model, input=noise(3, 8, 8))


def torch_text() -> Case:
    """Embedding, attention and an output layer tied to the embedding."""
    import torch

    nn = seeded()

    class Text(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(96, 64)
            self.attention = nn.MultiheadAttention(64, 2, batch_first=True)
            self.norm = nn.LayerNorm(64)
            self.up = nn.Linear(64, 128)
            self.down = nn.Linear(128, 64)
            self.head = nn.Linear(64, 96, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, tokens):
            hidden = self.embed(tokens)
            hidden = self.norm(hidden + self.attention(hidden, hidden, hidden, need_weights=False)[0])
            return self.head(hidden + self.down(torch.relu(self.up(hidden))))

    return torch_case(Text(), tokens=np.random.default_rng(7).integers(0, 96, (16, 12)))


def keras_cnn() -> Case:
    import keras

    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [
            layers.Input((8, 8, 3)),
            layers.Conv2D(32, 3, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.DepthwiseConv2D(3, padding="same"),
            layers.ReLU(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(32, activation="relu"),
            layers.Dense(10),
        ]
    )
    model(noise(8, 8, 3), training=True)  # gives the batch norm statistics that are not the identity
    data = {"input": noise(8, 8, 3)}
    network = open_model(model, None)
    return Case(network, {network.inputs[0].name: data["input"]})


def from_file(name: str, suffix: str) -> Case:
    """A case through a file of its float32 model."""
    import exporters
    from compress.pipeline import compress

    given = case(name)
    with tempfile.TemporaryDirectory() as folder:
        network = open_model(exporters.export(compress(given.network, "float32"), Path(folder) / f"float{suffix}").path)
    return Case(network, {network.inputs[0].name: next(iter(given.data.values()))})


def onnx_file() -> Case:
    return from_file("torch_cnn", ".onnx")


def tflite_file() -> Case:
    return from_file("keras_cnn", ".tflite")


CASES = {f.__name__: f for f in (torch_linear, torch_conv, torch_cnn, torch_text, keras_cnn, onnx_file, tflite_file)}


@functools.cache
def case(name: str) -> Case:
    return CASES[name]()


def flipped(whole: bytes, dice: random.Random) -> bytes:
    """A file with 1, 8 or 64 bytes of it replaced."""
    hurt = bytearray(whole)
    for _ in range(dice.choice((1, 8, 64))):
        hurt[dice.randrange(len(hurt))] = dice.randrange(256)
    return bytes(hurt)
