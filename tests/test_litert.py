"""What only LiteRT does: weights found by value, folded scales undone, biases that follow, masks, damaged and foreign files."""

import random

import numpy as np
import pytest
from zoo import flipped

import exporters
from compress import compress
from compress.errors import BrokenFile, ExportError, Refused
from compress.formats import DynamicActivations, FloatFormat, IntFormat, PerAxis, PerGroup, PerTensor, StaticActivations
from compress.numerics.packing import pack_low_first
from compress.plan import Decision
from compress.presets import PRESETS
from compress.recipe import Recipe
from compress.samples import samples
from compress.steps import Quantize
from evaluators.runtimes import litert as runtime
from exporters import litert_converter, litert_float, litert_unfolding, tflite_file, to_litert
from exporters.litert_matching import Layout, order_of

torch = pytest.importorskip("torch")

RNG = np.random.default_rng(7)
INT32 = next(code for code, name in tflite_file.TYPE_NAMES.items() if name == "int32")
INT8 = IntFormat(8, PerAxis(), "narrow")
BLOCKS = IntFormat(4, PerGroup(32), "qmax", scale_dtype="bfloat16")


def decision(fmt, activations=None, kind="linear", shape=(64, 64)) -> Decision:
    return Decision("weight", kind, shape, fmt, activations, (0,), "", False, 0)


@pytest.mark.parametrize(
    ("fmt", "activations", "kind", "words"),
    [
        (FloatFormat("float16"), DynamicActivations(), "linear", "integer weights"),
        (IntFormat(5, PerAxis()), DynamicActivations(), "linear", "int5"),
        (IntFormat(16, PerAxis()), DynamicActivations(), "linear", "int16"),
        (IntFormat(8, PerAxis(), "signed"), DynamicActivations(), "linear", "negative"),
        (IntFormat(8, PerAxis(), "asymmetric"), DynamicActivations(), "linear", "zero point"),
        (IntFormat(8, PerGroup(32)), DynamicActivations(), "linear", "int4 only"),
        (IntFormat(4, PerGroup(16), scale_dtype="bfloat16"), DynamicActivations(), "linear", "32, 64"),
        (IntFormat(4, PerGroup(32)), DynamicActivations(), "linear", "bfloat16"),
        (PRESETS["bnb.nf4"].format, DynamicActivations(), "linear", "nf4 block-64"),
        (BLOCKS, DynamicActivations(), "conv2d", "linear layers"),
        (BLOCKS, StaticActivations(), "linear", "run time"),
        (IntFormat(8, PerTensor()), DynamicActivations(), "depthwise_conv2d", "granularity axis"),
        (IntFormat(4, PerAxis()), DynamicActivations(), "conv_transpose2d", "int4 kernel"),
        (IntFormat(2, PerAxis()), StaticActivations(), "linear", "int2"),
        (INT8, StaticActivations(), "conv3d", "float only"),
    ],
    ids=str,
)
def test_what_no_kernel_takes_is_refused_with_activations_and_decoded_without(fmt, activations, kind, words):
    with pytest.raises(Refused, match=words):
        to_litert.place(decision(fmt, activations, kind), "pytorch")
    assert to_litert.place(decision(fmt, None, kind), "pytorch").placement in ("decoded", "native")


def test_placements_name_the_kernel():
    assert to_litert.place(decision(INT8), "pytorch").placement == "decoded"
    assert to_litert.place(decision(INT8, DynamicActivations()), "pytorch").placement == "native"
    assert to_litert.place(decision(INT8, kind="embedding"), "pytorch").placement == "native"
    assert to_litert.place(decision(INT8, kind="embedding"), "keras").placement == "decoded"
    assert "int8 at run time" in to_litert.place(decision(BLOCKS), "pytorch").reason
    nf4 = PRESETS["bnb.nf4"].format
    assert "at the first run" in to_litert.place(decision(nf4), "pytorch").reason
    assert "at every run" in to_litert.place(decision(nf4, kind="embedding"), "pytorch").reason
    assert "at the first run" in to_litert.place(decision(nf4, kind="embedding", shape=(64, 96)), "pytorch").reason  # blocks of 64 cross its rows


