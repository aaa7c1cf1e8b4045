"""Laws over every registered exporter and runtime: register one and it is tested here.

The codes in the file are the plan's (exporters.export proves that itself, and fails), and what the runtime computes is what NumPy computes.
"""

import functools
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from zoo import CASES, case

import exporters
from compress.errors import BrokenFile, ExportError, InputError, Refused
from compress.formats import DynamicActivations, FloatFormat, IntFormat, PerAxis, PerGroup, PerTensor, ScaleRule
from compress.pipeline import Compressed, compress
from compress.presets import PRESETS
from compress.recipe import Recipe, built_in
from compress.steps import Quantize
from evaluators.runtimes import RUNTIMES

FOLDER = Path(tempfile.mkdtemp(prefix="compresskit-tests-"))

ONE_LAYER = ("torch_linear", "torch_conv")
UNTRAINED = [name for name in built_in() if not Recipe.load(name).trains]  # those that train are exported by test_cross_framework.py
CONVERTERS_MODES = ("float32", "float16", "int8-dynamic", "int8-static", "int16x8")  # what TFLiteConverter quantizes to
XNNPACKS = ("float32", "float16", "int8-weight-only", "int8-dynamic", "int8-static", "int4-group32")  # what it computes with, or ExecuTorch decodes
# What a runtime cannot do, by (exporter, recipe): the reason must hold these words. Everything else must work.
REFUSED = {
    ("onnx", "int16x8"): "int16",
    ("torch", "int16x8"): "int16",
    **{("executorch", name): "XNNPACK" for name in UNTRAINED if name not in XNNPACKS},
    **{("litert-converter", name): "TFLiteConverter" for name in UNTRAINED if name not in CONVERTERS_MODES},
    **{("torch-pt2e", name): "PT2E" for name in UNTRAINED if name not in ("float32", "int8-static")},
}


@functools.cache
def exported(exporter: str, recipe: Recipe, name: str):
    """The artifact and what it was made from; written once per test run. A refusal is returned, not raised."""
    given = case(name)
    small = compress(given.network, recipe, calibration=given.data, training=given.training if recipe.trains else None)
    path = FOLDER / f"{name}-{recipe.id}-{exporter}{exporters.EXPORTERS.load(exporter).SUFFIX}"
    try:
        return small, exporters.export(small, path, exporter)
    except Refused as error:
        return small, error


def runs(artifact, runtime: str, name: str) -> list[np.ndarray]:
    session = RUNTIMES.load(runtime).load(artifact, threads=1)
    return [session.run(case(name).sample(i))[0] for i in range(4)]


def reference(small: Compressed, name: str) -> list[np.ndarray]:
    network = small.simulate()
    return [network.run(case(name).sample(i))[0] for i in range(4)]


def runtimes_of(exporter: str) -> list[str]:
    suffix = exporters.EXPORTERS.load(exporter).SUFFIX
    return [name for name in RUNTIMES if suffix == RUNTIMES.load(name).SUFFIX]


def refusal(exporter: str, recipe: str, name: str) -> str | None:
    if (exporter, name) == ("onnx", "tflite_file"):
        return "takes no models of the backend litert"
    if exporter == "litert-converter" and not name.startswith("keras"):
        return "takes no models of the backend pytorch"
    if exporter == "safetensors":
        return ""  # it writes Hugging Face models: test_checkpoints.py has its laws
    if exporter == "gguf" and recipe not in ("float32", "float16"):
        return "GGUF"  # its formats are the presets gguf.*
    return REFUSED.get((exporter, recipe))


# ExecuTorch takes 2 to 7 seconds to lower any model: whole networks, whose layers are of the same kinds, and one of them where weights are only decoded.
DECODED = {"float16": "torch_cnn", "int8-weight-only": "torch_text"}
ARMS = [(e, recipe, name) for e in exporters.EXPORTERS for recipe in UNTRAINED for name in CASES]
OWN = {"onnx_file": ("onnx",), "tflite_file": ("litert", "onnx")}  # other exporters get an .onnx file as a torch module, test_onnx_source.py
ARMS = [(e, recipe, name) for e, recipe, name in ARMS if e in OWN.get(name, exporters.EXPORTERS)]
ARMS = [(e, recipe, name) for e, recipe, name in ARMS if e != "executorch" or (name not in ONE_LAYER and DECODED.get(recipe, name) == name)]


