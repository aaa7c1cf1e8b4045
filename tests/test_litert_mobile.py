"""What a .tflite says to an application: types of inputs and outputs, signatures, labels and normalisation."""

import functools
import zipfile

import numpy as np
import pytest
from zoo import case

from compress.card import Card
from compress.errors import InputError, Refused
from compress.pipeline import compress
from compress.recipe import Recipe
from evaluators.runtimes import RUNTIMES
from exporters import export, inspect

tflite_file = pytest.importorskip("exporters.tflite_file")


def recipe(name: str, interface: str) -> Recipe:
    return Recipe.load(name).model_copy(update={"interface": interface})


@functools.cache
def small(name: str, interface: str, model: str = "keras_cnn"):
    return compress(case(model).network, recipe(name, interface), calibration=case(model).data)


def outputs(artifact, model: str = "keras_cnn") -> np.ndarray:
    session = RUNTIMES.load("litert").load(artifact, threads=1)
    return np.concatenate([session.run(case(model).sample(i))[0] for i in range(4)])


@pytest.mark.parametrize("model", ["keras_cnn", "torch_cnn"])
def test_codes_in_and_out_give_the_same_numbers(model, tmp_path):
    expected = outputs(export(small("int8-static", "float32", model), tmp_path / "float.tflite"), model)
    for kind in ("int8", "uint8"):
        artifact = export(small("int8-static", kind, model), tmp_path / f"{kind}.tflite")
        assert artifact.contents.inputs[0].dtype == artifact.contents.outputs[0].dtype == kind
        np.testing.assert_array_equal(outputs(artifact, model), expected)


@pytest.mark.parametrize("name", ["float32", "float16", "int8-static"])
def test_half_floats_in_and_out(name, tmp_path):
    expected = outputs(export(small(name, "float32"), tmp_path / "float.tflite"))
    artifact = export(small(name, "float16"), tmp_path / "half.tflite")
    found = outputs(artifact)
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, expected, atol=0.02 * np.abs(expected).max())


@pytest.mark.parametrize("kind", ["int8", "uint8", "float16"])
def test_signatures_name_the_tensors_that_are_there(kind, tmp_path):
    path = tmp_path / "model.tflite"
    export(small("int8-static", kind), path)
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path))
    (signature,) = interpreter.get_signature_list().values()
    runner = interpreter.get_signature_runner()
    (given,) = runner.get_input_details().values()
    found = runner(**{signature["inputs"][0]: np.zeros(given["shape"], given["dtype"])})
    assert given["dtype"] == next(iter(found.values())).dtype == np.dtype(kind)


def test_codes_need_static_activations(tmp_path):
    with pytest.raises(Refused, match="interface: the input .* not by one QUANTIZE"):
        export(small("int8-dynamic", "int8"), tmp_path / "model.tflite")
    with pytest.raises(Refused, match="onnx writes files with float32"):
        export(small("int8-static", "int8"), tmp_path / "model.onnx")
    assert not list(tmp_path.glob("model*"))


def test_the_interface_is_part_of_a_recipe():
    assert recipe("float32", "float16").id != Recipe.load("float32").id
    assert Recipe.parse(recipe("int8-static", "int8").to_yaml()).interface == "int8"


@pytest.mark.parametrize(("model", "suffix"), [("keras_cnn", ".tflite"), ("torch_cnn", ".onnx")])
def test_a_card_stands_in_the_file(model, suffix, tmp_path):
    classes = case(model).network.run(case(model).sample(0))[0].shape[-1]
    card = Card(description="what it sees", labels=[f"class {i}" for i in range(classes)], mean=(127.0,), std=(128.0,))
    artifact = export(small("float32", "float32", model), tmp_path / f"model{suffix}", card=card)
    assert Card(**inspect(artifact.path).contents.metadata["card"]) == card
    if suffix == ".tflite":
        np.testing.assert_array_equal(outputs(artifact), outputs(export(small("float32", "float32"), tmp_path / "plain.tflite")))
        assert zipfile.ZipFile(artifact.path).read("labels.txt").decode().split("\n") == [*card.labels, ""]
        content = tflite_file.metadata(tflite_file.parse(artifact.path.read_bytes(), ""), "TFLITE_METADATA")
        assert content[4:8] == b"M001" and b"what it sees" in content and np.float32(127).tobytes() in content


def test_a_card_that_does_not_fit_is_refused(tmp_path):
    with pytest.raises(InputError, match="labels: 2 for a first output"):
        export(small("float32", "float32"), tmp_path / "model.tflite", card=Card(labels=("yes", "no")))
    assert not list(tmp_path.glob("model*"))
    with pytest.raises(InputError, match="mean has 1 numbers and std 0"):
        Card.of(mean=[1.0])
    with pytest.raises(InputError, match="std: every number must be positive"):
        Card.of(mean=[1.0], std=[0.0])


WHOLE = "takes {0} of {0} operators"


@pytest.mark.parametrize("model", ["keras_cnn", "torch_cnn"])
def test_delegates_are_known_before_anything_is_compressed(model, tmp_path):
    from exporters.to_litert import delegates

    found = delegates(case(model).network)
    operators = export(small("float32", "float32", model), tmp_path / "model.tflite").contents.operators
    assert found["GPU delegate"] == WHOLE.format(sum(operators.values()))
    assert "takes" in found["NNAPI (Android API 30) delegate"]


def test_what_delegates_leave_is_named(tmp_path):
    few = export(compress(case("torch_linear").network, "int4-group32"), tmp_path / "few.tflite").contents.delegates
    assert "FULLY_CONNECTED (no int4 weights)" in few["NNAPI (Android API 30) delegate"]
    wide = export(compress(case("keras_cnn").network, "int16x8", calibration=case("keras_cnn").data), tmp_path / "wide.tflite").contents.delegates
    assert "CONV_2D (computes with no int16)" in wide["NNAPI (Android API 30) delegate"]
    assert "DEQUANTIZE (not from int16)" in wide["GPU delegate"]
    tensorflow = pytest.importorskip("tensorflow")

    @tensorflow.function(input_signature=[tensorflow.TensorSpec([1, 8], tensorflow.float32)])
    def odd(x):
        return tensorflow.math.top_k(x, 3)[0], tensorflow.reverse_sequence(x, [2], 1)

    path = tmp_path / "odd.tflite"
    path.write_bytes(tensorflow.lite.TFLiteConverter.from_concrete_functions([odd.get_concrete_function()]).convert())
    found = inspect(path).contents.delegates
    assert found["GPU delegate"] == "takes 0 of 2 operators; leaves 1 REVERSE_SEQUENCE (no such operator), 1 TOPK_V2 (no such operator)"
    assert found["NNAPI (Android API 30) delegate"] == "takes 1 of 2 operators; leaves 1 REVERSE_SEQUENCE (no such operator)"
