"""What only ONNX does: kernels that ONNX Runtime must pick, weights behind transposes and splits, ties, and files of other tools."""

import os
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
torch = pytest.importorskip("torch")
ort = pytest.importorskip("onnxruntime")

import exporters  # noqa: E402
from compress import Recipe, compress, open_model  # noqa: E402
from compress.errors import BrokenFile, ExportError, Refused  # noqa: E402
from compress.formats import (  # noqa: E402
    CodebookFormat,
    DoubleQuantized,
    DynamicActivations,
    IntFormat,
    Learned,
    PerAxis,
    PerBlock,
    PerGroup,
    PerTensor,
    StaticActivations,
)
from compress.presets import PRESETS  # noqa: E402
from compress.steps import Quantize  # noqa: E402
from evaluators.runtimes import ort as runtime  # noqa: E402
from exporters import onnx_codebooks  # noqa: E402
from exporters.onnx_layouts import layout_of  # noqa: E402
from exporters.onnx_schemes import scheme  # noqa: E402

INT8 = IntFormat(8, PerAxis(), "narrow")
RANDOM = np.random.default_rng(5)


def recipe(weights, activations=None, **rest) -> Recipe:
    return Recipe(name="own", steps=(Quantize(weights=weights, activations=activations),), **rest)


def optimized(path: Path, tmp_path: Path) -> onnx.ModelProto:
    """The graph that ONNX Runtime really runs."""
    options = ort.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimized.onnx"), 3
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return onnx.load(options.optimized_model_filepath)


def kernels(path: Path, tmp_path: Path) -> Counter:
    return Counter(node.op_type for node in optimized(path, tmp_path).graph.node)


def mlp() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(64, 48), torch.nn.ReLU(), torch.nn.Linear(48, 8))


