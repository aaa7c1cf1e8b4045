"""Formats without a LiteRT kernel: stored as small as planned, decoded by operators of the graph to the very floats of `Encoded.decode`."""

import functools
import random

import numpy as np
import pytest
from zoo import flipped

import exporters
from compress import compress
from compress.backends import open_model
from compress.errors import BrokenFile
from compress.formats import CodebookFormat, DoubleQuantized, FloatFormat, IntFormat, Learned, PerAxis, PerBlock, PerGroup, PerTensor, StaticActivations
from compress.presets import PRESETS
from compress.recipe import Recipe
from compress.samples import samples
from compress.steps import Quantize
from compress.steps.selector import Selector
from evaluators.runtimes import litert as runtime
from exporters import litert_once, tflite_file, to_litert

torch = pytest.importorskip("torch")

RNG = np.random.default_rng(11)
SHORT = PerGroup(32, "short")
UNSIGNED = {"rule": "asymmetric", "signed": False}
NF4 = PRESETS["bnb.nf4"].format
FORMATS = [
    *(
        PRESETS[name].format
        for name in ("bnb.nf4.dq", "torchao.nf4", "bnb.fp4", "mx.fp4", "mx.fp6.e2m3", "nvfp4", "fp8.e4m3", "log2.3", "apot.6", "nf7.block64")
    ),
    *(CodebookFormat(Learned(7, entry_dtype=dtype), PerGroup(32, "short"), "none") for dtype in ("float32", "float16", "int8")),
    CodebookFormat(Learned(16), PerAxis(), "none"),
    CodebookFormat((-1.0, -0.3, 0.0, 0.2, 1.1), PerBlock(50)),
    CodebookFormat("nf4", PerBlock(4), double=DoubleQuantized("linear", 100)),
    *(IntFormat(bits, PerAxis(), **UNSIGNED) for bits in (1, 2, 3, 4, 5, 6, 7, 8, 16)),
    *(
        IntFormat(bits, SHORT, scale_dtype=dtype)
        for bits, dtype in ((3, "float32"), (5, "float16"), (6, "bfloat16"), (7, "float8_e4m3"), (4, "float8_e8m0"), (16, "float32"))
    ),
    *(IntFormat(4, PerBlock(50), zero_point=zero, scale_dtype=dtype, **UNSIGNED) for zero in ("float", "offset") for dtype in ("float32", "bfloat16")),
    IntFormat(4, SHORT, "signed"),
    IntFormat(1, PerTensor(), "signed"),
    FloatFormat("bfloat16"),
]
CHOSEN = {
    "nf4": NF4,
    "learned": CodebookFormat(Learned(16, entry_dtype="float16"), PerAxis(), "none"),
    "mxfp4": PRESETS["mx.fp4"].format,
    "int3": IntFormat(3, PerAxis()),
    "offset": IntFormat(4, PerGroup(32), zero_point="offset", scale_dtype="float16", **UNSIGNED),
}


def scheme(fmt) -> Recipe:
    return Recipe(name="scheme", steps=(Quantize(weights=fmt),))


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def written(model, fmt, data, path):
    """What was compressed, its artifact, and a session."""
    small = compress(model, scheme(fmt), inputs=data)
    artifact = exporters.export(small, path / "m.tflite")
    return small, artifact, runtime.load(artifact, 1)


def stored(artifact, name: str):
    return next(tensor for tensor in artifact.tensors if tensor.name == name)


def main_operators(artifact) -> list[str]:
    model = tflite_file.parse(artifact.path.read_bytes(), "m")
    return [tflite_file.operator_name(model, operator) for operator in model.subgraphs[0].operators]


@pytest.fixture(scope="module")
def linear():
    torch.manual_seed(1)
    return open_model(torch.nn.Linear(70, 12, bias=False), {"input": np.zeros((1, 70), np.float32)})


