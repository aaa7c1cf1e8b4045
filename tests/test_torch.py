"""What only .pt2 files and the PyTorch runtimes do; the laws that hold for every exporter are in test_exporters.py."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

import exporters  # noqa: E402
from compress import calibration  # noqa: E402
from compress.backends import open_model  # noqa: E402
from compress.errors import BrokenFile, CompressError, ExportError, MissingExtra, Refused  # noqa: E402
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
from compress.numerics.codebooks import levels  # noqa: E402
from compress.numerics.layouts import LAYOUTS  # noqa: E402
from compress.pipeline import compress  # noqa: E402
from compress.presets import preset  # noqa: E402
from compress.recipe import Recipe  # noqa: E402
from compress.steps import Quantize  # noqa: E402
from compress.steps.selector import Selector  # noqa: E402
from evaluators.runtimes import torch_compiled, torch_eager, torch_loading  # noqa: E402

ROOT = Path(__file__).parents[1]
needs_exact_int8 = pytest.mark.skipif(not torch_eager.static_products_are_exact(), reason="int8 products saturate on this CPU: static files run in float")


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((8, *shape)).astype(np.float32)


def static(fmt=None, **activations) -> Recipe:
    steps = (Quantize(weights=fmt or IntFormat(8, PerAxis(), "narrow"), activations=StaticActivations(**activations)),)
    return Recipe(name="static", steps=steps)


def written(model, recipe, data, folder: Path):
    small = compress(model, recipe, calibration=data, inputs=data)
    return small, exporters.export(small, folder / "model.pt2")


def records(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def operators(module) -> list[str]:
    return [str(node.target) for node in module.graph.nodes if node.op == "call_function"]


class PaddedConvolution(nn.Conv2d):
    """As in EfficientNet-Lite: padding and convolution as functions, which PT2E's patterns by module do not see."""

    def forward(self, x):
        return nn.functional.conv2d(nn.functional.pad(x, (0, 1, 0, 1)), self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Sum(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)

    def forward(self, x):
        return torch.relu(self.second(torch.relu(self.first(x))) + x)


STATIC = {
    "linear of 3 dimensions": (nn.Sequential(nn.Linear(32, 48), nn.GELU(), nn.Linear(48, 20)), (7, 32)),
    "linear of 4 dimensions": (nn.Linear(32, 16), (2, 3, 32)),
    "conv1d": (nn.Conv1d(8, 16, 3), (8, 20)),
    "depthwise": (nn.Conv2d(8, 16, 3, groups=8), (8, 9, 9)),
    "grouped": (nn.Conv2d(8, 16, 3, groups=2, stride=2), (8, 9, 9)),
    "same padding": (nn.Conv2d(8, 8, 3, padding="same", dilation=2), (8, 9, 9)),
    "uneven same padding": (nn.Conv2d(8, 8, (2, 4), padding="same"), (8, 9, 9)),
    "functional padding": (nn.Sequential(PaddedConvolution(3, 8, 3), nn.ReLU6(), PaddedConvolution(8, 8, 3, groups=8)), (3, 9, 9)),
    "pooling, then linear": (nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 16)), (3, 8, 8)),
    "sum of branches": (Sum(), (8, 9, 9)),
}


@needs_exact_int8
@pytest.mark.parametrize("name", STATIC)
def test_static_layers_run_int8_kernels(name, tmp_path):
    model, shape = STATIC[name]
    small, artifact = written(model, "int8-static", noise(*shape), tmp_path)
    stored = [t for t in artifact.tensors if t.name in small.encoded]
    assert [t.placement for t in stored] == ["native"] * len(small.encoded)
    session, sample = torch_eager.load(artifact, 1), {small.network.inputs[0].name: noise(*shape)[:1]}
    got, expected = session.run(sample)[0], small.simulate().run(sample)[0]
    assert np.square(got - expected).mean() < np.square(expected).mean() / 100  # 20 dB; one 8-bit tensor gives some 40, and no chain here has over 3
    found = operators(session.module)
    assert sum("onednn.q" in op and "pointwise" in op for op in found) == len(small.encoded)
    assert not [op for op in found if "dequantize_per_channel" in op]


