"""Recipes: documents, selectors and plans."""

import numpy as np
import pytest

from compress.errors import RecipeError
from compress.formats import IntFormat, PerGroup, StaticActivations
from compress.network import Weight
from compress.plan import plan
from compress.presets import PRESETS
from compress.recipe import Recipe, built_in

WEIGHTS = {
    name: Weight(name, kind, np.ones(shape, np.float32))
    for name, kind, shape in [
        ("embed.weight", "embedding", (10, 32)),
        ("body.0.weight", "linear", (8, 32)),
        ("body.0.bias", "bias", (8,)),
        ("body.1.weight", "conv2d", (8, 4, 3, 3)),
        ("head.weight", "linear", (2, 48)),
    ]
}
INT8 = "weights: {type: int, bits: 8}"


def recipe(*steps: str, **fields) -> Recipe:
    listed = "".join(f"\n  - {{step: quantize, {step}}}" for step in steps)
    extra = "".join(f"\n{k}: {v}" for k, v in fields.items())
    return Recipe.parse(f"name: mine{extra}\nsteps:{listed or ' []'}")


@pytest.mark.parametrize("name", built_in())
def test_built_in_recipes_survive_yaml_and_keep_their_id(name):
    loaded = Recipe.load(name)
    assert loaded.name == name and loaded.about
    again = Recipe.parse(loaded.to_yaml())
    assert again == loaded and again.id == loaded.id


def test_the_built_in_recipes_are_there_and_differ():
    first = ("float32", "float16", "int8-weight-only", "int8-dynamic", "int8-static", "int16x8", "int4-group32", "int4-signed-group32", "nf4", "nf4-double")
    assert built_in()[: len(first)] == first
    untrained = [name for name in built_in() if not Recipe.load(name).trains]
    assert {"fp4", "mxfp4", "nvfp4", "kmeans16", "kmeans16-channel", "log4", "int3", "int2"} == set(untrained[len(first) :])
    trained = {"prune50", "prune80", "prune-2of4", "prune-channels30", "cluster16", "prune50-int8", "prune80-cluster16-int8"}
    assert trained | {"qat-int8", "qat-int4", "pqat", "cqat", "pcqat"} == set(built_in()[len(untrained) :])
    assert len({Recipe.load(name).id for name in built_in()}) == len(built_in())


def test_a_preset_by_name_is_its_format():
    assert recipe("weights: bnb.nf4.dq").steps[0].weights == PRESETS["bnb.nf4.dq"].format
    with pytest.raises(RecipeError, match=r"steps\.0\.weights.*bnb\.nf4"):
        recipe("weights: bnb.nf44")


def test_id_follows_the_content_not_the_name():
    loaded = Recipe.load("int8-static")
    assert loaded.model_copy(update={"name": "other"}).id == loaded.id
    assert loaded.model_copy(update={"allow_float": True}).id != loaded.id


def test_first_match_wins():
    decided = plan(WEIGHTS, recipe("select: {name: 'head.*'}, weights: {type: float, dtype: float16}", INT8)).compressed
    assert str(decided["head.weight"].format) == "float16" and decided["head.weight"].steps == (0,)
    assert decided["body.0.weight"].format == IntFormat(8) and decided["body.0.weight"].steps == (1,)
    assert "body.0.bias" not in decided


@pytest.mark.parametrize(
    ("select", "taken"),
    [
        ("name: 'body.*'", {"body.0.weight", "body.1.weight"}),
        ("kind: linear", {"body.0.weight", "head.weight"}),
        ("kind: [conv*, embedding]", {"body.1.weight", "embed.weight"}),
        ("regex: '^(head|embed)'", {"head.weight", "embed.weight"}),
        ("kind: linear, name: '*.0.*'", {"body.0.weight"}),
    ],
)
def test_selectors(select, taken):
    assert set(plan(WEIGHTS, recipe(f"select: {{{select}}}, {INT8}")).compressed) == taken


def test_every_tensor_has_a_format_or_a_reason():
    for name in built_in():
        loaded = Recipe.load(name).model_copy(update={"allow_float": True})
        for decision in plan(WEIGHTS, loaded).decisions:
            assert (decision.format is None) == bool(decision.reason)


def test_a_group_that_does_not_divide_is_an_error_unless_allowed():
    steps = ["weights: {type: int, bits: 4, granularity: {type: group, size: 32}}"]
    with pytest.raises(RecipeError, match=r"head.weight \[2, 48\]: 48 values .* not divisible by the group size 32"):
        plan(WEIGHTS, recipe(*steps))
    decided = {d.name: d for d in plan(WEIGHTS, recipe(*steps, allow_float="true")).decisions}
    assert decided["head.weight"].wanted and decided["head.weight"].format is None
    assert decided["embed.weight"].format.granularity == PerGroup(32)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\nsteps: [{step: quantize, weights: {type: int, bits: 8, group: 32}}]", "steps.0.weights.int.group"),
        ("name: x\nstep: []", "step: Extra inputs"),
        ("name: x\nsteps: [{step: quantize, weights: {type: int, bits: 11}}]", "not 11"),
        ("name: x\nsteps: [{step: quantize, select: {regex: '('}, weights: {type: float, dtype: float16}}]", "regular expression"),
        ("name: x y", "one word"),
        ("[1, 2]", "expected fields"),
        ("a: [", "is not YAML"),
        ("name: x\nsteps: [{step: quantize, weights: {type: int, bits: 8}, activations: {type: static, bits: 4}}]", "activations"),
    ],
)
def test_bad_documents_name_the_field(text, message):
    with pytest.raises(RecipeError, match=message):
        Recipe.parse(text, "mine.yaml")


def test_selector_that_matches_nothing_is_an_error_with_a_suggestion():
    with pytest.raises(RecipeError, match="did you mean 'head.weight'"):
        plan(WEIGHTS, recipe(f"select: {{name: haed.weight}}, {INT8}"))
    with pytest.raises(RecipeError, match="its layer kinds: conv2d, embedding, linear"):
        plan(WEIGHTS, recipe(f"select: {{kind: recurrent}}, {INT8}"))


def test_unknown_recipe_suggests_the_nearest():
    with pytest.raises(RecipeError, match="did you mean 'int8-static'"):
        Recipe.load("int8-statik")
    with pytest.raises(RecipeError, match="cannot be read"):
        Recipe.load("missing.yaml")


def test_static_activations_have_sane_percentiles():
    with pytest.raises(RecipeError, match="percentile"):
        StaticActivations(percentile=0.5)