@pytest.mark.parametrize(("exporter", "recipe", "name"), ARMS)
def test_built_in_recipes(exporter, recipe, name):
    small, artifact = exported(exporter, Recipe.load(recipe), name)
    reason = refusal(exporter, recipe, name)
    if reason is not None:
        assert isinstance(artifact, Refused) and reason in str(artifact)
        return
    assert not isinstance(artifact, Refused), artifact
    ledger = artifact.ledger
    assert ledger.file_bytes == artifact.path.stat().st_size
    assert ledger.payload + ledger.scales + ledger.zero_points + ledger.float_bytes + ledger.graph == ledger.file_bytes
    assert ledger.graph >= 0
    stored = {t.name: t for t in artifact.tensors}
    own = exporters.EXPORTERS.load(exporter).OWN_NUMBERS
    for tensor in () if own else small.encoded:
        assert stored[tensor].placement in ("native", "decoded")
    again = exporters.inspect(artifact.path)
    assert again.sha256 == artifact.sha256 and again.recipe == recipe and again.recipe_id == small.recipe.id
    expected = reference(small, name)
    signal = float(np.mean([np.square(e).mean() for e in expected]))
    for runtime in runtimes_of(exporter):
        got = runs(artifact, runtime, name)
        error = float(np.mean([np.square(g - e).mean() for g, e in zip(got, expected, strict=True)]))
        # float paths differ by rounding order only; int8 activations and bfloat16 keep about 48 dB a tensor, 20 dB is far below what any layer chain here gives
        coarse = any("computes in bfloat16" in t.reason or "activations to int8" in t.reason for t in artifact.tensors)
        floor = 90 if not any(s.activations for s in small.recipe.steps) and not coarse else 20
        assert 10 * np.log10(signal / max(error, 1e-30)) > floor, runtime


@pytest.mark.parametrize("zeros", ["a layer", "a channel"])
@pytest.mark.parametrize("exporter", ["litert", "onnx", "torch", pytest.param("executorch", marks=pytest.mark.slow)])
def test_weights_that_pruning_left_all_zero(exporter, zeros, tmp_path):
    """What follows a layer of zeros is its bias, whose range may be tiny: integer kernels must take the ratio of the scales all the same."""
    given = case("keras_cnn")
    values = {name: weight.value.copy() for name, weight in given.network.weights().items()}
    first = next(value for name, value in values.items() if name.startswith("dense") and name.endswith("/kernel"))
    first[slice(None) if zeros == "a layer" else 0] = 0
    first *= np.float32(1e-4)
    small = compress(given.network.with_weights(values), "int8-static", calibration=given.data)
    artifact = exporters.export(small, tmp_path / f"zeros{exporters.EXPORTERS.load(exporter).SUFFIX}", exporter)
    for runtime in runtimes_of(exporter):
        for got, expected in zip(runs(artifact, runtime, "keras_cnn"), reference(small, "keras_cnn"), strict=True):
            np.testing.assert_allclose(got, expected, atol=0.02 * np.abs(expected).max() + 1e-6)


def scheme(fmt, activations=None) -> Recipe:
    return Recipe(name="scheme", steps=(Quantize(weights=fmt, activations=activations),))


def short(fmt):
    """The format with a short last group where its size does not divide the inputs."""
    groups = fmt.granularity
    return replace(fmt, granularity=PerGroup(groups.size, "short")) if isinstance(groups, PerGroup) else fmt


FORMATS = [
    *(IntFormat(bits, granularity, "qmax", scale_dtype="bfloat16") for bits in (2, 3, 4, 8, 16) for granularity in (PerTensor(), PerAxis(), PerGroup(32))),
    *(IntFormat(bits, granularity, rule) for bits in (4, 8) for granularity in (PerAxis(), PerGroup(32)) for rule in get_args(ScaleRule) if rule != "qmax"),
    FloatFormat("float16"),
    FloatFormat("bfloat16"),
    *(short(preset.format) for preset in PRESETS.values() if not getattr(preset.format, "plain", False)),
]


@pytest.mark.parametrize("name", ONE_LAYER)
@pytest.mark.parametrize("fmt", FORMATS, ids=str)
# test_executorch.py has these in one file for that exporter
@pytest.mark.parametrize("exporter", [e for e in exporters.EXPORTERS if e not in ("litert-converter", "torch-pt2e", "executorch")])
def test_every_weight_format_is_stored_exactly_or_refused_with_a_reason(exporter, fmt, name):
    small, artifact = exported(exporter, scheme(fmt), name)
    if isinstance(artifact, Refused):
        assert len(str(artifact)) > 60
        return
    stored = next(t for t in artifact.tensors if t.name == "weight")
    predicted = small.plan.compressed["weight"].size_bytes
    assert stored.placement in ("native", "decoded") and stored.payload_bytes <= predicted * 1.02 + 16
    weight = small.encoded["weight"].decode()
    for runtime in runtimes_of(exporter):
        for index, (got, expected) in enumerate(zip(runs(artifact, runtime, name), reference(small, name), strict=True)):
            reach = np.abs(case(name).sample(index)["input"]).max()
            # kernels that compute in integers or bfloat16 round each input by at most 2^-8 of the largest; the weights carry that to the output
            bound = 2.0**-8 * reach * np.abs(weight.reshape(len(weight), -1)).sum(1).max() if stored.reason else 1e-4 * np.abs(expected).max()
            assert np.abs(got - expected).max() <= bound, runtime