@pytest.mark.parametrize("shape", [(5, 3, 2, 4), (1, 3, 2, 2), (6, 1, 3, 3), (4, 7), (1, 1, 3)])
def test_layouts_are_found_by_value_and_undone(shape):
    value = RNG.normal(size=shape).astype(np.float32)
    order = tuple(RNG.permutation(len(shape)))
    stored = value.transpose(order).reshape([1, *(shape[axis] for axis in order if shape[axis] > 1)])
    found = order_of(value, stored * np.float32(1 + 1e-6))
    layout = Layout("w", stored.shape, found, shape)
    assert np.array_equal(layout.to_file(value), stored)
    assert np.array_equal(layout.to_canonical(stored), value)
    if shape[0] > 1:
        by_channel = np.moveaxis(stored, layout.channel_axis, 0).reshape(shape[0], -1)
        assert np.array_equal(np.sort(by_channel, 1), np.sort(value.reshape(shape[0], -1), 1))
    changed = stored.copy()
    changed.flat[-1] += 0.1
    assert order_of(value, changed) is None


def test_factors_of_rows_and_columns_are_found_and_strangers_are_not():
    rows, f, g = RNG.normal(size=(40, 30)).astype(np.float32), RNG.uniform(0.2, 3, 40).astype(np.float32), RNG.normal(size=30).astype(np.float32)
    outputs, inputs = litert_unfolding.rank_one(rows, rows * f[:, None] * g, with_inputs=True)
    assert np.allclose(np.outer(outputs, inputs), np.outer(f, g), rtol=1e-4)  # float32 least squares
    assert litert_unfolding.rank_one(rows, RNG.normal(size=rows.shape).astype(np.float32), with_inputs=True) is None
    assert litert_unfolding.rank_one(rows, rows * f[:, None] * g, with_inputs=False) is None


