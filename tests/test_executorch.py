"""What only .pte files and ExecuTorch do; the laws that hold for every exporter are in test_exporters.py."""

import random

import numpy as np
import pytest
from test_exporters import FORMATS, exported
from zoo import flipped

torch = pytest.importorskip("torch")
pytest.importorskip("executorch")
from torch import nn  # noqa: E402

import exporters  # noqa: E402
from compress.errors import BrokenFile, Refused  # noqa: E402
from compress.formats import DynamicActivations  # noqa: E402
from compress.pipeline import compress  # noqa: E402
from compress.plan import Decision  # noqa: E402
from compress.recipe import Recipe  # noqa: E402
from compress.steps import Quantize  # noqa: E402
from compress.steps.selector import Selector  # noqa: E402
from evaluators.runtimes import executorch_xnnpack as runtime  # noqa: E402
from exporters import executorch_graph, executorch_kernels, executorch_products, pte_file, to_executorch  # noqa: E402
from exporters.torch_graph import Builder, flat_module  # noqa: E402


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(5).standard_normal(shape).astype(np.float32)


def layers() -> nn.Module:
    """Groups, padding that differs between the sides, a multiplier of channels, a transposed convolution, and activations in place."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, groups=2, padding="same"),
        nn.ReLU6(inplace=True),
        nn.Conv2d(8, 16, 2, groups=8, padding="same"),
        nn.ReLU(inplace=True),
        nn.ConvTranspose2d(16, 6, 3, stride=2, padding=1, output_padding=1),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(6 * 8 * 8, 16),
    )


def test_every_kind_of_layer_computes_in_calibrated_int8(tmp_path):
    data = noise(8, 4, 8, 8)
    small = compress(layers(), "int8-static", calibration=data)
    artifact = exporters.export(small, tmp_path / "layers.pte")
    stored = {t.name: t for t in artifact.tensors}
    assert all(stored[name].placement == "native" for name in small.encoded)
    assert {stored[f"{index}.bias"].dtype for index in (0, 2, 4, 7)} == {"int32"}
    assert not [name for name in artifact.contents.operators if not name.startswith("xnnpack.")]
    assert "xnnpack.XNNClamp" not in artifact.contents.operators  # layers clamp their own sums
    session, network = runtime.load(artifact, 1), small.simulate()
    inputs = {network.inputs[0].name: data[:1]}
    got, expected = session.run(inputs)[0], network.run(inputs)[0]
    # six tensors rounded to 8 bits between input and output
    assert np.square(got - expected).mean() < 1e-3 * np.square(expected).mean()


CONVOLUTIONS = {
    "plain": (nn.Conv2d(4, 6, 1), (3, 4, 5, 7)),
    "every argument": (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 3), groups=2, bias=False), (2, 4, 9, 8)),
    "depthwise": (nn.Conv2d(4, 8, 3, padding=1, groups=4), (1, 4, 6, 6)),
    "one axis": (nn.Conv1d(3, 5, 4, stride=3), (1, 3, 17)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_is_a_product_of_matrices(name):
    layer, shape = CONVOLUTIONS[name]
    x = torch.from_numpy(noise(*shape))
    module = flat_module(torch.export.export(layer.eval(), (x,)))
    (node,) = (node for node in module.graph.nodes if executorch_products.is_convolution(node))
    executorch_products.as_product(Builder(module, {}), node, tuple(layer.weight.shape))
    module.recompile()
    assert "conv" not in module.code
    torch.testing.assert_close(module(x)[0], layer(x), rtol=1e-5, atol=1e-5)  # sums of up to 16 products of order 1 in another order


def test_no_weight_that_is_expanded_meets_the_portable_convolution(tmp_path):
    small = compress(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8)), "int8-weight-only", inputs=noise(2, 3, 8, 8))
    artifact = exporters.export(small, tmp_path / "small.pte")
    assert {t.placement for t in artifact.tensors if t.name in small.encoded} == {"decoded"}
    assert not [name for name in artifact.contents.operators if "convolution" in name.lower()]


class Many(nn.Module):
    """One linear layer for each format, all of the same input."""

    def __init__(self, count: int):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(64, 32) for _ in range(count))

    def forward(self, x):
        return torch.stack([layer(x) for layer in self.layers])


def is_known(fmt, activations) -> bool:
    """Whether the exporter takes it; a refusal says why."""
    try:
        to_executorch.place(Decision("w", "linear", (32, 64), fmt, activations, (0,), "", False, 0), "pytorch")
    except Refused as error:
        assert len(str(error)) > 60
        return False
    return True


def test_every_weight_format_is_stored_exactly_or_refused(tmp_path):
    known = [(fmt, activations) for fmt in FORMATS for activations in (None, DynamicActivations()) if is_known(fmt, activations)]
    assert {fmt.bits for fmt, _ in known} == {4, 8, 16} and len(known) > 30
    steps = [Quantize(select=Selector(name=f"layers.{i}.weight"), weights=fmt, activations=activations) for i, (fmt, activations) in enumerate(known)]
    data = noise(4, 64)
    small = compress(Many(len(known)), Recipe(name="formats", steps=tuple(steps)), inputs=data)
    artifact = exporters.export(small, tmp_path / "formats.pte")
    stored = {t.name: t for t in artifact.tensors}
    assert all(stored[name].payload_bytes <= small.plan.compressed[name].size_bytes for name in small.encoded)
    network = small.simulate()
    inputs = {network.inputs[0].name: data[:1]}
    got, expected = runtime.load(artifact, 1).run(inputs)[0], network.run(inputs)[0]
    for (name, encoded), theirs, ours in zip(small.encoded.items(), got, expected, strict=True):
        integers = stored[name].placement == "native"  # whose kernels round each input to 8 bits: by at most half of 1/255 of their range
        reach = np.ptp(data[0]) / 255 / 2 * 1.01 * np.abs(encoded.decode()).sum(1).max() if integers else 1e-4 * np.abs(ours).max()
        assert np.abs(theirs - ours).max() <= reach + 1e-5, encoded.format


class Residual(nn.Module):
    """A sum that a layer reads, and one that a layer norm reads."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down, self.norm, self.out = nn.Linear(16, 16), nn.Linear(16, 16), nn.LayerNorm(16), nn.Linear(16, 8)

    def forward(self, x):
        x = x + self.up(x)
        return self.out(self.norm(x + self.down(x)))