class Tied(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head = torch.nn.Embedding(300, 32), torch.nn.Linear(32, 300, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids):
        return self.head(self.table(ids))


class Cross(torch.nn.Module):
    """Attention whose queries and keys come from different tensors: its fused projection is split inside the graph."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.attention = torch.nn.MultiheadAttention(32, 4, batch_first=True)
        torch.nn.init.normal_(self.attention.in_proj_bias)

    def forward(self, x):
        return self.attention(x, x * 0.5, x * 0.5, need_weights=False)[0]


MLP_DATA = RANDOM.normal(size=(16, 64)).astype(np.float32)
IDS = RANDOM.integers(0, 300, (8, 6))


def test_importing_the_exporter_and_placing_loads_no_framework():
    code = (
        "import sys, exporters.to_onnx as t; from exporters.onnx_schemes import scheme; from compress.formats import IntFormat\n"
        "scheme('linear', (8, 32), IntFormat(8), None)\n"
        "assert not {'torch', 'onnx', 'onnxruntime', 'keras'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": str(Path(exporters.__file__).parents[1])})


@pytest.mark.parametrize(
    "activations, expected",
    [
        (DynamicActivations(), {"DynamicQuantizeMatMul", "Relu"}),
        (StaticActivations(), {"QuantizeLinear", "MatMulIntegerToFloat"}),  # rounding to [0, max] is a ReLU
    ],
    ids=["dynamic", "static"],
)
def test_linear_layers_run_on_integer_kernels_only(activations, expected, tmp_path):
    artifact = exporters.export(compress(mlp(), recipe(INT8, activations), calibration=MLP_DATA), tmp_path / "m.onnx")
    assert set(kernels(artifact.path, tmp_path)) == expected


def test_weight_only_codes_are_expanded_once_and_leave_the_float_graph(tmp_path):
    small = compress(mlp(), recipe(INT8), inputs=MLP_DATA)
    found = kernels(exporters.export(small, tmp_path / "m.onnx").path, tmp_path)
    assert not set(found) & {"DequantizeLinear", "Cast", "Mul", "MatMulNBits"}, found


@pytest.mark.parametrize("activations, level", [(None, 1), (DynamicActivations(), 4)])
def test_blocks_compute_with_the_activations_that_the_recipe_names(activations, level, tmp_path):
    small = compress(mlp(), recipe(IntFormat(4, PerGroup(16)), activations), inputs=MLP_DATA)
    path = exporters.export(small, tmp_path / "m.onnx").path
    nodes = [node for node in onnx.load(path).graph.node if node.op_type == "MatMulNBits"]
    assert [onnx.helper.get_node_attr_value(node, "accuracy_level") for node in nodes] == [level, level]


BLOCKS = [IntFormat(4, PerGroup(16), "signed"), IntFormat(2, PerGroup(48), "asymmetric"), IntFormat(4, PerAxis()), IntFormat(4, PerTensor(), "asymmetric")]


@pytest.mark.parametrize("fmt", BLOCKS, ids=str)
def test_blocks_of_any_reach_and_sign_give_the_decoded_product(fmt, tmp_path):
    torch.manual_seed(1)
    model = torch.nn.Linear(48, 10)  # 48 inputs: three blocks of 16
    data = RANDOM.normal(size=(4, 48)).astype(np.float32)
    small = compress(model, recipe(fmt), inputs=data)
    artifact = exporters.export(small, tmp_path / "m.onnx")
    weight, session = small.encoded["weight"].decode(), runtime.load(artifact, 1)
    for x in data:
        # 48 float32 products and sums, each rounded once: 50 units in the last place of the sum of magnitudes
        bound = 50 * np.finfo(np.float32).eps * (np.abs(weight) @ np.abs(x) + np.abs(model.bias.detach().numpy()))
        got = session.run({"input": x[None]})[0][0]
        assert np.all(np.abs(got - (weight.astype(np.float64) @ x + model.bias.detach().numpy())) <= bound)


def short(size: int) -> PerGroup:
    return PerGroup(size, "short")


BNB4 = [
    *(PRESETS[name].format for name in ("bnb.nf4", "bnb.fp4", "bnb.nf4.dq")),
    *(CodebookFormat("nf4", granularity) for granularity in (PerTensor(), PerAxis(), PerGroup(48), PerBlock(512))),
    CodebookFormat("fp4_bnb", PerBlock(16), scale_dtype="float16"),
    CodebookFormat("nf4", PerBlock(32), double=DoubleQuantized("linear", 8)),
]
NBITS = [
    PRESETS["ort.matmulnbits.uint4"].format,
    IntFormat(4, PerAxis(), "qmax", signed=False),
    IntFormat(2, PerBlock(48), "asymmetric", signed=False, zero_point="float"),
    IntFormat(4, short(64), "asymmetric", scale_dtype="bfloat16", zero_point="offset"),
    IntFormat(4, short(64), "half", scale_dtype="float8_e4m3"),
    IntFormat(1, PerGroup(16), "signed"),
    IntFormat(3, short(64), "asymmetric", scale_dtype="float8_e8m0"),
    IntFormat(3, PerAxis(), "asymmetric", signed=False),
]
AT_LOAD = [
    *(PRESETS[name].format for name in ("torchao.nf4", "mx.fp4", "mx.fp6.e3m2", "mx.fp8", "nvfp4", "fp8.e5m2", "log2.5", "apot.4", "nf3.block64")),
    *(CodebookFormat(Learned(entries, entry_dtype=dtype), reach, "none") for entries, dtype, reach in (
        (16, "float32", PerTensor()), (5, "float16", PerAxis()), (12, "int8", short(64)), (200, "int8", PerBlock(100)))),
    CodebookFormat((-0.2, -0.01, 0.0, 0.05, 0.1), PerTensor(), "none"),
    CodebookFormat((-1.0, 1.0), PerAxis(), scale_dtype="bfloat16"),
    CodebookFormat("nf4", short(20), double=DoubleQuantized("dynamic", 8)),
    IntFormat(5, short(64), "half", scale_dtype="float8_e8m0"),
    IntFormat(8, PerBlock(40), "asymmetric", signed=False, zero_point="float"),
    IntFormat(16, short(64), "asymmetric", signed=False),
    IntFormat(4, short(20), "asymmetric", zero_point="offset"),
]  # fmt: skip


@pytest.mark.parametrize("fmt, kernel", [*((f, "MatMulBnb4") for f in BNB4), *((f, "MatMulNBits") for f in NBITS), *((f, "Gemm") for f in AT_LOAD)], ids=str)
def test_weights_of_every_kind_are_the_decoded_ones_element_by_element(fmt, kernel, tmp_path):
    torch.manual_seed(7)
    model = torch.nn.Linear(96, 11, bias=False)  # an odd number of rows; 96 inputs: short last groups of 64, blocks that run on into the next row
    small = compress(model, recipe(fmt), inputs=np.zeros((2, 96), np.float32))
    artifact = exporters.export(small, tmp_path / "m.onnx")
    stored = next(t for t in artifact.tensors if t.name == "weight")
    assert stored.placement == ("decoded" if kernel == "Gemm" else "native") and len(artifact.tensors) == 1
    assert set(kernels(artifact.path, tmp_path)) == {kernel}  # all that decodes is folded when the file is loaded
    weight, session = small.encoded["weight"].decode(), runtime.load(artifact, 1)
    got = np.stack([session.run({"input": row[None]})[0][0] for row in np.eye(96, dtype=np.float32)], axis=1)
    # one product with 1 and 95 zeros is exact. MatMulNBits adds scale * code and -scale * zero, each rounded, where zero is a float
    reach = np.abs(weight).max(1, keepdims=True) * (2 if getattr(fmt, "zero_point", "integer") != "integer" and kernel == "MatMulNBits" else 0)
    assert np.all(np.abs(got - weight) <= 2 * np.finfo(np.float32).eps * reach)


ANYWHERE = [
    "bnb.nf4",
    "torchao.nf4",
    "kmeans.16.channel",
    "kmeans.256",
    "mx.fp6.e2m3",
    "mx.fp8",
    "nvfp4",
    "nf2.block64",
    "onnx.dynamic.uint8",
    "gguf.q4_1",
    "apot.6",
]


@pytest.mark.parametrize("width", [24, 64])  # with 24, blocks run on from row to row
@pytest.mark.parametrize("name", ANYWHERE)
def test_tables_give_the_decoded_rows(name, width, tmp_path):
    torch.manual_seed(8)
    small = compress(torch.nn.Embedding(300, width), recipe(granular(PRESETS[name].format)), inputs=IDS[:1])
    artifact = exporters.export(small, tmp_path / "t.onnx")
    got = runtime.load(artifact, 1).run({small.network.inputs[0].name: IDS[:1]})[0]
    assert np.array_equal(got, small.encoded["weight"].decode()[IDS[:1]])
    by_row = "one by one" in next(t.reason for t in artifact.tensors if t.name == "weight")
    kept = optimized(artifact.path, tmp_path).graph.initializer
    assert by_row != any(t.data_type == onnx.TensorProto.FLOAT and np.prod(t.dims) == 300 * width for t in kept)
    assert by_row or width == 24 or name not in ("bnb.nf4", "torchao.nf4", "kmeans.16.channel", "mx.fp8", "nvfp4", "nf2.block64")


@pytest.mark.parametrize("name", ANYWHERE)
def test_convolutions_compute_with_the_decoded_weights(name, tmp_path):
    torch.manual_seed(8)
    conv, pixels = torch.nn.Conv2d(3, 5, 3, bias=False), np.zeros((27, 3, 3, 3), np.float32)
    pixels.reshape(27, 27)[np.diag_indices(27)] = 1  # each shows one weight of every channel
    small = compress(conv, recipe(granular(PRESETS[name].format)), inputs=pixels[:1])
    session = runtime.load(exporters.export(small, tmp_path / "c.onnx"), 1)
    got = np.stack([session.run({"input": pixel[None]})[0].ravel() for pixel in pixels], axis=1)
    assert np.array_equal(got, small.encoded["weight"].decode().reshape(5, 27))


def granular(fmt):
    return replace(fmt, granularity=short(fmt.granularity.size)) if isinstance(fmt.granularity, PerGroup) else fmt


@pytest.mark.parametrize("activations", [DynamicActivations(), StaticActivations()], ids=str)
@pytest.mark.parametrize("bits, signed, rule", [(8, False, "asymmetric"), (8, False, "qmax"), (6, True, "half"), (7, False, "asymmetric")])
def test_unsigned_and_odd_widths_run_on_integer_kernels(bits, signed, rule, activations, tmp_path):
    model = torch.nn.Linear(64, 9)
    if rule == "qmax":  # which is for values without a sign
        model.weight.data.abs_()
    small = compress(model, recipe(IntFormat(bits, PerAxis(), rule, signed=signed), activations), calibration=MLP_DATA)
    artifact = exporters.export(small, tmp_path / "m.onnx")
    assert set(kernels(artifact.path, tmp_path)) & {"DynamicQuantizeMatMul", "MatMulIntegerToFloat"}
    session, reference = runtime.load(artifact, 1), small.simulate()
    weight = np.abs(small.encoded["weight"].decode()).sum(1)
    step = (MLP_DATA.max() - MLP_DATA.min()) / 255  # the widest that either kind of activations has
    for x in MLP_DATA[:4]:
        got, expected = (run({"input": x[None]})[0][0] for run in (session.run, reference.run))
        assert np.all(np.abs(got - expected) <= step / 2 * weight * 1.01)  # each input off by at most half a step


@pytest.mark.parametrize("fmt", [PRESETS["bnb.nf4"].format, PRESETS["nvfp4"].format, PRESETS["hqq.int4.group64"].format], ids=str)
def test_static_activations_refuse_what_integer_kernels_cannot_hold(fmt, tmp_path):
    small = compress(mlp(), recipe(fmt, StaticActivations()), calibration=MLP_DATA)
    with pytest.raises(Refused, match="no kernel with static int8 activations.*0.weight"):
        exporters.export(small, tmp_path / "m.onnx")


@pytest.mark.parametrize(
    "fmt, placement",
    [
        (CodebookFormat("nf4", PerBlock(256)), "native"),
        (CodebookFormat("nf4", PerGroup(32), double=DoubleQuantized()), "native"),
        (CodebookFormat("nf4", PerBlock(96)), "native"),  # in blocks of 32
        (CodebookFormat("nf4", PerBlock(100)), "decoded"),
        (PRESETS["kmeans.16"].format, "decoded"),
    ],
    ids=str,
)
def test_codebooks_of_a_projection_split_inside_the_graph(fmt, placement, tmp_path):
    data = RANDOM.normal(size=(4, 5, 32)).astype(np.float32)
    small = compress(Cross(), recipe(fmt), inputs=data)
    artifact = exporters.export(small, tmp_path / "m.onnx")
    assert next(t for t in artifact.tensors if t.name == "attention.in_proj_weight").placement == placement
    got, expected = runtime.load(artifact, 1).run({"x": data[:1]})[0], small.simulate().run({"x": data[:1]})[0]
    assert np.abs(got - expected).max() < 1e-5 * np.abs(expected).max()  # float32 sums in another order


def test_a_codebook_that_differs_in_the_file_is_an_error(tmp_path, monkeypatch):
    small = compress(mlp(), recipe(PRESETS["kmeans.16"].format), inputs=MLP_DATA)
    monkeypatch.setattr(onnx_codebooks, "stored_codebook", lambda book, dtype: {"codebook": np.nextafter(book, np.float32(1))})
    with pytest.raises(ExportError, match="0.weight: codebooks differ"):
        exporters.export(small, tmp_path / "m.onnx")


@pytest.fixture(scope="module")
def sized():
    """A network of some 100,000 weights, and the bytes of its float graph."""
    torch.manual_seed(9)
    layers = [torch.nn.Linear(256, 256), torch.nn.ReLU(), torch.nn.Linear(256, 128), torch.nn.ReLU(), torch.nn.Linear(128, 16)]
    network = open_model(torch.nn.Sequential(*layers), np.zeros((1, 256), np.float32))
    with tempfile.TemporaryDirectory() as folder:
        return network, exporters.export(compress(network, "float32"), Path(folder) / "f.onnx").ledger.graph


@pytest.mark.parametrize("name", PRESETS)
def test_files_take_the_predicted_bytes(name, sized, tmp_path):
    network, graph = sized
    small = compress(network, recipe(PRESETS[name].format))
    ledger = exporters.export(small, tmp_path / "m.onnx").ledger
    # what kernels pack by rows, zero points of tensors and channels among it, is repeated for each row: far below 1%
    assert abs(ledger.file_bytes - ledger.graph - small.plan.size_bytes) <= 0.01 * small.plan.size_bytes
    assert ledger.graph - graph < 1100 + 3 * 4096  # a table of 256 levels, and for each of three weights the nodes that decode it and what the file says of it


def test_static_products_are_those_of_the_stored_integers(tmp_path):
    torch.manual_seed(2)
    small = compress(torch.nn.Linear(64, 9), recipe(INT8, StaticActivations()), calibration=MLP_DATA)
    artifact = exporters.export(small, tmp_path / "m.onnx")
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(artifact.path).graph.initializer}
    scale, zero = stored["input/scale"], stored["input/zero_point"].astype(np.int64)
    weight, bias = small.encoded["weight"], small.network.weights()["bias"].value
    session = runtime.load(artifact, 1)
    for x in MLP_DATA:
        codes = np.clip(np.rint(x / scale) + zero, 0, 255).astype(np.int64) - zero
        expected = (weight.codes.astype(np.int64) @ codes) * (weight.scales.astype(np.float64) * scale) + bias
        # the integer sum is exact; scaling it and adding the bias round four times
        assert np.all(np.abs(session.run({"input": x[None]})[0][0] - expected) <= 4 * np.finfo(np.float32).eps * (np.abs(expected) + np.abs(bias)))


def test_static_convolutions_fuse_and_stay_integer_in_between(tmp_path):
    torch.manual_seed(3)

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Conv2d(8, 8, 3, padding=1, groups=8), torch.nn.Conv2d(8, 4, 1)

        def forward(self, x):
            x = torch.relu(self.a(x))
            return self.c(torch.nn.functional.max_pool2d(x + torch.nn.functional.relu6(self.b(x)), 2))

    small = compress(Block(), recipe(INT8, StaticActivations()), calibration=RANDOM.normal(size=(8, 3, 8, 8)).astype(np.float32))
    found = kernels(exporters.export(small, tmp_path / "m.onnx").path, tmp_path)
    assert found["QLinearConv"] == 3 and found["QLinearAdd"] == 1 and found["QuantizeLinear"] == found["DequantizeLinear"] == 1
    assert not set(found) & {"Conv", "Add", "Relu", "Clip"}


def test_a_bias_beyond_int32_keeps_its_integer_kernel_and_its_value(tmp_path):
    torch.manual_seed(4)
    conv = torch.nn.Conv2d(3, 4, 3)
    with torch.no_grad():
        conv.weight[1] *= 1e-9  # a dead channel, as folded batch norms leave them
        conv.bias[1] = 1.0
    data = RANDOM.normal(size=(8, 3, 8, 8)).astype(np.float32)
    small = compress(conv, recipe(INT8, StaticActivations()), calibration=data)
    artifact = exporters.export(small, tmp_path / "m.onnx")  # compares the codes and scales in the file with the core's
    stored = next(t for t in artifact.tensors if t.name == "weight")
    assert stored.placement == "native" and "bias of 1 channel(s) overflows int32" in stored.reason
    assert kernels(artifact.path, tmp_path)["QLinearConv"] == 1
    got, expected = (run({"input": data[:1]})[0] for run in (runtime.load(artifact, 1).run, small.simulate().run))
    step = onnx.numpy_helper.to_array(next(t for t in onnx.load(artifact.path).graph.initializer if t.name.endswith("/scale") and "conv" in t.name))
    assert np.abs(got[0, 1] - 1.0).max() <= 0.51 * step  # its products are 1e-9 of that: only the output's own rounding is left
    inputs = np.abs(small.encoded["weight"].decode().reshape(4, -1)).sum(1).max() * np.abs(data).max() / 127  # every input off by half a step
    assert np.abs(got - expected).max() <= inputs + 0.51 * step


def test_a_convolution_that_the_recipe_leaves_in_float_stays_there(tmp_path):
    """ONNX Runtime's WeightBiasQuantization would take it over, with a single scale for all channels."""
    torch.manual_seed(6)
    model = torch.nn.Sequential(*(torch.nn.Conv2d(3 if i == 0 else 8, 8, 3, padding=1) for i in range(3)))
    chosen = Quantize(select={"name": ["0.weight", "2.weight"]}, weights=INT8, activations=StaticActivations())
    data = RANDOM.normal(size=(4, 3, 8, 8)).astype(np.float32)
    artifact = exporters.export(compress(model, Recipe(name="own", steps=(chosen,)), calibration=data), tmp_path / "m.onnx")
    found = kernels(artifact.path, tmp_path)
    assert found["QLinearConv"] == 2 and found["Conv"] == 1, found


@pytest.mark.parametrize("name", ["float32", "float16", "int8-weight-only", "int8-static"])
def test_a_tied_weight_is_stored_once(name, tmp_path):
    small = compress(Tied(), name, calibration=IDS)
    artifact = exporters.export(small, tmp_path / "m.onnx")
    assert artifact.ledger.file_bytes < 300 * 32 * {"float32": 4, "float16": 2}.get(name, 1) * 1.9
    if name == "int8-static":
        assert kernels(artifact.path, tmp_path)["MatMulIntegerToFloat"] == 1


def test_a_tied_weight_that_one_of_its_nodes_cannot_take_is_named(tmp_path):
    fmt = IntFormat(2, PerGroup(16))
    with pytest.raises(Refused, match="table.weight: ONNX Runtime has no kernel with static"):
        exporters.export(compress(Tied(), recipe(fmt, StaticActivations()), calibration=IDS), tmp_path / "m.onnx")
    artifact = exporters.export(compress(Tied(), recipe(fmt, StaticActivations(), allow_float=True), calibration=IDS), tmp_path / "m.onnx")
    assert next(t for t in artifact.tensors if t.name == "table.weight").placement == "float"
    assert any("table.weight stayed in float" in note for note in artifact.notes)


@pytest.mark.parametrize("fmt", [INT8, IntFormat(4, PerGroup(32))], ids=str)
def test_a_projection_split_inside_the_graph_is_placed_by_rows(fmt, tmp_path):
    data = RANDOM.normal(size=(4, 5, 32)).astype(np.float32)
    small = compress(Cross(), recipe(fmt, DynamicActivations()), inputs=data)
    artifact = exporters.export(small, tmp_path / "m.onnx")
    stored = next(t for t in artifact.tensors if t.name == "attention.in_proj_weight")
    assert stored.placement == "native" and stored.codes.shape == (96, 32)
    found = kernels(artifact.path, tmp_path)  # queries, keys, values and output; keys and values share one quantization of their input
    assert found["DynamicQuantizeMatMul"] + found["MatMulIntegerToFloat"] + found["MatMulNBits"] == 4
    got, expected = runtime.load(artifact, 1).run({"x": data[:1]})[0], small.simulate().run({"x": data[:1]})[0]
    # rows taken from the wrong place give errors as large as the outputs; rounding activations to 8 bits gives some 1 / 127 of them
    assert np.abs(got - expected).max() < 0.03 * np.abs(expected).max()


def test_weights_that_the_graph_never_reads_are_named(tmp_path):
    class Spare(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare = torch.nn.Linear(64, 4), torch.nn.Linear(64, 4)

        def forward(self, x):
            return self.used(x)

    with pytest.raises(ExportError, match="spare.weight"):
        exporters.export(compress(Spare(), recipe(INT8), inputs=MLP_DATA), tmp_path / "m.onnx")
    artifact = exporters.export(compress(Spare(), recipe(INT8, allow_float=True), inputs=MLP_DATA), tmp_path / "m.onnx")
    assert any("spare.weight" in note and "does not use it" in note for note in artifact.notes)


def test_sixteen_bit_activations_are_refused_with_the_reason():
    with pytest.raises(Refused, match="no kernels with int16 activations"):
        scheme("linear", (8, 32), INT8, StaticActivations(16))


def test_layouts_are_found_by_value():
    dense, depthwise, transposed = (RANDOM.normal(size=shape).astype(np.float32) for shape in ((4, 6), (6, 1, 3, 5), (4, 3, 2, 2)))
    assert np.array_equal(layout_of(dense, dense.T.copy()).apply(dense), dense.T)
    keras = depthwise.reshape(2, 3, 3, 5).transpose(2, 3, 0, 1)  # [*kernel, channels, multiplier]
    assert np.array_equal(layout_of(depthwise, keras).apply(depthwise), keras)
    grouped = transposed.reshape(2, 2, 3, 2, 2).swapaxes(1, 2).reshape(6, 2, 2, 2)  # torch's [in, out / groups, *kernel] with 2 groups
    assert np.array_equal(layout_of(transposed, grouped).apply(transposed), grouped)
    assert layout_of(dense, dense.T * 1.001) is None


def test_files_carry_no_paths_and_pass_the_checker(tmp_path):
    path = exporters.export(compress(mlp(), "int8-static", calibration=MLP_DATA), tmp_path / "m.onnx").path
    data = path.read_bytes()
    assert os.getcwd().encode() not in data and b"site-packages" not in data and b"stack_trace" not in data
    onnx.checker.check_model(str(path), full_check=False)


@pytest.mark.parametrize("kept", [0, 1, 10, 1000, -1])
def test_truncated_files_are_broken(kept, tmp_path):
    path = exporters.export(compress(mlp(), "int8-static", calibration=MLP_DATA), tmp_path / "m.onnx").path
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(BrokenFile):
        exporters.inspect(path)


def test_files_of_other_tools_are_read(tmp_path):
    helper, kinds = onnx.helper, onnx.TensorProto
    constant = helper.make_node("Constant", [], ["c"], value=onnx.numpy_helper.from_array(np.ones((3, 4), np.float32)))
    inner = helper.make_graph([constant], "then", [], [helper.make_tensor_value_info("c", kinds.FLOAT, [3, 4])])
    nodes = [helper.make_node("MatMulInteger", ["x", "w"], ["y"]), helper.make_node("If", ["flag"], ["z"], then_branch=inner, else_branch=inner)]
    constants = [onnx.numpy_helper.from_array(np.ones((4, 5), np.int8), "w"), onnx.numpy_helper.from_array(np.array(True), "flag")]
    inputs = [helper.make_tensor_value_info("x", kinds.UINT8, ["batch", 4])]
    outputs = [helper.make_tensor_value_info("y", kinds.INT32, ["batch", 5]), helper.make_tensor_value_info("z", kinds.FLOAT, [3, 4])]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", inputs, outputs, constants)), tmp_path / "other.onnx")
    found = exporters.inspect(tmp_path / "other.onnx")
    assert {(t.name, t.dtype, t.placement, t.size_bytes) for t in found.tensors} == {("w", "int8", "native", 20), ("c", "float32", "float", 48)}
    assert found.contents.inputs[0].shape == (-1, 4) and found.contents.operators["MatMulInteger"] == 1 and found.contents.metadata == {}


def test_keras_through_torch_keeps_its_numbers_and_reports_a_crash(tmp_path):
    keras = pytest.importorskip("keras")
    from compress import open_model
    from compress.backends.keras_in_torch import to_exported_program

    layers = keras.layers
    model = keras.Sequential([layers.Input((8, 8, 2)), layers.DepthwiseConv2D(3, depth_multiplier=2), layers.Flatten(), layers.Dense(3)])
    network, x = open_model(model), RANDOM.normal(size=(1, 8, 8, 2)).astype(np.float32)
    to_exported_program(network.model, network.inputs, tmp_path / "m.pt2")
    got = torch.export.load(tmp_path / "m.pt2").module()(torch.from_numpy(x))[0].numpy()
    np.testing.assert_allclose(got, network.run({network.inputs[0].name: x})[0], atol=1e-5)  # float32 sums in another order

    class Unknown(keras.layers.Layer):
        def call(self, x):
            return x + 1

    with pytest.raises(ExportError, match="Unknown"):
        to_exported_program(keras.Sequential([keras.layers.Input((2,)), Unknown()]), network.inputs, tmp_path / "n.pt2")


def test_versions_name_the_kernels():
    found = runtime.versions()
    assert found["onnxruntime"] == ort.__version__ and found["onnxruntime int8 kernels"]
