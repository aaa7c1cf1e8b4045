"""PT2E's x86 quantizer itself as an arm: what it finds is int8 by its own numbers, what it leaves is named with the reason."""

import numpy as np
import pytest

pytest.importorskip("torchao")
import torch
from torch import nn
from torch.nn import functional

import exporters
from compress.errors import Refused
from compress.pipeline import compress
from compress.recipe import Recipe
from evaluators.runtimes import RUNTIMES

X = np.random.default_rng(0).standard_normal((8, 3, 8, 8)).astype(np.float32)


class Padded(nn.Conv2d):
    """As EfficientNet pads: the convolution is called by a module of another type."""

    def forward(self, x):
        return functional.conv2d(functional.pad(x, (0, 1, 0, 1)), self.weight, self.bias)


def model(first: type[nn.Conv2d]):
    torch.manual_seed(0)
    return nn.Sequential(first(3, 16, 2), nn.ReLU6(), nn.Conv2d(16, 8, 1), nn.Flatten(), nn.LazyLinear(10)).eval()


def written(first, tmp_path, recipe="int8-static"):
    net = model(first)
    net(torch.from_numpy(X))
    return compress(net, recipe, calibration=X), exporters.export(compress(net, recipe, calibration=X), tmp_path / "own.pt2", "torch-pt2e")


def test_what_it_knows_is_int8_by_its_own_scales(tmp_path):
    small, artifact = written(nn.Conv2d, tmp_path)
    stored = {tensor.name: tensor for tensor in artifact.tensors}
    assert [stored[name].dtype for name in small.encoded] == ["int8"] * 3 and artifact.contents.activation_ranges >= 3
    for name, encoded in small.encoded.items():
        decoded = stored[name].codes * stored[name].scales.reshape(-1, *[1] * (encoded.codes.ndim - 1))
        assert np.abs(decoded - small.network.weights()[name].value).max() <= stored[name].scales.max() / 2 * 1.01
    found = RUNTIMES.load("torch").load(artifact, 1).run({small.network.inputs[0].name: X[:1]})[0]
    expected = small.network.run({small.network.inputs[0].name: X[:1]})[0]
    assert 10 * np.log10(np.square(expected).sum() / np.square(found - expected).sum()) > 20


def test_what_it_leaves_in_float_is_named_with_the_module_that_it_does_not_know(tmp_path):
    _, artifact = written(Padded, tmp_path)
    stored = {tensor.name: tensor for tensor in artifact.tensors}
    assert stored["0.weight"].placement == "float" and stored["2.weight"].placement == "native"
    (note,) = [note for note in artifact.notes if note.startswith("0.weight stayed in float")]
    assert "torch.nn.modules.conv.Conv2d" in note and note.endswith("Padded")
    assert exporters.inspect(artifact.path).sha256 == artifact.sha256


def test_it_takes_all_layers_or_none(tmp_path):
    some = Recipe.load("int8-static")
    some = some.model_copy(update={"steps": (some.steps[0].model_copy(update={"select": some.steps[0].select.model_copy(update={"name": "2.*"})}),)})
    with pytest.raises(Refused, match="all layers alike"):
        written(nn.Conv2d, tmp_path, some)
