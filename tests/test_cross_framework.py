"""One recipe, one model: the same numbers in the .tflite, the .onnx and the torch file, or the reason why a file has none."""

from itertools import combinations

import numpy as np
import pytest
from test_exporters import exported

import exporters
from compress.artifact import Artifact, StoredTensor
from compress.errors import Refused
from compress.formats import FloatFormat
from compress.numerics import encode
from compress.pipeline import compress
from compress.recipe import Recipe, built_in

FILES = ("litert", "onnx", "torch")
SLOW_FILES = {"executorch": [(r, m) for r in ("int8-static", "int4-group32") for m in ("torch_cnn", "keras_cnn")]}  # seconds for each: what is native there
MODELS = ("torch_cnn", "torch_text", "keras_cnn")

# Recipes that a runtime has no operators for, with words of its reason. Everything else is in all three files.
ABSENT = {
    ("onnx", "int16x8"): "int16",
    ("torch", "int16x8"): "int16",
}


def coded(artifact: Artifact) -> dict[str, StoredTensor]:
    """By name, without the int32 biases in the scale of input times weight that LiteRT's integer kernels take where others take float ones."""
    return {t.name: t for t in exporters.inspect(artifact.path).tensors if t.codes is not None and t.dtype not in ("int32", "int64")}


def differences(one: Artifact, other: Artifact) -> list[str]:
    """Every tensor whose codes, scales, zero points or codebook are not the same in both files, in words."""
    first, second = (coded(artifact) for artifact in (one, other))
    found = [f"{name}: codes in one file only" for name in first.keys() ^ second.keys()]
    for name in first.keys() & second.keys():
        a, b = first[name], second[name]
        if a.codes.shape != b.codes.shape:
            found.append(f"{name}: {list(a.codes.shape)} and {list(b.codes.shape)}")
        elif off := int((a.codes.astype(int) != b.codes.astype(int)).sum()):
            found.append(f"{name}: {off} of {a.codes.size} codes differ")
        pairs = {"scales": (a.scales, b.scales), "zero points": (a.zero_points, b.zero_points)}
        if a.codebook is not None and b.codebook is not None:  # a kernel that knows a table by its name needs none in the file
            pairs["codebooks"] = (a.codebook, b.codebook)
        found += [f"{name}: {part} differ" for part, pair in pairs.items() if not exporters.same_numbers(*pair)]
    return found


def shortened(recipe: Recipe) -> Recipe:
    """The recipe with trainings of three steps."""
    budgets = [step.train and step.train.model_copy(update={"epochs": None, "steps": 3, "batch": 8}) for step in recipe.steps]
    steps = tuple(step.model_copy(update={"train": budget}) for step, budget in zip(recipe.steps, budgets, strict=True))
    return recipe.model_copy(update={"steps": steps})


TEXT = ("prune-channels30", "prune50", "qat-int4")  # of the recipes that train; SparseGPT cannot see what nn.MultiheadAttention multiplies out_proj by
ARMS = [(recipe, model) for recipe in built_in() for model in MODELS if model != "torch_text" or recipe in TEXT or not Recipe.load(recipe).trains]


def marked(recipe: str, model: str):
    """A Keras training and its way through PyTorch to .onnx and .pt2 take half a minute."""
    slow = model == "keras_cnn" and Recipe.load(recipe).trains
    return pytest.param(recipe, model, marks=[pytest.mark.slow] if slow else [])


@pytest.mark.parametrize(("recipe", "model"), [marked(*arm) for arm in ARMS])
def test_the_codes_are_the_same_in_every_file(recipe, model):
    written = {}
    for exporter in (*FILES, *(slow for slow, arms in SLOW_FILES.items() if (recipe, model) in arms)):
        small, artifact = exported(exporter, shortened(Recipe.load(recipe)), model)
        reason = ABSENT.get((exporter, recipe))
        assert isinstance(artifact, Refused) == (reason is not None), artifact
        if reason is None:
            written[exporter] = artifact
        else:
            assert reason in str(artifact)
    assert len(written) >= (1 if recipe == "int16x8" else len(FILES))
    wrong = {f"{a} and {b}": differences(written[a], written[b]) for a, b in combinations(written, 2)}
    assert not any(wrong.values()), wrong
    planned = {name for name, encoded in small.encoded.items() if not isinstance(encoded.format, FloatFormat)}
    for exporter, artifact in written.items():
        assert planned <= set(coded(artifact)), f"{exporter} does not show the codes of every tensor"


@pytest.mark.parametrize("model", ["torch_cnn", "keras_cnn"])
def test_learned_scales_are_the_same_in_every_file(model, tmp_path):
    from zoo import case

    step = "{step: quantize, scales: learned, train: {steps: 3, batch: 8}, weights: {type: int, bits: 8, granularity: {type: axis}, rule: narrow}}"
    small = compress(case(model).network, Recipe.parse(f"name: lsq\nsteps: [{step}]"), training=case(model).training)
    weights = small.network.weights()
    assert all((encode(weights[name].value, encoded.format).scales != encoded.scales).any() for name, encoded in small.encoded.items())
    written = [exporters.export(small, tmp_path / f"lsq{exporters.EXPORTERS.load(name).SUFFIX}", name) for name in FILES]
    assert not differences(written[0], written[1]) and not differences(written[0], written[2])


def test_a_code_that_differs_is_named(tmp_path):
    """The law can fail: the same model with one weight changed by a step of its scale."""
    from zoo import case

    _, artifact = exported("onnx", Recipe.load("int8-weight-only"), "torch_linear")
    small = compress(case("torch_linear").network, "int8-weight-only")
    codes = small.encoded["weight"].codes
    codes[3, 5] += 1 if codes[3, 5] < 0 else -1
    other = exporters.export(small, tmp_path / "changed.onnx")
    assert differences(artifact, other) == [f"weight: 1 of {codes.size} codes differ"]


def test_scales_are_compared(tmp_path):
    _, one = exported("onnx", Recipe.load("int4-group32"), "torch_linear")
    _, other = exported("onnx", Recipe.load("int4-signed-group32"), "torch_linear")
    assert any("scales differ" in found for found in differences(one, other))
    assert np.any(next(t.scales for t in other.tensors if t.name == "weight") < 0)  # the signed rule, as ONNX Runtime's own quantizer has it