@needs_exact_int8
def test_compiled_static_layers_run_int8_kernels(tmp_path):
    from torch._inductor.utils import run_and_get_code

    model, shape = STATIC["functional padding"]
    _, artifact = written(model, "int8-static", noise(*shape), tmp_path)
    _, code = run_and_get_code(lambda: torch_compiled.load(artifact, 1))
    assert "".join(code).count("onednn.qconv_pointwise") >= 2 and "extern_kernels.convolution" not in "".join(code)


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse", "entropy"])
def test_activation_ranges_are_the_cores(method, tmp_path):
    data = noise(64)
    _, artifact = written(nn.Linear(64, 16), static(method=method, percentile=90.0), data, tmp_path)
    program = json.loads(records(artifact.path)["model/models/model.json"])["graph_module"]["graph"]
    node = next(n for n in program["nodes"] if "quantize_per_tensor" in n["target"])
    given = {entry["name"]: entry["arg"] for entry in node["inputs"]}
    observer = calibration.observer(StaticActivations(method=method, percentile=90.0))
    for row in data:
        observer.update(row[None])
    wanted = observer.range()
    scale = np.float32((wanted.high - wanted.low) / 255)
    assert given["scale"]["as_float"] == pytest.approx(scale, rel=1e-6)
    assert given["zero_point"]["as_int"] == np.rint(-wanted.low / scale)
    assert artifact.contents.activation_ranges == 1


@needs_exact_int8
def test_static_with_one_scale_for_the_whole_tensor(tmp_path):
    small, artifact = written(nn.Linear(64, 16), static(IntFormat(8, PerTensor(), "narrow")), noise(64), tmp_path)
    stored = next(t for t in artifact.tensors if t.name == "weight")
    assert stored.placement == "native" and stored.scales.shape == () and stored.scales == small.encoded["weight"].scales


def test_dynamic_int8_computes_what_torchao_computes(tmp_path):
    from torchao.quantization import Int8Tensor
    from torchao.quantization.granularity import PerRow
    from torchao.quantization.quantize_.workflows.int8.int8_tensor import QuantizeTensorToInt8Kwargs

    model = nn.Linear(64, 32)
    small, artifact = written(model, "int8-dynamic", noise(64), tmp_path)
    encoded = small.encoded["weight"]
    codes, scales = torch.from_numpy(encoded.codes), torch.from_numpy(encoded.scales)[:, None]
    theirs = nn.Parameter(Int8Tensor(codes, scales, [1, 64], torch.float32, act_quant_kwargs=QuantizeTensorToInt8Kwargs(PerRow())), requires_grad=False)
    x = noise(64)[:1]
    with torch.no_grad():
        expected = nn.functional.linear(torch.from_numpy(x), theirs, model.bias).numpy()
    got = torch_eager.load(artifact, 1).run({"input": x})[0]
    # the same integers, scaled in another order: a few float32 roundings of the sum's size
    np.testing.assert_allclose(got, expected, rtol=0, atol=4 * np.finfo(np.float32).eps * np.abs(expected).max())


@needs_exact_int8
def test_compiled_dynamic_int8_keeps_the_fast_product(tmp_path):
    from torch._inductor.utils import run_and_get_code

    _, artifact = written(nn.Linear(64, 32), "int8-dynamic", noise(5, 64), tmp_path)
    _, code = run_and_get_code(lambda: torch_compiled.load(artifact, 1))
    assert "_int_mm" in "".join(code) and "onednn.q" not in "".join(code)


