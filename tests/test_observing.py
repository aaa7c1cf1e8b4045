"""What the layers of a network are multiplied by, in each framework: rows times the canonical weight are the layer's outputs."""

import numpy as np
import pytest

from compress import open_model

KERAS = {
    "same": ((7, 6, 4), lambda layers: layers.Conv2D(3, (3, 2), 2, "same", name="it")),
    "dilated": ((7, 6, 4), lambda layers: layers.Conv2D(3, 2, dilation_rate=2, name="it")),
    "causal": ((9, 4), lambda layers: layers.Conv1D(3, 3, padding="causal", dilation_rate=2, name="it")),
    "conv3d": ((4, 5, 4, 2), lambda layers: layers.Conv3D(3, 2, padding="same", name="it")),
    "dense": ((9, 4), lambda layers: layers.Dense(3, name="it")),
    "einsum": ((9, 4), lambda layers: layers.EinsumDense("abc,cde->abde", (None, 2, 3), name="it")),
    "ellipsis": ((9, 4), lambda layers: layers.EinsumDense("...x,xy->...y", 3, name="it")),
    "separable": ((7, 6, 4), lambda layers: layers.SeparableConv2D(3, 3, 2, "same", name="it")),
}
PYTORCH = {
    "linear": ((5, 4), lambda nn: nn.Linear(4, 3, bias=False)),
    "strided": ((4, 7, 6), lambda nn: nn.Conv2d(4, 3, (3, 2), 2, 1, bias=False)),
    "dilated": ((4, 7, 6), lambda nn: nn.Conv2d(4, 3, 2, dilation=2, bias=False)),
    "same": ((4, 7, 6), lambda nn: nn.Conv2d(4, 3, (3, 2), padding="same", bias=False)),
    "reflected": ((4, 7, 6), lambda nn: nn.Conv2d(4, 3, 3, padding=1, padding_mode="reflect", bias=False)),
    "conv1d": ((4, 9), lambda nn: nn.Conv1d(4, 3, 3, 2, 1, bias=False)),
}


@pytest.mark.parametrize("name", KERAS)
def test_rows_of_keras_layers(name):
    keras = pytest.importorskip("keras")
    pytest.importorskip("tensorflow")
    shape, layer = KERAS[name]
    x = keras.Input(shape, name="x")
    network = open_model(keras.Model(x, layer(keras.layers)(x)), None)
    sample = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
    compare(network, next(n for n in network.weights() if n.endswith(("it/kernel", "pointwise_kernel"))), sample, network.run({"x": sample})[0])


@pytest.mark.parametrize("name", PYTORCH)
def test_rows_of_pytorch_layers(name):
    torch = pytest.importorskip("torch")
    shape, layer = PYTORCH[name]
    torch.manual_seed(0)
    sample = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
    network = open_model(torch.nn.Sequential(layer(torch.nn)), sample)
    outputs = network.run({"input": sample})[0]
    compare(network, "0.weight", sample, outputs if name == "linear" else np.moveaxis(outputs, 1, -1))


def compare(network, name, sample, outputs):
    seen = []
    network.observe([name], sample, lambda name, rows: seen.append(rows))
    weight = network.weights()[name].value
    np.testing.assert_allclose((seen[0] @ weight.reshape(len(weight), -1).T).ravel(), outputs.ravel(), rtol=1e-4, atol=1e-5)
    moment = network.second_moments([name], sample)[name]
    np.testing.assert_allclose(moment, seen[0].T.astype(np.float64) @ seen[0] / len(seen[0]), rtol=1e-5, atol=1e-7)  # float32 inputs