@pytest.fixture(scope="module")
def wide():
    return open_model(torch.nn.Linear(2048, 64), {"input": np.zeros((1, 2048), np.float32)})


@pytest.fixture(scope="module")
def tied():
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(2)
            self.embed, self.head = torch.nn.Embedding(24, 96), torch.nn.Linear(96, 24, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids):
            return self.embed(ids), self.head(self.embed(ids))

    return open_model(Tied(), {"ids": np.zeros((1, 24), np.int64)})


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_weights_are_stored_as_planned_and_decoded_bit_for_bit(fmt, linear, tmp_path):
    """Inputs of one 1 show the weight's columns: sums of zeros and one value are exact."""
    small, artifact, session = written(linear, fmt, None, tmp_path)
    weight = stored(artifact, "weight")
    assert weight.placement == "decoded" and "at the first run" in weight.reason
    assert weight.size_bytes == small.plan.compressed["weight"].size_bytes
    for _ in range(2):  # the second run reads what the first one decoded
        columns = [session.run({"input": row[None]})[0][0] for row in np.eye(70, dtype=np.float32)]
        assert np.array_equal(np.stack(columns, 1), small.encoded["weight"].decode())


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_lookups_decode_rows_bit_for_bit_and_share_the_codes_of_a_tied_layer(fmt, tied, tmp_path):
    small, artifact, session = written(tied, fmt, None, tmp_path)
    decoded = small.encoded["embed.weight"].decode()
    assert stored(artifact, "embed.weight").size_bytes == small.plan.compressed["embed.weight"].size_bytes
    rows, products = session.run({"ids": np.arange(24)[::-1][None].copy()})
    assert np.array_equal(rows[0], decoded[::-1])
    bound = 96 * 2.0**-23 * np.abs(decoded[::-1]) @ np.abs(decoded).T  # float32 sums of 96 products in any order
    assert np.all(np.abs(products[0] - decoded[::-1] @ decoded.T) <= bound)


@functools.cache
def layer_case(layer: str):
    torch.manual_seed(3)
    nn = torch.nn
    model, data = {
        "row": (nn.Linear(64, 32), normal(3, 64)),
        "rows": (nn.Sequential(nn.Linear(64, 32), nn.ReLU()), normal(3, 5, 64)),
        "conv": (nn.Conv2d(32, 8, 3, stride=2), normal(3, 32, 9, 9)),
        "depthwise": (nn.Conv2d(32, 32, (1, 32), groups=32), normal(3, 32, 4, 40)),
        "transposed": (nn.ConvTranspose2d(32, 16, 2, stride=2), normal(3, 32, 4, 4)),
        "recurrent": (nn.LSTM(32, 32, batch_first=True), normal(3, 6, 32)),
    }[layer]
    return open_model(model, data), data


@pytest.mark.parametrize("name", CHOSEN)
@pytest.mark.parametrize("layer", ["row", "rows", "conv", "depthwise", "transposed", "recurrent"])
def test_layers_compute_with_the_decoded_weights(layer, name, tmp_path):
    network, data = layer_case(layer)
    small, artifact, session = written(network, CHOSEN[name], None, tmp_path)
    assert all(stored(artifact, weight).placement == "decoded" for weight in small.encoded)
    oracle, weights = small.simulate(), [encoded.decode() for encoded in small.encoded.values()]
    terms = max(weight[0].size for weight in weights)
    size = max(np.abs(weight.reshape(len(weight), -1)).sum(1).max() for weight in weights)
    bound = terms * 2.0**-23 * (size * max(np.abs(data).max(), 1) + 1)  # float32 sums in any order, of inputs or states up to the largest
    for batch in samples(data, small.network.inputs):
        assert np.all(np.abs(session.run(batch)[0] - oracle.run(batch)[0]) <= bound)


def test_decoding_is_left_to_the_first_run(linear, tmp_path):
    assert main_operators(written(linear, NF4, None, tmp_path)[1]) == ["CALL_ONCE", "VAR_HANDLE", "READ_VARIABLE", "FULLY_CONNECTED"]