class Attention(torch.nn.Module):
    """What converters fold: scaled queries, a layer norm's gamma, positions that are constant; and a mask of -inf."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.token, self.position = torch.nn.Embedding(40, 32), torch.nn.Embedding(16, 32)
        self.norm = torch.nn.LayerNorm(32)
        torch.nn.init.uniform_(self.norm.weight, 0.3, 2)
        torch.nn.init.normal_(self.norm.bias)
        self.query, self.key, self.value, self.out = (torch.nn.Linear(32, 32) for _ in range(4))
        self.head = torch.nn.Linear(32, 5)
        self.head.weight.data *= 3

    def forward(self, ids, mask):
        x = self.norm(self.token(ids) + self.position(torch.arange(ids.shape[1])))
        attended = torch.nn.functional.scaled_dot_product_attention(self.query(x), self.key(x), self.value(x), mask[:, None].bool())
        return self.head(torch.relu(self.out(attended)) + x).mean(1), x


@pytest.fixture(scope="module")
def attention():
    ids = RNG.integers(0, 40, (24, 8))
    mask = np.ones((24, 8), np.int64)
    mask[:, 5:] = 0
    return Attention(), {"ids": ids, "mask": mask}


@pytest.fixture(scope="module")
def opened(attention):
    return compress(attention[0], "float32", inputs=attention[1]).network


def test_names_are_short_and_their_own(opened, tmp_path):
    artifact = exporters.export(compress(opened, "float32"), tmp_path / "m.tflite")
    graph = tflite_file.parse(artifact.path.read_bytes(), "m").subgraphs[0]
    names = [tflite_file.text(tensor.name) for tensor in graph.tensors]
    assert len(set(names)) == len(names) and max(map(len, names)) < 60
    assert any("Linear_query" in name for name in names)


def run_both(small, artifact, data, count=6):
    session, oracle = runtime.load(artifact, 1), small.simulate()
    batches = [batch for batch, _ in zip(samples(data, small.network.inputs), range(count), strict=False)]
    return [session.run(batch) for batch in batches], [oracle.run(batch) for batch in batches]


def test_folded_weights_keep_their_codes_and_outputs_their_order(attention, opened, tmp_path):
    small = compress(opened, "int8-weight-only")
    artifact = exporters.export(small, tmp_path / "m.tflite")
    stored = {t.name: t for t in artifact.tensors}
    for name in ("position.weight", "query.weight", "key.weight", "value.weight"):
        assert stored[name].dtype == "int8", name
    assert [spec.shape for spec in artifact.contents.outputs] == [(1, 5), (1, 8, 32)]
    got, expected = run_both(small, artifact, attention[1])
    for g, e in zip(got, expected, strict=True):
        for a, b in zip(g, e, strict=True):
            assert np.abs(a - b).max() < 2e-5 * np.abs(b).max()  # the same decoded weights: float32 rounding only


@pytest.mark.parametrize("recipe", ["int8-static", "int16x8"])
def test_masks_stay_masks(attention, opened, tmp_path, recipe):
    """Padded tokens change nothing, though -inf has no place in a range."""
    small = compress(opened, recipe, calibration=attention[1])
    artifact = exporters.export(small, tmp_path / "m.tflite")
    assert any("masked values" in note for note in artifact.notes)
    got, expected = run_both(small, artifact, attention[1])
    error = max(np.abs(g[0] - e[0]).max() for g, e in zip(got, expected, strict=True))
    reach = max(np.abs(e[0]).max() for e in expected)
    assert error < (0.04 if recipe == "int8-static" else 0.0005) * reach  # some ten steps of 1/255 and 1/65535 of the range, a mask lost costs 0.3
    model = tflite_file.parse(artifact.path.read_bytes(), "m")
    softmax = [op for op in model.subgraphs[0].operators if tflite_file.operator_name(model, op) == "SOFTMAX"]
    assert softmax and all(tflite_file.Place(model.subgraphs[0], op.inputs[0]).dtype == "float32" for op in softmax)


@pytest.mark.parametrize(("inputs", "weight", "bias_type"), [(500, 1.0, "int32"), (520, 1.0, "int64"), (4000, 0.1, "int32")])
def test_sums_of_int16_are_32_bits_wide_where_they_cannot_overflow(tmp_path, inputs, weight, bias_type):
    """127 * 32768 * 516 is just below 2^31. Inputs at the edge of their range meet weights of one sign, so that an overflow would show."""
    layer = torch.nn.Linear(inputs, 3)
    layer.weight.data[:] = 0.1 * weight
    layer.weight.data[:, 0] = 0.1  # codes are 127 here and 127 * weight elsewhere
    data = np.stack([np.full(inputs, value, np.float32) for value in (-1, 1, 0.5)])
    small = compress(layer, "int16x8", calibration=data)
    artifact = exporters.export(small, tmp_path / "m.tflite")
    model = tflite_file.parse(artifact.path.read_bytes(), "m")
    operator = next(op for op in model.subgraphs[0].operators if tflite_file.operator_name(model, op) == "FULLY_CONNECTED")
    assert tflite_file.Place(model.subgraphs[0], operator.inputs[2]).dtype == bias_type
    assert any("could overflow" in note for note in artifact.notes) == (bias_type == "int64")
    got, expected = run_both(small, artifact, data, 3)
    for g, e in zip(got, expected, strict=True):
        assert np.abs(g[0] - e[0]).max() < 2e-4 * inputs * 0.1 * weight


@pytest.mark.parametrize("kind", ["linear", "conv", "transposed"])
def test_layers_without_a_bias_have_narrow_sums_too(tmp_path, kind):
    layers = {
        "linear": (torch.nn.Linear(16, 4, bias=False), (16,)),
        "conv": (torch.nn.Conv2d(3, 4, 3, bias=False), (3, 8, 8)),
        "transposed": (torch.nn.ConvTranspose2d(3, 4, 3, stride=2, bias=False), (3, 8, 8)),
    }
    layer, shape = layers[kind]
    data = RNG.standard_normal((8, *shape)).astype(np.float32)
    small = compress(layer, "int16x8", calibration=data)
    artifact = exporters.export(small, tmp_path / "m.tflite")
    model = tflite_file.parse(artifact.path.read_bytes(), "m")
    assert any(getattr(op.builtinOptions, "quantizedBiasType", None) == INT32 for op in model.subgraphs[0].operators)
    got, expected = run_both(small, artifact, data)
    for g, e in zip(got, expected, strict=True):
        assert np.abs(g[0] - e[0]).max() < 5e-4 * np.abs(e[0]).max()


def test_a_network_is_converted_once(opened, tmp_path, monkeypatch):
    exporters.export(compress(opened, "float32"), tmp_path / "a.tflite")
    monkeypatch.setattr(litert_float, "convert", lambda network: pytest.fail("converted again"))
    exporters.export(compress(opened, "int8-dynamic"), tmp_path / "b.tflite")


def test_groups_are_int4_only_in_the_runtime(tmp_path):
    """XNNPACK refuses int8 and int2 groups; without it LiteRT reads neither scale nor group and returns something else, without a word."""
    data = RNG.normal(size=(2, 64)).astype(np.float32)
    scheme = Recipe(name="blocks", steps=(Quantize(weights=BLOCKS),))
    artifact = exporters.export(compress(torch.nn.Linear(64, 8), scheme, inputs=data), tmp_path / "m.tflite")
    for bits in (2, 8):
        model = tflite_file.parse(artifact.path.read_bytes(), "m")
        place = next(place for place in tflite_file.constants(model) if place.dtype == "int4")
        codes = tflite_file.values(model, place).astype(np.int8)
        place.tensor.type = next(code for code, name in tflite_file.TYPE_NAMES.items() if name == f"int{bits}")
        place.tensor.buffer = tflite_file.add_buffer(model, codes if bits == 8 else pack_low_first(codes, 2))
        with pytest.raises(Refused, match="unsupported tensor type"):
            to_litert.check_loads(tflite_file.serialized(model))


@pytest.mark.parametrize("size", [32, 64, 128, 256])
def test_int4_groups_of_every_size_are_native(tmp_path, size):
    data = RNG.normal(size=(4, 256)).astype(np.float32)
    fmt = IntFormat(4, PerGroup(size), scale_dtype="bfloat16")
    small = compress(torch.nn.Linear(256, 8), Recipe(name="blocks", steps=(Quantize(weights=fmt),)), inputs=data)
    artifact = exporters.export(small, tmp_path / "m.tflite")
    weight = next(t for t in artifact.tensors if t.name == "weight")
    assert (weight.dtype, weight.placement, weight.size_bytes) == ("int4", "native", small.plan.compressed["weight"].size_bytes)
    steps = np.abs(small.encoded["weight"].decode()).sum(1)
    got, expected = run_both(small, artifact, data, 4)
    for x, g, e in zip(data, got, expected, strict=True):
        step = (max(x.max(), 0) - min(x.min(), 0)) / 255  # the kernel rounds each input by half a step of its own
        assert np.all(np.abs(g[0] - e[0]) <= 0.51 * step * steps + 1e-5)


@pytest.fixture(scope="module")
def conv_file(tmp_path_factory):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 1, 3), torch.nn.Flatten(), torch.nn.Linear(16, 4))
    data = RNG.normal(size=(8, 3, 8, 8)).astype(np.float32)
    small = compress(model, "int8-static", calibration=data)
    return small, exporters.export(small, tmp_path_factory.mktemp("litert") / "conv.tflite")


def test_biases_follow_the_scales_of_input_and_weight(conv_file):
    small, artifact = conv_file
    model = tflite_file.parse(artifact.path.read_bytes(), "m")
    biases = [weight.value for name, weight in small.network.weights().items() if name.endswith("bias")]
    seen = 0
    for operator in model.subgraphs[0].operators:
        if tflite_file.operator_name(model, operator) in ("CONV_2D", "FULLY_CONNECTED"):
            given, weight, bias = (tflite_file.Place(model.subgraphs[0], i) for i in operator.inputs)
            step = tflite_file.scales_of(given) * tflite_file.scales_of(weight)
            codes = tflite_file.values(model, bias)
            assert codes.dtype == np.int32 and np.allclose(tflite_file.scales_of(bias), step, rtol=1e-6)
            assert any(len(b) == len(codes) and np.all(np.abs(codes * step - b) <= 0.51 * step) for b in biases)
            seen += 1
    assert seen == 3


def test_damage_is_named_whatever_it_is(conv_file, tmp_path):
    """Cuts always; flipped bytes either read or raise BrokenFile, never anything else."""
    whole, dice = conv_file[1].path.read_bytes(), random.Random(0)
    path = tmp_path / "hurt.tflite"
    for _ in range(60):
        path.write_bytes(whole[: dice.randrange(len(whole) - 16)])
        with pytest.raises(BrokenFile, match="hurt"):
            to_litert.read(path)
        path.write_bytes(flipped(whole, dice))
        try:
            to_litert.read(path)
        except BrokenFile as error:
            assert "hurt" in str(error)


def test_files_of_others_are_read(conv_file, tmp_path):
    from litert_quantizer import quantizer, recipe

    small, ours = conv_file
    float_model = litert_float.float_file(small.network).data
    theirs = quantizer.Quantizer(float_model, recipe.dynamic_wi8_afp32()).quantize().quantized_model
    path = tmp_path / "theirs.tflite"
    path.write_bytes(theirs)
    artifact = exporters.inspect(path)
    assert artifact.contents.metadata == {} and artifact.recipe == ""
    int8 = [t for t in artifact.tensors if t.dtype == "int8"]
    assert sorted(t.payload_bytes for t in int8) == [64, 72, 216] and all(t.placement == "native" for t in int8)
    assert all(t.scale_bytes == 4 * t.scales.size and t.zero_point_bytes == 2 * t.scale_bytes for t in int8)
    assert artifact.contents.inputs[0].name == artifact.contents.inputs[0].file_name


def test_static_ranges_are_the_cores(conv_file):
    """The scale of the input's QUANTIZE is the range of the calibration data / 255."""
    small, artifact = conv_file
    model = tflite_file.parse(artifact.path.read_bytes(), "m")
    first = next(op for op in model.subgraphs[0].operators if tflite_file.operator_name(model, op) == "QUANTIZE")
    scale = tflite_file.scales_of(tflite_file.Place(model.subgraphs[0], first.outputs[0]))
    data = small.calibration
    assert np.allclose(scale, (data.max() - data.min()) / 255, rtol=1e-5)


def test_the_converters_own_arm():
    with pytest.raises(Refused, match="float activations"):
        litert_converter.place(decision(INT8), "keras")
    with pytest.raises(Refused, match="crashes"):
        litert_converter.place(decision(INT8, StaticActivations(), "recurrent"), "keras")


def test_the_converter_that_does_nothing_is_found_out(tmp_path):
    """Its dynamic mode skips weights under 1,024 elements and reports success."""
    keras = pytest.importorskip("keras")
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16), keras.layers.Dense(4)])
    with pytest.raises(ExportError, match="quantized nothing"):
        exporters.export(compress(model, "int8-dynamic"), tmp_path / "m.tflite", "litert-converter")
    step = "{step: quantize, select: {name: 'dense*', regex: '^dense(_[0-9]+)?/kernel$'}, weights: {type: float, dtype: float16}}"
    half = compress(model, Recipe.parse(f"name: half\nsteps:\n  - {step}\n"))
    artifact = exporters.export(half, tmp_path / "h.tflite", "litert-converter")
    assert {t.dtype for t in artifact.tensors if t.name in half.plan.compressed} == {"float16"}
