"""Models from .tflite and .pt2 files: weights, outputs and codes are those of the model that the file was made from."""

import numpy as np
import pytest
from test_cross_framework import differences, shortened
from zoo import case, noise

import exporters
from compress import compress, open_model
from compress.errors import InputError, RecipeError, Refused
from compress.recipe import Recipe
from compress.training import Training
from evaluators.runtimes import RUNTIMES


def ran(artifact, runtime, sample):
    return RUNTIMES.load(runtime).load(artifact, threads=1).run(sample)[0]


def decibels(expected, got):
    return 10 * np.log10(np.square(expected).mean() / max(np.square(got - expected).mean(), 1e-30))


@pytest.fixture(scope="module")
def lite(tmp_path_factory):
    """A converter's own .tflite of the Keras network, without our metadata, and a sample for it."""
    from exporters.litert_float import float_file

    path = tmp_path_factory.mktemp("lite") / "model.tflite"
    path.write_bytes(float_file(case("keras_cnn").network).data)
    return path


def data_for(network):
    return {network.inputs[0].name: noise(8, 8, 3)}


def test_weights_of_a_tflite_file_are_those_it_was_converted_from(lite):
    given, network = case("keras_cnn"), open_model(lite)
    kinds = sorted((weight.kind, weight.value.shape) for weight in network.weights().values() if weight.value.ndim > 1)
    assert kinds == sorted((weight.kind, weight.value.shape) for weight in given.network.weights().values() if weight.value.ndim > 1)
    sample = {network.inputs[0].name: noise(8, 8, 3)[:1]}
    np.testing.assert_allclose(network.run(sample)[0], given.network.run(given.sample())[0], atol=1e-6)
    values = {name: weight.value for name, weight in network.weights().items()}
    np.testing.assert_array_equal(network.with_weights(values).run(sample)[0], network.run(sample)[0])
    head = next(name for name, value in values.items() if value.shape == (10, 32))
    assert np.ptp(network.with_weights({head: np.zeros((10, 32))}).run(sample)[0]) == 0 < np.ptp(network.run(sample)[0])
    with pytest.raises(InputError, match="expected .10, 32."):
        network.with_weights({head: np.zeros((32, 10))})


@pytest.mark.parametrize("recipe", ["float32", "int8-static", "int8-dynamic", "int8-weight-only", "int4-group32", "nf4"])
def test_a_tflite_file_is_compressed_like_the_model_it_was_converted_from(lite, recipe, tmp_path):
    network = open_model(lite)
    small = compress(network, recipe, calibration=data_for(network))
    artifact = exporters.export(small, tmp_path / "small.tflite")
    sample = {network.inputs[0].name: noise(8, 8, 3)[:1]}
    assert decibels(small.simulate().run(sample)[0], ran(artifact, "litert", sample)) > 20
    assert len(small.encoded) == (0 if recipe == "float32" else 4)
    with pytest.raises(Refused, match="takes no models of the backend litert.*these do: litert, gguf"):
        exporters.export(small, tmp_path / "small.onnx")


@pytest.mark.parametrize("recipe", ["int8-static", "int8-dynamic", "float16"])
def test_a_quantized_tflite_file_is_measured_as_it_is(recipe, tmp_path):
    given = case("keras_cnn")
    made = exporters.export(compress(given.network, recipe, calibration=given.data), tmp_path / "made.tflite")
    network = open_model(made.path)
    assert "quantized already" in network.notes[0] and not network.weights()
    again = exporters.export(compress(network, "float32"), tmp_path / "as-is.tflite")
    sample = {network.inputs[0].name: noise(8, 8, 3)[:1]}
    np.testing.assert_array_equal(ran(again, "litert", sample), network.run(sample)[0])
    assert again.contents.operators == made.contents.operators and again.ledger.payload == made.ledger.payload
    with pytest.raises(RecipeError, match="quantized already stays as it is"):
        compress(network, "int8-dynamic")