def test_without_exact_int8_products_files_still_compute_right(tmp_path, monkeypatch):
    x = noise(64)
    for recipe in ("int8-dynamic", "int8-static"):
        _, artifact = written(nn.Linear(64, 32), recipe, x, tmp_path)
        native = torch_eager.load(artifact, 1).run({"input": x[:1]})[0]
        with monkeypatch.context() as patched:
            for module, name in ((torch_eager, "dynamic"), (torch_eager, "static"), (torch_compiled, "static")):
                patched.setattr(module, f"{name}_products_are_exact", lambda: False)
            session = torch_eager.load(artifact, 1)
            assert not [op for op in operators(session.module) if "_int_mm" in op or "onednn" in op]
            for runtime in (torch_eager, torch_compiled):
                got = runtime.load(artifact, 1).run({"input": x[:1]})[0]
                np.testing.assert_allclose(got, native, rtol=0, atol=1e-5 * np.abs(native).max())  # float32 sums of the same integers


def test_int4_files_hold_nibbles_that_every_cpu_reads(tmp_path):
    model, x = nn.Linear(256, 64), noise(256)
    small, artifact = written(model, "int4-group32", x, tmp_path)
    stored = next(t for t in artifact.tensors if t.name == "weight")
    assert (stored.placement, stored.payload_bytes, stored.scale_bytes) == ("native", 64 * 256 // 2, 64 * 8 * 2)
    weight, bias = small.encoded["weight"].decode(), model.bias.detach().numpy()
    # bfloat16 rounds inputs, weights and the sum by 2^-9 of each
    bound = 2.0**-9 * (2 * np.abs(x[:1]) @ np.abs(weight).T + np.abs(x[:1] @ weight.T)) + 1e-4
    np.save(tmp_path / "x.npy", x[:1])
    script = (
        "import sys, numpy, exporters; from evaluators.runtimes import torch_eager;"
        "x = numpy.load(sys.argv[2]); numpy.save(sys.argv[3], torch_eager.load(exporters.inspect(sys.argv[1]), 1).run({'input': x})[0])"
    )
    for capability in ("default", "avx2", torch.backends.cpu.get_cpu_capability().lower()):
        out = tmp_path / f"{capability}.npy"
        command = [sys.executable, "-c", script, str(artifact.path), str(tmp_path / "x.npy"), str(out)]
        subprocess.run(command, check=True, cwd=ROOT, env=os.environ | {"ATEN_CPU_CAPABILITY": capability, "PYTHONPATH": str(ROOT)})
        assert np.all(np.abs(np.load(out) - (x[:1] @ weight.T + bias)) <= bound), capability


def test_int4_with_offsets_runs_the_kernel(tmp_path):
    x = noise(64)
    small, artifact = written(nn.Linear(64, 32), weights(preset("torchao.int4.group32").format), x, tmp_path)
    stored, weight = next(t for t in artifact.tensors if t.name == "weight"), small.encoded["weight"].decode()
    assert (stored.placement, stored.size_bytes) == ("native", small.encoded["weight"].nbytes)
    session = torch_eager.load(artifact, 1)
    assert any("_weight_int4pack_mm_for_cpu" in op for op in operators(session.module))
    got, expected = session.run({"input": x[:1]})[0], small.simulate().run({"input": x[:1]})[0]
    # bfloat16 rounds inputs, weights and the sum by 2^-9 of each
    assert np.all(np.abs(got - expected) <= 2.0**-9 * (2 * np.abs(x[:1]) @ np.abs(weight).T + np.abs(expected)) + 1e-4)


def test_int4_that_the_kernel_cannot_take_is_decoded_and_says_why(tmp_path):
    fmt = IntFormat(4, PerGroup(32), "qmax", scale_dtype="bfloat16")
    for model, other, reason in (
        (nn.Linear(64, 20), fmt, "multiple of 16 outputs, not 20"),
        (nn.Linear(64, 16), IntFormat(4, PerGroup(16), "qmax", scale_dtype="bfloat16"), "not 16"),
        (nn.Linear(64, 16), IntFormat(4, PerGroup(32), "qmax"), "recipe's float32"),
        (nn.Linear(72, 16), IntFormat(4, PerGroup(32, "short"), "qmax", scale_dtype="bfloat16"), "72 inputs are no multiple of 32"),
        (nn.Linear(64, 16), IntFormat(4, PerGroup(32), "asymmetric", scale_dtype="bfloat16"), "no integer zero points"),
    ):
        recipe = Recipe(name="int4", steps=(Quantize(weights=other),))
        stored = next(t for t in written(model, recipe, noise(model.in_features), tmp_path)[1].tensors if t.name == "weight")
        assert stored.placement == "decoded" and reason in stored.reason and stored.payload_bytes == model.weight.numel() // 2


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(64, 32), nn.Linear(32, 64, bias=False)
        self.head.weight = self.embed.weight
        self.unused = nn.Linear(32, 4)

    def forward(self, tokens):
        self.unused(self.embed(tokens))
        return self.head(self.embed(tokens).mean(1))


@pytest.mark.parametrize("recipe", ["int8-weight-only", "int8-dynamic", "int8-static", "float16"])
def test_tied_weights_are_stored_once_and_unread_ones_say_so(recipe, tmp_path):
    tokens = np.random.default_rng(0).integers(0, 64, (8, 5))
    small, artifact = written(Tied(), recipe, tokens, tmp_path)
    stored = {t.name: t for t in artifact.tensors}
    assert stored["embed.weight"].payload_bytes == 64 * 32 * small.encoded["embed.weight"].format.bits // 8
    assert stored["unused.weight"].reason == "no operator reads it" and "head.weight" not in stored
    weight = small.encoded["embed.weight"].decode()
    got = torch_eager.load(artifact, 1).run({"tokens": tokens[:1]})[0]
    np.testing.assert_allclose(got, weight[tokens[0]].mean(0, keepdims=True) @ weight.T, atol=1e-5)


def test_files_hold_no_local_paths_no_pickles_and_no_dead_floats(tmp_path):
    for recipe in ("float32", "int8-weight-only", "int8-dynamic", "int8-static", "int4-group32"):
        _, artifact = written(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)), recipe, noise(64), tmp_path)
        found = records(artifact.path)
        assert str(ROOT).encode() not in b"".join(found.values()) and b"site-packages" not in b"".join(found.values())
        assert found["model/data/sample_inputs/model.pt"] == b""
        floats = sum(len(data) for name, data in found.items() if "/data/weights/weight_" in name or "/data/constants/tensor_" in name)
        assert floats == sum(t.size_bytes for t in artifact.tensors)
        torch_eager.refuse_pickles(artifact.path)