def test_sums_compute_in_int8_where_layers_read_them(tmp_path):
    data = noise(16, 16)
    small = compress(Residual(), "int8-static", calibration=data)
    artifact = exporters.export(small, tmp_path / "sums.pte")
    quantized = [value for value in pte_file.opened(artifact.path.read_bytes()).values if value.quantized and not value.key]
    assert len(quantized) == 6  # x and three outputs of layers, the first sum, and what the norm gives
    network = small.simulate()
    inputs = {network.inputs[0].name: data[:1]}
    got, expected = runtime.load(artifact, 1).run(inputs)[0], network.run(inputs)[0]
    assert np.square(got - expected).mean() < 1e-3 * np.square(expected).mean()


MIXED = """
name: mixed
steps:
  - step: quantize
    select: {name: "2.weight"}
    weights: {type: int, bits: 4, granularity: {type: group, size: 32}, rule: qmax, scale_dtype: bfloat16}
    activations: {type: dynamic}
  - {step: quantize, select: {name: "4.weight"}, weights: {type: float, dtype: float16}}
  - {step: quantize, weights: {type: int, bits: 8, granularity: {type: tensor}, rule: narrow}, activations: {type: static}}
"""


def test_formats_mix_with_static_layers(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32))
    data = noise(16, 64)
    small = compress(model, Recipe.parse(MIXED), calibration=data)
    artifact = exporters.export(small, tmp_path / "mixed.pte")
    stored = {t.name: (t.dtype, t.placement) for t in artifact.tensors}
    assert stored["0.weight"] == stored["6.weight"] == ("int8", "native")
    assert (stored["2.weight"], stored["4.weight"]) == (("int4", "native"), ("float16", "decoded"))
    network = small.simulate()
    inputs = {network.inputs[0].name: data[:1]}
    got, expected = runtime.load(artifact, 1).run(inputs)[0], network.run(inputs)[0]
    assert np.square(got - expected).mean() < 1e-3 * np.square(expected).mean()


def test_convolutions_over_time(tmp_path):
    torch.manual_seed(0)
    data = noise(8, 6, 20)
    small = compress(nn.Sequential(nn.Conv1d(6, 8, 3, padding=1), nn.ReLU(), nn.Conv1d(8, 8, 5, groups=8)), "int8-static", calibration=data)
    artifact = exporters.export(small, tmp_path / "time.pte")
    assert {t.placement for t in artifact.tensors if t.name in small.encoded} == {"native"}
    network = small.simulate()
    inputs = {network.inputs[0].name: data[:1]}
    got, expected = runtime.load(artifact, 1).run(inputs)[0], network.run(inputs)[0]
    assert np.square(got - expected).mean() < 1e-3 * np.square(expected).mean()