def test_tables_that_are_only_looked_up_are_never_whole(tmp_path):
    model = torch.nn.Sequential(torch.nn.Embedding(100, 64), torch.nn.Linear(64, 4))
    _, artifact, _ = written(model, NF4, np.zeros((1, 3), np.int64), tmp_path)
    graphs = tflite_file.parse(artifact.path.read_bytes(), "m").subgraphs
    floats = [place.shape for graph in graphs for i in range(len(graph.tensors)) if (place := tflite_file.Place(graph, i)).dtype == "float32"]
    assert tflite_file.text(graphs[-1].name) == litert_once.SUBGRAPH
    unread = {(100, 64)}  # the converter's own table, without bytes and without a reader
    assert sum(np.prod(shape) >= 6400 for shape in floats if shape not in unread) == 0
    assert "at every run" in stored(artifact, "0.weight").reason


def test_decoded_layers_stand_among_static_ones(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(32, 16), torch.nn.ReLU(), torch.nn.Linear(16, 8))
    steps = (
        Quantize(weights=NF4, select=Selector(name="2.*")),
        Quantize(weights=IntFormat(8, PerAxis(), "narrow"), activations=StaticActivations()),
    )
    data = normal(16, 32)
    small = compress(model, Recipe(name="mixed", steps=steps), calibration=data)
    artifact = exporters.export(small, tmp_path / "m.tflite")
    assert [stored(artifact, name).placement for name in ("0.weight", "2.weight")] == ["native", "decoded"]
    session, oracle = runtime.load(artifact, 1), small.simulate()
    for batch in samples(data, small.network.inputs):
        expected = oracle.run(batch)[0]
        assert np.abs(session.run(batch)[0] - expected).max() < 0.05 * np.abs(data).max()  # a few steps of 1/255 of the activations' ranges


@pytest.mark.parametrize(
    "fmt",
    [*CHOSEN.values(), IntFormat(8, PerAxis(), "narrow"), IntFormat(4, PerAxis()), IntFormat(4, PerGroup(32), scale_dtype="bfloat16"), FloatFormat("float16")],
    ids=str,
)
def test_predicted_bytes_are_those_of_the_file(fmt, wide, tmp_path):
    """Within 1% but for operators and names, although LiteRT keeps an int64 zero point for each channel even where all are 0."""
    small, artifact, _ = written(wide, fmt, None, tmp_path)
    weight, planned = stored(artifact, "weight"), small.plan.compressed["weight"].size_bytes
    assert abs(weight.size_bytes - planned) <= 0.01 * planned
    assert abs(artifact.ledger.file_bytes - artifact.ledger.graph - small.plan.size_bytes) <= 0.01 * small.plan.size_bytes
    assert artifact.ledger.graph < 10_000


def test_damage_is_named(tied, tmp_path):
    """Flipped bytes either read or raise BrokenFile, never anything else."""
    whole, dice = written(tied, PRESETS["bnb.nf4.dq"].format, None, tmp_path)[1].path.read_bytes(), random.Random(0)
    path = tmp_path / "hurt.tflite"
    for _ in range(80):
        path.write_bytes(flipped(whole, dice))
        try:
            to_litert.read(path)
        except BrokenFile as error:
            assert "hurt" in str(error)


def test_a_changed_code_is_found(linear, tmp_path, monkeypatch):
    honest = litert_once.to_arrays

    def altered(encoded):
        arrays = honest(encoded)
        return arrays | {"codes": arrays["codes"] ^ np.eye(1, arrays["codes"].size, 5, np.uint8)[0]}

    monkeypatch.setattr(litert_once, "to_arrays", altered)
    with pytest.raises(exporters.ExportError, match="weight: 1 of 840 codes differ"):
        written(linear, NF4, None, tmp_path)
