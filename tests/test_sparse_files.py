"""Pruned weights in files: without their zeros where that is smaller, and the runtime computes the very same as with them."""

import functools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from zoo import flipped

import exporters
from compress import compress
from compress.backends import open_model
from compress.errors import BrokenFile, ExportError
from compress.formats import DynamicActivations, FloatFormat, IntFormat, PerAxis, PerTensor, StaticActivations
from compress.numerics.sparse import best_axis, filled, from_mask, from_rows, rows_bytes, to_mask, to_rows, without
from compress.recipe import Recipe
from compress.steps import Prune, Quantize
from evaluators.runtimes import RUNTIMES
from exporters import litert_sparse, onnx_sparse, tflite_sparse

torch = pytest.importorskip("torch")

RNG = np.random.default_rng(12)
INT8 = IntFormat(8, PerAxis(), "narrow")
SPARSE = {".tflite": litert_sparse, ".onnx": onnx_sparse}
FILLS = {".tflite": "DENSIFY", ".onnx": "CumSum"}
QUANTIZED = {
    "float32": None,
    "int8-static": Quantize(weights=INT8, activations=StaticActivations()),
    "int8-dynamic": Quantize(weights=INT8, activations=DynamicActivations()),
    "uint8-asymmetric": Quantize(weights=IntFormat(8, PerTensor(), "asymmetric", signed=False)),
    "float16": Quantize(weights=FloatFormat("float16")),
}
WHOLE = {"int8-static": {"10.weight"}}
"""What LiteRT needs with its zeros, of the layers: its int8 linear ones. Of the schemes that are not here, float32 aside, everything."""


@pytest.fixture(autouse=True)
def small_weights_too(monkeypatch):
    monkeypatch.setattr("compress.numerics.sparse.LEAST", 0)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def pruned(share: float, scheme: str = "float32") -> Recipe:
    quantize = QUANTIZED[scheme]
    return Recipe(name="pruned", steps=(Prune(sparsity=share), *((quantize,) if quantize else ())))


