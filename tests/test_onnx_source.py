"""An .onnx file as a model: its weights are those it was exported from, its own graph is what runs, and every exporter gets the same codes."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from test_cross_framework import differences
from zoo import case, noise

import exporters
from compress import compress, open_model
from compress.errors import InputError, RecipeError, Refused
from evaluators.runtimes import RUNTIMES


def exported(module, path, shape, batch=True):
    """What torch.onnx makes of a module, nothing folded."""
    import torch

    dynamic = ({0: torch.export.Dim("batch")},) if batch else None
    torch.onnx.export(module, (torch.zeros(2 if batch else 1, *shape),), path, dynamo=True, optimize=False, dynamic_shapes=dynamic, verbose=False)
    return path


@pytest.fixture(scope="module")
def normed(tmp_path_factory):
    """Convolutions with batch norms behind them, as a torch module and an .onnx file with an open batch."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.ConvTranspose2d(8, 6, 2, groups=2), nn.BatchNorm2d(6), nn.Flatten()
    model = nn.Sequential(*layers, nn.Linear(6 * 7 * 7, 32)).eval()
    for norm in (model[1], model[4]):
        for tensor in (norm.running_mean, norm.weight.data, norm.bias.data):
            torch.nn.init.uniform_(tensor, -0.5, 0.5)
        torch.nn.init.uniform_(norm.running_var, 0.5, 2)
    return model, exported(model, tmp_path_factory.mktemp("onnx") / "normed.onnx", (3, 8, 8))


def test_batch_norms_are_folded_as_in_the_model_it_came_from(normed):
    model, path = normed
    direct, network = open_model(model, noise(3, 8, 8)), open_model(path)
    assert network.inputs[0].shape == (1, 3, 8, 8) and "2 batch norms folded into the layers before them" in network.notes
    expected, found = direct.weights(), network.weights()
    for name in ("0.weight", "3.weight", "6.weight"):
        assert found[name].kind == expected[name].kind
        np.testing.assert_array_equal(found[name].value, expected[name].value)
    sample = noise(3, 8, 8)[:1]
    given, wanted = {network.inputs[0].name: sample}, {direct.inputs[0].name: sample}
    np.testing.assert_allclose(network.run(given)[0], direct.run(wanted)[0], atol=1e-5)


@pytest.mark.parametrize("recipe", ["int8-static", "int4-group32"])
def test_the_codes_are_those_of_the_model_it_came_from_in_every_file(recipe, tmp_path):
    """The same network in torch and through .onnx, the latter into .onnx, .pt2 and .tflite."""
    given = case("torch_cnn")
    path = exporters.export(compress(given.network, "float32"), tmp_path / "float.onnx").path
    network = open_model(path)
    direct = exporters.export(compress(given.network, recipe, calibration=given.data), tmp_path / "direct.onnx")
    small = compress(network, recipe, calibration={network.inputs[0].name: given.data["input"]})
    sample, expected = given.sample(), small.simulate().run(given.sample())[0]
    for name in ("onnx", "torch", "litert"):
        artifact = exporters.export(small, tmp_path / f"through{exporters.EXPORTERS.load(name).SUFFIX}", name)
        assert not differences(direct, artifact)
        got = RUNTIMES.load(exporters.EXPORTERS.load(name).RUNTIME).load(artifact, threads=1).run(sample)[0]
        assert 10 * np.log10(np.square(expected).mean() / np.square(got - expected).mean()) > 20


def built(path, nodes, constants, shape, output, opset=17):
    """A file of a few nodes from x to y."""
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    made = [helper.make_tensor_value_info("y", TensorProto.FLOAT, output)]
    graph = helper.make_graph(nodes, "graph", given, made, [numpy_helper.from_array(value, name) for name, value in constants.items()])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return path


def lstm(path):
    random = np.random.default_rng(0)
    constants = {"w": (2, 32, 6), "r": (2, 32, 8), "m": (16, 4)}
    constants = {name: random.standard_normal(shape).astype(np.float32) for name, shape in constants.items()}
    nodes = [
        helper.make_node("Transpose", ["x"], ["steps"], perm=[1, 0, 2]),
        helper.make_node("LSTM", ["steps", "w", "r"], ["h"], hidden_size=8, direction="bidirectional"),
        helper.make_node("Transpose", ["h"], ["turned"], perm=[2, 0, 1, 3]),
        helper.make_node("Reshape", ["turned", "sizes"], ["flat"]),
        helper.make_node("MatMul", ["flat", "m"], ["y"]),
    ]
    return built(path, nodes, constants | {"sizes": np.array([1, 5, 16])}, ["batch", 5, 6], ["batch", 5, 4])


def test_recurrent_weights_of_both_directions(tmp_path):
    network = open_model(lstm(tmp_path / "lstm.onnx"))
    found = {name: (weight.kind, weight.value.shape) for name, weight in network.weights().items()}
    assert found == {"w": ("recurrent", (64, 6)), "r": ("recurrent", (64, 8)), "m": ("linear", (4, 16))}
    stored = {t.name: t.placement for t in exporters.export(compress(network, "int8-weight-only"), tmp_path / "small.onnx").tensors}
    assert stored["w"] == stored["r"] == stored["m"] == "decoded"