def test_pickled_files_are_listed_and_not_loaded(tmp_path):
    _, artifact = written(nn.Linear(64, 16), "float32", noise(64), tmp_path)
    found = records(artifact.path)
    name = "model/data/weights/model_weights_config.json"
    found[name] = found[name].replace(b'"use_pickle": false', b'"use_pickle": true')
    with zipfile.ZipFile(tmp_path / "pickled.pt2", "w") as archive:
        for key, data in found.items():
            archive.writestr(key, data)
    listed = exporters.inspect(tmp_path / "pickled.pt2")
    assert {t.dtype for t in listed.tensors} == {"pickled"}
    for runtime in (torch_eager, torch_compiled):
        with pytest.raises(CompressError, match="pickled"):
            runtime.load(listed, 1)


def test_files_of_other_tools_are_listed(tmp_path):
    torch.export.save(torch.export.export(nn.Linear(8, 4).half(), (torch.zeros(1, 8, dtype=torch.float16),)), tmp_path / "other.pt2")
    found = exporters.inspect(tmp_path / "other.pt2")
    assert {t.name: (t.dtype, t.placement, t.payload_bytes) for t in found.tensors} == {"weight": ("float16", "decoded", 64), "bias": ("float16", "decoded", 8)}
    assert found.contents.operators == {"aten.linear": 1} and found.contents.inputs[0].shape == (1, 8)


def test_what_no_kernel_computes_is_refused_or_named(tmp_path):
    wide = Quantize(weights=IntFormat(8, PerAxis(), "narrow"), activations=StaticActivations(16))
    with pytest.raises(Refused, match="16-bit integer activations"):
        written(nn.Linear(64, 16), Recipe(name="wide", steps=(wide,)), noise(64), tmp_path)
    _, artifact = written(nn.Linear(64, 16), Recipe(name="wide", steps=(wide,), allow_float=True), noise(64), tmp_path)
    assert any("weight stayed in float: PyTorch has no kernels for 16-bit" in note for note in artifact.notes)