def test_a_keras_network_is_one_delegate():
    _, artifact = exported("executorch", Recipe.load("float32"), "keras_cnn")
    assert all(name.startswith("xnnpack.") for name in artifact.contents.operators), artifact.notes
    assert artifact.contents.operators["xnnpack.XNNStaticTranspose"] == 3  # of the input, and in and out of the mean: none between convolutions


def test_what_runs_outside_of_xnnpack_is_named():
    _, artifact = exported("executorch", Recipe.load("int8-weight-only"), "torch_cnn")
    assert any("aten::convolution" in note for note in artifact.notes) and artifact.contents.operators["aten::convolution.out"] == 1  # transposed


def test_the_runtime_has_the_threads_that_are_asked_for():
    _, artifact = exported("executorch", Recipe.load("float32"), "torch_conv")
    for threads in (2, 1):
        runtime.load(artifact, threads)
        assert runtime.versions()["threads"] == str(threads)


@pytest.mark.parametrize("mask", [None, "bool", "float"])
def test_attention_in_parts_computes_the_same(mask):
    class Attention(nn.Module):
        def forward(self, q, k, v, mask=None):
            return nn.functional.scaled_dot_product_attention(q, k, v, mask, scale=None if mask is None else 0.5)

    given = tuple(torch.from_numpy(noise(2, 3, count, 8)) for count in (4, 6, 6))
    allowed = torch.rand(2, 1, 4, 6) > 0.4
    allowed[..., 0] = True
    given += () if mask is None else (allowed if mask == "bool" else torch.from_numpy(noise(2, 1, 4, 6)),)
    module = flat_module(torch.export.export(Attention(), given))
    expected = module(*given)[0]
    executorch_graph.attention_in_parts(module)
    assert "scaled_dot_product_attention" not in module.code
    np.testing.assert_allclose(module(*given)[0], expected, atol=1e-6)  # float32 sums in another order


def test_nibbles_hold_rows_of_odd_length():
    codes = np.random.default_rng(1).integers(-8, 8, (5, 7)).astype(np.int8)
    packed = executorch_kernels.packed(codes)
    assert packed.shape == (5, 4) and np.array_equal(pte_file.unpacked(packed, 7), codes)


def test_files_of_others_are_read(tmp_path):
    """One that ExecuTorch's own quantizer made."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config
    from executorch.exir import to_edge_transform_and_lower
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    x = (torch.from_numpy(noise(1, 16)),)
    prepared = prepare_pt2e(
        torch.export.export(nn.Linear(16, 8), x).module(), XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    )
    prepared(*x)
    program = to_edge_transform_and_lower(torch.export.export(convert_pt2e(prepared), x), partitioner=[XnnpackPartitioner()]).to_executorch()
    (tmp_path / "theirs.pte").write_bytes(program.buffer)
    artifact = exporters.inspect(tmp_path / "theirs.pte")
    assert artifact.recipe == "" and artifact.contents.operators["xnnpack.XNNFullyConnected"] == 1
    weight = next(t for t in artifact.tensors if t.shape == (8, 16))
    assert (weight.dtype, weight.placement, weight.payload_bytes, weight.scale_bytes) == ("int8", "native", 128, 32)
    assert artifact.contents.inputs[0].shape == (1, 16) and artifact.contents.activation_ranges == 2


def test_a_weight_with_another_code_is_named_as_damage(tmp_path):
    small, artifact = exported("executorch", Recipe.load("int8-dynamic"), "torch_linear")
    whole, codes = artifact.path.read_bytes(), small.encoded["weight"].codes.tobytes()
    assert whole.count(codes) == 1
    (tmp_path / "hurt.pte").write_bytes(whole.replace(codes, codes[:-1] + bytes([codes[-1] ^ 1])))
    with pytest.raises(BrokenFile, match="hurt.pte.*bytes of weight"):
        exporters.inspect(tmp_path / "hurt.pte")


def test_damage_is_named_and_nothing_else_escapes(tmp_path):
    whole = exported("executorch", Recipe.load("int8-dynamic"), "torch_linear")[1].path.read_bytes()
    dice, path = random.Random(3), tmp_path / "hurt.pte"
    for _ in range(40):
        path.write_bytes(flipped(whole, dice))
        try:
            exporters.inspect(path)
        except BrokenFile as error:
            assert "hurt.pte" in str(error)