@pytest.mark.parametrize("exporter", ["litert", "onnx", "torch", "executorch"])
def test_dynamic_activations_stay_within_half_a_step_of_the_input(exporter):
    small, artifact = exported(exporter, scheme(IntFormat(8, PerAxis(), "narrow"), DynamicActivations()), "torch_linear")
    weight = np.abs(small.encoded["weight"].decode()).sum(1)
    for runtime in runtimes_of(exporter):
        for index, (got, expected) in enumerate(zip(runs(artifact, runtime, "torch_linear"), reference(small, "torch_linear"), strict=True)):
            x = case("torch_linear").sample(index)["input"]
            step = max((max(x.max(), 0) - min(x.min(), 0)) / 255, np.abs(x).max() / 127)  # asymmetric or symmetric: both are legal
            assert np.all(np.abs(got - expected) <= step / 2 * weight * 1.01 + 1e-5), runtime


@pytest.mark.parametrize("exporter", ["litert", "onnx", "torch", "executorch"])
def test_float_files_hold_the_weights_once(exporter):
    small, artifact = exported(exporter, Recipe.load("float32"), "torch_text")
    total = sum(d.float_bytes for d in small.plan.decisions)
    assert artifact.ledger.float_bytes <= total * 1.02 + 4096


@pytest.mark.parametrize("exporter", [e for e in exporters.EXPORTERS if e != "safetensors"])
def test_damaged_files_are_named(exporter, tmp_path):
    suffix = exporters.EXPORTERS.load(exporter).SUFFIX
    recipe = Recipe.load("float16" if exporter == "gguf" else "int8-weight-only")
    source = exported(exporters.READERS[suffix], recipe, "torch_linear")[1].path.read_bytes()
    for label, data in {"empty": b"", "garbage": b"\x07garbage" * 99, "half": source[: len(source) // 2], "cut": source[:-20]}.items():
        path = tmp_path / f"{label}{suffix}"
        path.write_bytes(data)
        with pytest.raises(BrokenFile, match=label):
            exporters.inspect(path)


@pytest.mark.parametrize("exporter", ["litert", "onnx", "torch", "executorch"])
def test_a_file_that_differs_from_the_plan_is_an_error_and_is_not_left_behind(exporter, tmp_path, monkeypatch):
    small, _ = exported(exporter, Recipe.load("int8-weight-only"), "torch_linear")
    module = exporters.EXPORTERS.load(exporter)
    read = module.read

    def flipped(path):
        contents = read(path)
        next(t for t in contents.tensors if t.name == "weight").codes[3, 5] ^= 1
        return contents

    monkeypatch.setattr(module, "read", flipped)
    with pytest.raises(ExportError, match="weight: 1 of 2048 codes differ"):
        exporters.export(small, tmp_path / f"x{module.SUFFIX}", exporter)
    assert not list(tmp_path.iterdir())


def test_suffix_and_names_are_checked(tmp_path):
    small, _ = exported("onnx", Recipe.load("float32"), "torch_linear")
    with pytest.raises(BrokenFile, match=".tflite, .onnx, .pt2"):
        exporters.export(small, tmp_path / "x.bin")
    with pytest.raises(Refused, match="writes .onnx files"):
        exporters.export(small, tmp_path / "x.tflite", "onnx")
    with pytest.raises(FileNotFoundError):
        exporters.inspect(tmp_path / "x.onnx")


def test_an_unwritable_output_loses_nothing(tmp_path):
    small, _ = exported("onnx", Recipe.load("float32"), "torch_linear")
    (tmp_path / "file").write_text("kept")
    with pytest.raises(OSError):
        exporters.export(small, tmp_path / "file" / "x.onnx")
    assert (tmp_path / "file").read_text() == "kept"


def test_static_recipes_want_calibration():
    with pytest.raises(InputError, match="give `calibration`"):
        compress(case("torch_linear").network, "int8-static")
    with pytest.raises(InputError, match="empty"):
        compress(case("torch_linear").network, "int8-static", calibration=[])


@pytest.mark.parametrize("exporter", ["litert", "onnx", "torch", "executorch"])
def test_recurrent_layers_are_compressed_or_named(exporter):
    import torch

    small = compress(torch.nn.LSTM(32, 32), "int8-weight-only", inputs=np.ones((1, 4, 32), np.float32))
    assert {d.name for d in small.plan.compressed.values()} == {"weight_ih_l0", "weight_hh_l0"}
    path = FOLDER / f"lstm{exporters.EXPORTERS.load(exporter).SUFFIX}"
    try:
        stored = {t.name: t.placement for t in exporters.export(small, path, exporter).tensors}
    except (Refused, ExportError) as error:
        assert "weight_hh_l0" in str(error)
    else:
        assert stored["weight_ih_l0"] in ("native", "decoded")