def weights(fmt, activations=None) -> Recipe:
    return Recipe(name="weights", steps=(Quantize(weights=fmt, activations=activations),))


class Uneven(nn.Module):
    """An embedding that is read twice, a convolution and a linear layer whose sizes no group or block divides."""

    def __init__(self):
        super().__init__()
        self.embed, self.conv, self.linear = nn.Embedding(51, 23), nn.Conv1d(23, 18, 3), nn.Linear(18, 21)
        self.head = nn.Linear(23, 51, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        hidden = self.embed(tokens)
        return self.linear(self.conv(hidden.mT).mT), self.head(hidden)


AT_LOAD = {
    **{
        name: preset(name).format
        for name in ("bnb.nf4", "bnb.nf4.dq", "bnb.fp4", "torchao.nf4", "mx.fp4", "mx.fp6.e2m3", "mx.fp8", "nvfp4", "log2.4", "apot.4")
    },
    **{f"int{bits}": IntFormat(bits, PerGroup(8, "short"), "signed") for bits in range(1, 9)},
    "learned per tensor": CodebookFormat(Learned(5, exact_zero=True), PerTensor(), "none"),
    "learned per channel": CodebookFormat(Learned(16, entry_dtype="float16"), PerAxis(), "none"),
    "learned per group": CodebookFormat(Learned(4, entry_dtype="int8"), PerGroup(16, "short"), "none"),
    "user's levels": CodebookFormat((-1.0, -0.3, 0.0, 0.2, 0.9), PerBlock(32)),
    "levels without scales": CodebookFormat((-0.2, -0.03, 0.0, 0.02, 0.1), PerTensor(), "none"),
    "double linear": CodebookFormat("nf3", PerGroup(8, "short"), double=DoubleQuantized("linear", 16)),
    "integer zero": IntFormat(3, PerBlock(32), "asymmetric"),
    "unsigned offset": IntFormat(4, PerGroup(8, "short"), "asymmetric", scale_dtype="float16", signed=False, zero_point="offset"),
    "float zero": IntFormat(5, PerTensor(), "asymmetric", signed=False, zero_point="float"),
    "unsigned 16 bits": IntFormat(16, PerAxis(), "asymmetric", signed=False),
    "E4M3 scales": IntFormat(4, PerGroup(8, "short"), "signed", scale_dtype="float8_e4m3"),
    "E8M0 scales": IntFormat(8, PerAxis(), "qmax", scale_dtype="float8_e8m0"),
}


@pytest.mark.parametrize("name", AT_LOAD)
def test_other_formats_are_stored_small_and_expanded_at_load_exactly(name, tmp_path):
    tokens = np.random.default_rng(0).integers(0, 51, (8, 9))
    torch.manual_seed(0)
    small, artifact = written(Uneven(), weights(AT_LOAD[name]), tokens, tmp_path)
    stored = {t.name: t for t in artifact.tensors}
    for weight, encoded in small.encoded.items():
        assert stored[weight].placement == "decoded" and "expanded to float32 when the file is loaded" in stored[weight].reason
        assert stored[weight].size_bytes == encoded.nbytes
    session = torch_eager.load(artifact, 1)
    held = dict(session.module.named_buffers())
    for encoded in small.encoded.values():
        assert sum(np.array_equal(value.numpy(), encoded.decode()) for value in held.values() if value.dtype == torch.float32) == 1
    assert not [key for key in held if key.endswith("__codes")] and len(operators(session.module)) < 9  # nothing is left to expand at a run
    for got, expected in zip(session.run({"tokens": tokens[:1]}), small.simulate().run({"tokens": tokens[:1]}), strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6 * np.abs(expected).max())  # the same float32 weights


def test_files_expand_their_weights_in_pytorch_alone(tmp_path):
    tokens = np.random.default_rng(0).integers(0, 51, (8, 9))
    small, artifact = written(Uneven(), weights(AT_LOAD["learned per channel"]), tokens, tmp_path)
    with torch.no_grad():
        got = torch.export.load(artifact.path).module()(torch.from_numpy(tokens[:1]))
    for theirs, expected in zip(got, small.simulate().run({"tokens": tokens[:1]}), strict=True):
        np.testing.assert_allclose(theirs.numpy(), expected, rtol=0, atol=1e-6 * np.abs(expected).max())  # the same float32 weights


def test_formats_mix_with_static_layers(tmp_path):
    int8 = Quantize(weights=IntFormat(8, PerAxis(), "narrow"), activations=StaticActivations(), select=Selector(name="0.*"))
    recipe = Recipe(name="mixed", steps=(int8, Quantize(weights=IntFormat(3, PerGroup(8, "short"), "signed"))))
    model = nn.Sequential(nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 20))
    small, artifact = written(model, recipe, noise(32), tmp_path)
    assert [t.placement for t in artifact.tensors if t.name in small.encoded] == ["native", "decoded"]
    for runtime in (torch_eager, torch_compiled):
        got, expected = runtime.load(artifact, 1).run({"input": noise(32)[:1]})[0], small.simulate().run({"input": noise(32)[:1]})[0]
        assert np.square(got - expected).mean() < np.square(expected).mean() / 100  # 20 dB, of one layer with 8-bit activations