def test_values_are_put_in_and_the_file_stays(normed):
    network = open_model(normed[1])
    sample = {network.inputs[0].name: noise(3, 8, 8)[:1]}
    values = {name: weight.value for name, weight in network.weights().items()}
    np.testing.assert_array_equal(network.with_weights(values).run(sample)[0], network.run(sample)[0])
    before = network.run(sample)[0]
    half = network.with_weights({"6.weight": np.zeros_like(values["6.weight"])})
    np.testing.assert_allclose(half.run(sample)[0], values["6.bias"][None], atol=1e-6)
    np.testing.assert_array_equal(network.run(sample)[0], before)
    with pytest.raises(InputError, match="expected .32, 294."):
        network.with_weights({"6.weight": np.zeros((294, 32))})


def test_open_axes_are_those_of_the_data(tmp_path):
    nodes = [helper.make_node("MatMul", ["x", "m"], ["y"])]
    path = built(tmp_path / "open.onnx", nodes, {"m": np.eye(6, 4, dtype=np.float32)}, ["batch", "steps", 6], ["batch", "steps", 4])
    with pytest.raises(InputError, match="leaves axes open .*batch,steps,6.*give `inputs`"):
        open_model(path)
    network = open_model(path, np.ones((3, 5, 6), np.float32))
    assert network.inputs[0].shape == (1, 5, 6) and any("fixed at [1, 5, 6]" in note for note in network.notes) and "opset 17 was raised to 21" in network.notes
    with pytest.raises(InputError, match="takes .1, None, 6., the data has .1, 5, 7."):
        open_model(path, np.ones((3, 5, 7), np.float32))
    fixed = built(tmp_path / "fixed.onnx", nodes, {"m": np.eye(6, 4, dtype=np.float32)}, [4, 6], [4, 4])
    with pytest.raises(InputError, match="no batch axis that takes one sample"):
        open_model(fixed)


def test_a_quantized_file_is_measured_as_it_is(tmp_path):
    given = case("torch_cnn")
    quantized = exporters.export(compress(given.network, "int8-static", calibration=given.data), tmp_path / "q.onnx").path
    network = open_model(quantized)
    assert any("quantized already" in note for note in network.notes)
    again = exporters.export(compress(network, "float32"), tmp_path / "as-is.onnx")
    session = RUNTIMES.load("onnxruntime").load(again, threads=1)
    np.testing.assert_array_equal(session.run(given.sample())[0], network.run(given.sample())[0])
    with pytest.raises(RecipeError, match="quantized already stays as it is"):
        compress(network, "int8-dynamic")


def test_what_only_a_framework_can_do_is_refused_before_work(normed):
    network = open_model(normed[1])
    for recipe, said in {"qat-int8": "trains", "prune-channels30": "trains"}.items():
        with pytest.raises(InputError, match=f"{said}, and .onnx files only compute: give the model that the file was made from"):
            compress(network, recipe, calibration=noise(3, 8, 8))


def test_operators_that_onnx2torch_lacks_are_named(tmp_path):
    nodes = [helper.make_node("MatMul", ["x", "m"], ["h"]), helper.make_node("Shrink", ["h"], ["y"], lambd=0.1)]
    network = open_model(built(tmp_path / "shrink.onnx", nodes, {"m": np.eye(6, 4, dtype=np.float32)}, [1, 6], [1, 4]))
    small = compress(network, "int8-weight-only")
    exporters.export(small, tmp_path / "small.onnx")
    for suffix in (".pt2", ".tflite"):
        with pytest.raises(Refused, match="does not know the operator Shrink; the exporter onnx needs none"):
            exporters.export(small, tmp_path / f"small{suffix}")


def test_external_data_lies_beside_the_file(tmp_path):
    nodes = [helper.make_node("MatMul", ["x", "m"], ["y"])]
    weight = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
    plain = built(tmp_path / "plain.onnx", nodes, {"m": weight}, [1, 64], [1, 32])
    inside = tmp_path / "inside" / "model.onnx"
    inside.parent.mkdir()
    onnx.save_model(onnx.load(plain), inside, save_as_external_data=True, location="model.data", size_threshold=0)
    np.testing.assert_array_equal(open_model(inside).weights()["m"].value, weight.T)
    (tmp_path / "secret").write_bytes(weight.tobytes())
    for place, said in {"../secret": "outside", str(tmp_path / "secret"): "absolute", "link": "symbolic"}.items():
        proto = onnx.load(inside, load_external_data=False)
        next(entry for entry in proto.graph.initializer[0].external_data if entry.key == "location").value = place
        path = inside.with_name("evil.onnx")
        path.write_bytes(proto.SerializeToString())
        link = inside.with_name("link")
        if not link.is_symlink():
            link.symlink_to(tmp_path / "secret")
        with pytest.raises(InputError, match=said):
            open_model(path)
    with (inside.parent / "model.data").open("r+b") as file:
        file.truncate(3 << 30)  # sparse: it takes no place on the disk
    with pytest.raises(InputError, match="up to 2 GB"):
        open_model(inside)


def test_files_that_are_no_models(tmp_path):
    for label, data in {"garbage": b"\x07garbage" * 99, "empty": b""}.items():
        (tmp_path / f"{label}.onnx").write_bytes(data)
        with pytest.raises(InputError, match=label):
            open_model(tmp_path / f"{label}.onnx")