@functools.cache
def layer_case(layer: str):
    torch.manual_seed(3)
    nn = torch.nn

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(96, 64), nn.Linear(64, 96, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids):
            return self.head(self.embed(ids))

    ids = np.arange(96).reshape(8, 12)
    conv, grouped, depthwise = nn.Conv2d(32, 64, 3), nn.Conv2d(64, 64, 3, groups=2), nn.Conv2d(64, 64, 7, groups=64, padding=3)
    several = (conv, nn.ReLU(), grouped, nn.ReLU(), depthwise, nn.ReLU(), nn.ConvTranspose2d(64, 16, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(4))
    model, data = {
        "linear": (nn.Sequential(nn.Linear(300, 64), nn.ReLU()), normal(8, 300)),
        "conv": (nn.Conv2d(32, 40, 3, stride=2), normal(8, 32, 9, 9)),
        "layers": (nn.Sequential(*several, nn.Flatten(), nn.Linear(256, 64)), normal(8, 32, 9, 9)),
        "recurrent": (nn.LSTM(32, 32, batch_first=True), normal(8, 6, 32)),
        "tied": (Tied(), ids),
    }[layer]
    return open_model(model, data[:1]), data


def written(network, data, recipe, path):
    small = compress(network, recipe, calibration=data)
    return small, exporters.export(small, path)


def outputs(artifact, network, data) -> list[np.ndarray]:
    session = RUNTIMES.load({".tflite": "litert", ".onnx": "onnxruntime"}[artifact.path.suffix]).load(artifact, 1)
    return [session.run({network.inputs[0].name: data[i : i + 1]})[0] for i in range(4)]


CASES = [("layers", "float32"), ("layers", "int8-static"), ("linear", "int8-dynamic"), ("linear", "uint8-asymmetric"), ("conv", "float16")]


@pytest.mark.parametrize(("layer", "scheme"), [*CASES, ("recurrent", "float32"), ("tied", "float32")])
@pytest.mark.parametrize("suffix", SPARSE)
def test_a_file_without_zeros_is_smaller_and_computes_the_same(suffix, layer, scheme, tmp_path, monkeypatch):
    """Bit for bit what the file with its zeros computes: the kernels get the same weights."""
    network, data = layer_case(layer)
    small, sparse = written(network, data, pruned(0.8, scheme), tmp_path / f"sparse{suffix}")
    monkeypatch.setattr(SPARSE[suffix], "worth", lambda sparse, dense: False)
    _, dense = written(network, data, pruned(0.8, scheme), tmp_path / f"dense{suffix}")
    for got, expected in zip(outputs(sparse, network, data), outputs(dense, network, data), strict=True):
        assert np.array_equal(got, expected)
    assert FILLS[suffix] not in dense.contents.operators and sparse.ledger.file_bytes <= dense.ledger.file_bytes
    for name, encoded in small.encoded.items():
        assert np.array_equal(next(t for t in sparse.tensors if t.name == name).codes, encoded.codes)
    if suffix == ".tflite" and scheme not in ("float32", *WHOLE):
        assert FILLS[suffix] not in sparse.contents.operators
        return
    promised = {d.name: d for d in small.plan.decisions if d.prune and (suffix == ".onnx" or d.name not in WHOLE.get(scheme, ()))}
    for tensor in [t for t in sparse.tensors if t.name in promised]:
        assert tensor.filled_in and "full size" in tensor.reason, tensor
        assert tensor.payload_bytes < (0.75 if suffix == ".tflite" and scheme != "float32" else 0.6) * promised[tensor.name].size_bytes


@pytest.mark.parametrize("scheme", ["float32", "int8-static"])
@pytest.mark.parametrize("suffix", SPARSE)
def test_few_zeros_stay_where_they_are(suffix, scheme, tmp_path):
    network, data = layer_case("conv")
    _, artifact = written(network, data, pruned(0.1, scheme), tmp_path / f"m{suffix}")
    assert FILLS[suffix] not in artifact.contents.operators
    assert all("zeros" not in tensor.reason.split("left out")[0] or tensor.placement == "float" for tensor in artifact.tensors)


@pytest.mark.parametrize("suffix", SPARSE)
def test_small_weights_stay_whole(suffix, tmp_path, monkeypatch):
    monkeypatch.setattr("compress.numerics.sparse.LEAST", 4 * 32 * 40 * 9)
    network, data = layer_case("conv")
    assert FILLS[suffix] not in written(network, data, pruned(0.8), tmp_path / f"m{suffix}")[1].contents.operators


@pytest.mark.parametrize("suffix", SPARSE)
def test_a_layer_of_zeros_computes_its_bias(suffix, tmp_path):
    model = torch.nn.Conv2d(32, 40, 3)
    torch.nn.init.zeros_(model.weight)
    data = normal(8, 32, 9, 9)
    network = open_model(model, data[:1])
    for got in outputs(written(network, data, pruned(0.8), tmp_path / f"m{suffix}")[1], network, data):
        assert np.array_equal(got, np.broadcast_to(model.bias.detach().numpy()[:, None, None], got.shape))


def test_factors_that_a_converter_folded_in_are_no_difference():
    own = normal(8, 6) * (RNG.random((8, 6)) > 0.5)
    own[3] = 0
    rows, columns = (RNG.uniform(1, 2, shape).astype(np.float32) for shape in ((8, 1), (1, 6)))
    assert (
        exporters.proportional(own, own * np.float32(0.5), 0) and exporters.proportional(own, own * rows, 0) and exporters.proportional(own, own * columns, 1)
    )
    assert not exporters.proportional(own, own * columns, 0) and not exporters.proportional(own, np.where(own > 1, own * np.float32(1.01), own), 0)


@pytest.mark.parametrize("layer", ["linear", "tied"])
def test_litert_computes_the_same_without_xnnpack(layer, tmp_path):
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    network, data = layer_case(layer)
    _, artifact = written(network, data, pruned(0.8), tmp_path / "m.tflite")
    plain = Interpreter(str(artifact.path), num_threads=1, experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES)
    plain.allocate_tensors()
    detail, expected = plain.get_input_details()[0], outputs(artifact, network, data)
    for i, want in enumerate(expected):
        plain.set_tensor(detail["index"], data[i : i + 1].astype(detail["dtype"]))
        plain.invoke()
        got = plain.get_tensor(plain.get_output_details()[0]["index"])
        assert np.abs(got - want).max() < 1e-4 * max(np.abs(want).max(), 1)  # float32 sums of up to 300 products in another order


def test_litert_names_what_keeps_its_zeros(tmp_path):
    network, data = layer_case("linear")
    _, artifact = written(network, data, pruned(0.8, "int8-static"), tmp_path / "m.tflite")
    assert any("every zero" in note and "0.weight" in note for note in artifact.notes)


@functools.cache
def middle_sized():
    torch.manual_seed(9)
    layers = (layer for _ in range(2) for layer in (torch.nn.Conv2d(256, 256, 3, padding=1), torch.nn.ReLU()))
    data = normal(4, 256, 4, 4)
    return open_model(torch.nn.Sequential(*layers), data[:1]), data


@pytest.mark.parametrize("share", [0.5, 0.8])
@pytest.mark.parametrize("scheme", ["float32", "int8-static"])
@pytest.mark.parametrize("suffix", SPARSE)
def test_predicted_bytes_are_those_of_the_file(suffix, scheme, share, tmp_path):
    network, data = middle_sized()
    small, artifact = written(network, data, pruned(share, scheme), tmp_path / f"m{suffix}")
    predicted = exporters.predicted_bytes(small.plan, suffix[1:], exporters.placements(small.plan, suffix[1:], "pytorch"))
    assert abs(artifact.ledger.file_bytes - predicted) <= 0.01 * predicted


@pytest.mark.parametrize("suffix", SPARSE)
def test_a_changed_value_is_found(suffix, tmp_path, monkeypatch):
    """What is read back is compared with the network, for weights without codes too."""
    import exporters.to_onnx as to_onnx

    honest = without if suffix == ".onnx" else tflite_sparse.Rows.of

    def altered(dense):
        return honest(np.where(np.arange(dense.size).reshape(dense.shape) == np.flatnonzero(dense)[5], dense * np.float32(1.01), dense))

    monkeypatch.setattr(*((to_onnx, "without") if suffix == ".onnx" else (tflite_sparse.Rows, "of")), altered)
    network, data = layer_case("linear")
    with pytest.raises(ExportError, match=r"0\.weight: the values around its zeros differ"):
        written(network, data, pruned(0.8), tmp_path / f"m{suffix}")


@pytest.mark.parametrize("suffix", SPARSE)
def test_damage_is_named(suffix, tmp_path):
    """Flipped bytes either read or raise BrokenFile, never anything else."""
    network, data = layer_case("conv")
    whole, dice = written(network, data, pruned(0.8, "int8-static"), tmp_path / f"m{suffix}")[1].path.read_bytes(), random.Random(0)
    path = tmp_path / f"hurt{suffix}"
    for _ in range(40):
        path.write_bytes(flipped(whole, dice))
        try:
            exporters.inspect(path)
        except BrokenFile as error:
            assert "hurt" in str(error)


shapes = st.lists(st.integers(1, 400), min_size=1, max_size=4).filter(lambda shape: 1 < np.prod(shape) <= 50_000)


@settings(max_examples=100, deadline=None)
@given(shapes, st.floats(0, 1), st.sampled_from(["f4", "i1", "u1"]))
def test_every_form_gives_the_array_back(shape, share, dtype):
    rng = np.random.default_rng(0)
    dense = np.where(rng.random(shape) < share, 0, rng.integers(1, 100, shape)).astype(dtype)
    stored = np.count_nonzero(dense)
    rows = tflite_sparse.Rows.of(dense)
    assert np.array_equal(rows.dense(), dense)
    assert rows.starts.nbytes + rows.places.nbytes == rows_bytes(tuple(shape), best_axis(tuple(shape), stored), stored)
    values, kept = without(dense)
    assert np.array_equal(filled(values, from_mask(to_mask(kept), dense.size)), dense.ravel())
    assert np.array_equal(filled(values, from_rows(*to_rows(kept), dense.size)), dense.ravel())