def test_another_codebook_in_the_file_is_found(tmp_path, monkeypatch):
    from exporters import torch_graph

    def altered(name):
        found = levels(name)
        return type(found)(found.values * np.float32(1.001), found.order, found.thresholds)

    monkeypatch.setattr(torch_graph, "levels", altered)
    with pytest.raises(ExportError, match="codebooks differ"):
        written(nn.Linear(64, 20), weights(preset("mx.fp4").format), noise(64), tmp_path)
    with pytest.raises(BrokenFile, match="codebook__dynamic8 is not the table"):
        written(nn.Linear(64, 20), weights(preset("bnb.nf4.dq").format), noise(64), tmp_path)


BNB = {
    "nf4": preset("bnb.nf4").format,
    "nf4 double": preset("bnb.nf4.dq").format,
    "fp4": preset("bnb.fp4").format,
    "nf4 by groups": CodebookFormat("nf4", PerGroup(32)),
    "fp4 double": CodebookFormat("fp4_bnb", PerBlock(128), double=DoubleQuantized()),
}


class Turned(nn.Module):
    """Gives its linear layer activations whose memory runs the other way."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(128, 64)

    def forward(self, x):
        return self.linear(x.mT.squeeze(0)) + self.linear(x.mT).mean(0)


@pytest.mark.parametrize("name", BNB)
def test_bitsandbytes_multiplies_the_cores_own_codes(name, tmp_path, monkeypatch):
    pytest.importorskip("bitsandbytes")
    x = noise(128, 5)
    small, artifact = written(Turned(), weights(BNB[name], DynamicActivations()), x, tmp_path)
    encoded, stored = small.encoded["linear.weight"], next(t for t in artifact.tensors if t.name == "linear.weight")
    assert stored.placement == "native" and "its activations stay in float" in stored.reason and stored.size_bytes == encoded.nbytes
    assert artifact.contents.operators["bitsandbytes.gemm_4bit"] == 2
    expected, magnitude = small.simulate().run({"x": x[:1]})[0], np.abs(x[0].T) @ np.abs(encoded.decode()).T
    # bfloat16 rounds activations, levels, scales and the sum, each by 2^-9; two layers are added
    bound = 2.0**-9 * (2 * 3 * np.maximum(magnitude, magnitude.max(0)) + 2 * np.abs(expected)) + 1e-4
    for runtime in (torch_eager, torch_compiled):
        assert np.all(np.abs(runtime.load(artifact, 1).run({"x": x[:1]})[0] - expected) <= bound), runtime
    monkeypatch.setattr(torch_eager, "has_fused_4bit", lambda: False)
    got = torch_eager.load(artifact, 1).run({"x": x[:1]})[0]  # bitsandbytes expands the weight: float32 sums of the same numbers
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["nf4", "fp4"])
def test_bitsandbytes_layers_compute_what_linear4bit_computes(name, tmp_path):
    bnb = pytest.importorskip("bitsandbytes")
    model, x = nn.Linear(128, 64), noise(3, 128)
    theirs = bnb.nn.Linear4bit(128, 64, quant_type=name, compress_statistics=False)
    theirs.weight = bnb.nn.Params4bit(model.weight.detach().clone(), requires_grad=False, quant_type=name, compress_statistics=False)
    theirs.bias = model.bias
    theirs = theirs.to("cpu").eval()
    _, artifact = written(model, weights(BNB[name]), x, tmp_path)
    codes = LAYOUTS["bitsandbytes"].unpack(theirs.weight.data.numpy(), 4, (64, 128))
    table = levels(BNB[name].codebook).values  # FP4 has 0 twice, and bitsandbytes' CPU and GPU kernels differ in which one a small value gets
    np.testing.assert_array_equal(table[next(t for t in artifact.tensors if t.name == "weight").codes], table[codes])
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x[:1])).numpy()
    np.testing.assert_array_equal(torch_eager.load(artifact, 1).run({"input": x[:1]})[0], expected)  # the same kernel on the same codes


def test_without_bitsandbytes_the_missing_package_is_named(tmp_path, monkeypatch):
    pytest.importorskip("bitsandbytes")
    _, artifact = written(nn.Linear(64, 32), weights(BNB["nf4"]), noise(64), tmp_path)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingExtra, match="pip install bitsandbytes"):
        torch_loading.import_bitsandbytes("model.pt2")
    with pytest.raises(MissingExtra, match="model.pt2 .* pip install bitsandbytes"):
        torch_eager.load(artifact, 1)
    with pytest.raises(MissingExtra, match="weight: nf4 block-64 .* pip install bitsandbytes"):
        written(nn.Linear(64, 32), weights(BNB["nf4"]), noise(64), tmp_path)


@pytest.mark.parametrize(
    "fmt, shape, reason",
    [
        (BNB["nf4"], (64, 20), "multiple of 32 outputs, not 20"),
        (BNB["nf4"], (72, 32), "72 inputs are no multiple of 64"),
        (CodebookFormat("nf4", PerAxis()), (64, 32), "format's scales are per-channel"),
        (CodebookFormat("nf4", PerBlock(64), double=DoubleQuantized("linear")), (64, 32), "dynamic scales of 256"),
        (CodebookFormat("nf4", PerBlock(64), scale_dtype="float16"), (64, 32), "format's float16"),
    ],
)
def test_what_bitsandbytes_cannot_take_is_decoded_and_says_why(fmt, shape, reason, tmp_path):
    inputs, outputs = shape
    _, artifact = written(nn.Linear(inputs, outputs), weights(fmt), noise(inputs), tmp_path)
    stored = next(t for t in artifact.tensors if t.name == "weight")
    assert stored.placement == "decoded" and reason in stored.reason and "bitsandbytes.gemm_4bit" not in artifact.contents.operators


def test_a_network_is_exported_once(tmp_path, monkeypatch):
    from exporters import to_torch

    calls = []
    monkeypatch.setattr(to_torch, "pytorch_program", lambda network, export=to_torch.pytorch_program: calls.append(1) or export(network))
    network = open_model(nn.Linear(64, 16), noise(64))
    before = network.model.weight.clone()
    for recipe in ("float32", "float16", "int8-static"):
        written(network, recipe, noise(64), tmp_path)
    assert len(calls) == 1 and torch.equal(network.model.weight, before)


def test_placing_imports_no_framework():
    code = "import sys, exporters.to_torch; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_a_missing_compiler_is_named(tmp_path):
    import torch._inductor.config as config

    _, artifact = written(nn.Linear(64, 16), "float32", noise(64), tmp_path)
    with config.patch({"cpp.cxx": ("no-such-compiler",)}), pytest.raises(CompressError, match="install g"):
        torch_compiled.load(artifact, 1)