def test_codes_as_inputs_are_made_of_floats(tmp_path):
    given = case("keras_cnn")
    recipe = Recipe.load("int8-static").model_copy(update={"interface": "int8"})
    network = open_model(exporters.export(compress(given.network, recipe, calibration=given.data), tmp_path / "int8.tflite").path)
    assert network.inputs[0].dtype == "float32"
    again = exporters.export(compress(network, "float32"), tmp_path / "as-is.tflite")
    assert again.contents.inputs[0].dtype == "int8"
    for i in range(3):
        sample = {network.inputs[0].name: noise(8, 8, 3)[i : i + 1]}
        np.testing.assert_array_equal(ran(again, "litert", sample), network.run(sample)[0])
        assert decibels(given.network.run(given.sample(i))[0], network.run(sample)[0]) > 20


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """Torch modules by name with a .pt2 of each, exported with an open batch."""
    import torch
    from torch import nn

    folder, found = tmp_path_factory.mktemp("programs"), {}
    torch.manual_seed(0)
    normed = nn.Sequential(nn.Conv2d(3, 8, 3, padding="same", bias=False), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.Flatten(), nn.Linear(512, 32)).eval()
    nn.init.uniform_(normed[1].running_var, 0.5, 2)
    for name, model, data in (
        ("normed", normed, noise(3, 8, 8)),
        *((n, case(n).network.model, next(iter(case(n).data.values()))) for n in ("torch_cnn", "torch_text")),
    ):
        batch = ({0: torch.export.Dim("batch")},)
        torch.export.save(torch.export.export(model, (torch.from_numpy(data[:2]),), dynamic_shapes=batch), folder / f"{name}.pt2")
        found[name] = model, folder / f"{name}.pt2", data
    return found


@pytest.mark.parametrize("name", ["normed", "torch_cnn"])
def test_weights_of_a_program_are_those_of_the_module(programs, name):
    model, path, data = programs[name]
    network, direct = open_model(path), open_model(model, data)
    assert network.inputs[0].shape == (1, *data.shape[1:]) and "as torch.export left it" in network.notes[0]
    expected, found = direct.weights(), network.weights()
    assert {n: w.kind for n, w in found.items()} == {n: w.kind for n, w in expected.items()}
    for weight in expected:
        np.testing.assert_array_equal(found[weight].value, expected[weight].value)


def test_tied_weights_and_attention_of_a_program(programs):
    model, path, data = programs["torch_text"]
    network = open_model(path)
    found = {name: (weight.kind, weight.tied) for name, weight in network.weights().items() if weight.value.ndim > 1}
    assert found["head.weight"] == ("embedding", ("head_1.weight",)) and found["attention.in_proj.weight"] == ("linear", ())
    sample = {network.inputs[0].name: data[:1]}
    np.testing.assert_allclose(network.run(sample)[0], case("torch_text").network.run({"tokens": data[:1]})[0], atol=1e-4)


def test_a_program_gets_the_codes_of_its_module_in_every_file(programs, tmp_path):
    model, path, data = programs["normed"]
    network, direct = open_model(path), open_model(model, data)
    small, same = compress(network, "int8-dynamic"), compress(direct, "int8-dynamic")
    made = [exporters.export(small, tmp_path / f"a{suffix}") for suffix in (".onnx", ".pt2")]
    assert not differences(made[0], exporters.export(same, tmp_path / "b.onnx")) and not differences(*made)


def test_a_program_trains(programs):
    _, path, data = programs["normed"]
    network = open_model(path)
    training = Training(data, np.arange(16) % 32)
    small = compress(network, shortened(Recipe.load("prune50")), training=training)
    assert np.mean(small.network.weights()["4.weight"].value == 0) >= 0.5


def test_a_program_with_a_larger_batch(tmp_path):
    import torch

    path = tmp_path / "batch.pt2"
    torch.export.save(torch.export.export(torch.nn.Linear(4, 2), (torch.zeros(3, 4),)), path)
    with pytest.raises(InputError, match="no batch axis that takes one sample"):
        open_model(path)
