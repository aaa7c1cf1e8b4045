"""Which steps go together, what they promise, and what a pipeline of NumPy alone makes of it."""

import numpy as np
import pytest

from compress.errors import BrokenInvariant, InputError, RecipeError
from compress.network import Weight
from compress.pipeline import compress
from compress.plan import plan
from compress.recipe import Recipe
from compress.training import Training

INT8 = "{step: quantize, weights: {type: int, bits: 8, granularity: {type: tensor}, rule: narrow}}"


class Network:
    """Two layers of plain arrays."""

    framework, inputs, notes, model = "none", (), (), None

    def __init__(self, values: dict[str, np.ndarray]):
        self.values = values

    def weights(self):
        return {name: Weight(name, "linear", value) for name, value in self.values.items()}

    def with_weights(self, values):
        return type(self)({**self.values, **values})


def network(kind=Network) -> Network:
    rng = np.random.default_rng(1)
    return kind({"a": rng.standard_normal((24, 40)).astype(np.float32), "b": 3 * rng.standard_normal((8, 24)).astype(np.float32)})


def recipe(*steps: str) -> Recipe:
    return Recipe.parse("name: mine\nsteps:" + "".join(f"\n  - {step}" for step in steps))


def test_prune_cluster_and_quantize_keep_each_other():
    given = network()
    small = compress(given, recipe("{step: prune, sparsity: 0.75}", "{step: cluster, clusters: 8}", INT8))
    for name, encoded in small.encoded.items():
        value = encoded.decode()
        assert (value == 0).sum() >= 0.75 * value.size and len(np.unique(value)) <= 8
        magnitude = np.abs(given.values[name])
        assert magnitude[value == 0].max() <= magnitude[value != 0].min() + 1e-6 or (value == 0).mean() > 0.75
    assert {(k.tensor, k.after.split(" ")[0]) for k in small.kept} == {(n, s) for n in "ab" for s in ("steps.0", "steps.1", "steps.2", "encoding")}
    assert given.values["a"].all()


def test_pruning_alone_leaves_floats_and_says_so():
    small = compress(network(), recipe("{step: prune, pattern: {type: 'n:m', n: 2, m: 4}}"))
    assert not small.encoded and all("2:4" in d.reason and not d.wanted for d in small.plan.decisions)
    groups = small.network.values["a"].reshape(-1, 4)
    assert ((groups != 0).sum(1) == 2).all()


def test_clusters_alone_are_a_codebook_without_error():
    small = compress(network(), recipe("{step: prune, sparsity: 0.5}", "{step: cluster, clusters: 16, per: axis}"))
    for name, encoded in small.encoded.items():
        assert np.array_equal(encoded.decode(), small.network.values[name])
        assert encoded.codebook.shape[-1] == 16


def test_global_sparsity_is_that_of_all_layers_together():
    small = compress(network(), recipe("{step: prune, sparsity: 0.5, pattern: {type: unstructured, scope: global}}"))
    a, b = (small.network.values[name] == 0 for name in "ab")
    assert a.sum() + b.sum() == (a.size + b.size) // 2 and a.mean() > b.mean() + 0.2


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (["{step: cluster, clusters: 8}", "{step: prune, sparsity: 0.5}"], r"steps\.1: zeros would be one more value.*prune first.*\(a\)"),
        ([INT8, "{step: prune, sparsity: 0.5}"], r"steps\.1: a quantized weight has its codes: prune first"),
        ([INT8, "{step: cluster, clusters: 8}"], r"steps\.1: a quantized weight has its codes: cluster first"),
        (["{step: cluster, clusters: 8}", "{step: prune, sparsity: 0.3, pattern: {type: channels}}"], "put this step first"),
        (["{step: prune, sparsity: 0.5}", "{step: quantize, weights: hqq.int4.group64}"], "no exact zero"),
        (["{step: prune, sparsity: 0.5}", "{step: quantize, weights: torchao.nf4}"], "no exact zero"),
        (["{step: prune, sparsity: 0.5}", "{step: quantize, weights: kmeans.16}"], "no exact zero"),
        (["{step: cluster, clusters: 8}", "{step: quantize, weights: tflite.int8.weight}"], "8 clusters would not stay.*cluster per axis"),
        (["{step: cluster, clusters: 8, per: axis}", "{step: quantize, weights: gguf.q8_0}"], "one scale per tensor or channel"),
    ],
)
def test_an_order_that_undoes_itself_is_refused_when_planning(steps, message):
    with pytest.raises(RecipeError, match=message):
        plan(network().weights(), recipe(*steps))


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("{step: prune}", "needs a share of zeros"),
        ("{step: prune, sparsity: 1.0}", r"steps\.0\.sparsity: .*less than 1"),
        ("{step: prune, sparsity: 0.5, pattern: {type: 'n:m'}}", "leave it out"),
        ("{step: prune, pattern: {type: 'n:m', n: 4, m: 2}}", "not 4:2"),
        ("{step: cluster, clusters: 1}", r"steps\.0\.clusters: .*greater than or equal to 2"),
        ("{step: prune, sparsity: 0.5, train: {epochs: 1}, schedule: {start: 0.6, end: 0.4}}", "not after its start"),
        ("{step: prune, sparsity: 0.5, schedule: {}}", "needs `train`"),
        ("{step: prune, sparsity: 0.5, train: {epochs: 1, steps: 3}}", "one of them"),
        ("{step: prune, sparsity: 0.5, saliency: wanda, pattern: {type: channels}}", "magnitude"),
        ("{step: squash}", "prune.*cluster.*quantize"),
    ],
)
def test_steps_that_mean_nothing(step, message):
    with pytest.raises(RecipeError, match=message):
        recipe(step)


def test_a_layer_too_small_for_the_pattern_is_named():
    with pytest.raises(RecipeError, match=r"b \[8, 24\]: 24 weights per output channel are fewer than the 32"):
        plan(network().weights(), recipe("{step: prune, pattern: {type: 'n:m', n: 16, m: 32}}"))


def test_data_that_a_step_needs_is_asked_for_before_any_work():
    with pytest.raises(InputError, match=r"trains \(steps\.0\): give `training`"):
        compress(network(), recipe("{step: prune, sparsity: 0.5, train: {steps: 3}}"))
    with pytest.raises(InputError, match="give `calibration`"):
        compress(network(), recipe("{step: prune, sparsity: 0.5, saliency: wanda}"))


def test_an_undone_step_is_an_error():
    class Forgetful(Network):
        def with_weights(self, values):
            return type(self)({name: value + np.float32(1e-3) for name, value in {**self.values, **values}.items()})

    with pytest.raises(BrokenInvariant, match=r"a: pruned weights are 0 does not hold after steps\.0 \(prune\): 480 pruned weights"):
        compress(network(Forgetful), recipe("{step: prune, sparsity: 0.5}"))


LEARNED = "{step: quantize, scales: learned, train: {steps: 3}, weights: {type: int, bits: 4, granularity: {type: axis}, "


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (INT8.replace("quantize", "quantize, scales: learned"), "learned by training: give `train`"),
        (LEARNED + "rule: asymmetric}}", "rule asymmetric has more than one positive scale"),
        (LEARNED + "rule: signed}}", "rule signed has more than one positive scale"),
        (LEARNED + "scale_dtype: float8_e8m0}}", "float8_e8m0 is too coarse"),
        (LEARNED + "rounding: half_away}}", "rounding: half_away is not what training computes, half_even is"),
        (LEARNED.replace("axis", "block, size: 64") + "}}", "per tensor, axis or group of one size, not block-64"),
        ("{step: quantize, scales: learned, train: {steps: 3}, weights: bnb.nf4.dq}", "levels of its own"),
        ("{step: quantize, scales: learned, train: {steps: 3}, weights: {type: float, dtype: float16}}", "float16 cannot learn: it has none"),
    ],
)
def test_scales_that_cannot_learn_are_refused_when_the_recipe_is_read(step, message):
    with pytest.raises(RecipeError, match=message):
        recipe(step)


def test_learned_scales_are_the_plans():
    class Learning(Network):
        def train(self, course):
            assert all(c.learned and c.scales is None for c in course.constraints.values())
            return self, {name: np.full(len(value), 0.1, np.float32) for name, value in self.values.items()}

    given = network(Learning)
    small = compress(given, recipe(LEARNED + "}}"), training=Training(np.zeros((4, 1)), np.zeros(4)))
    for name, value in given.values.items():
        assert (small.encoded[name].scales == np.float32(0.1)).all()
        np.testing.assert_array_equal(small.encoded[name].codes, np.clip(np.rint(value / np.float32(0.1)), -8, 7))


def test_clusters_that_weights_choose_are_those_of_the_later_steps():
    """A training that moves weights to other clusters, and one that must keep them."""
    seen = []

    class Learning(Network):
        framework = "pytorch"

        def train(self, course):
            seen.append(course.constraints["a"])
            return type(self)({name: (3 * (value > 0) - np.float32(1)) * course.constraints[name].mask for name, value in self.values.items()}), {}

    steps = ("{step: prune, sparsity: 0.5}", "{step: cluster, clusters: 8, dkm: {temperature: 0.5}, train: {steps: 3}}")
    quantize = INT8.replace("quantize", "quantize, train: {steps: 3}")
    data = Training(np.zeros((4, 1)), np.zeros(4))
    small = compress(network(Learning), recipe(*steps, quantize), training=data)
    assert [c.temperature for c in seen] == [0.5, None] and seen[0].codes.max() == 7
    np.testing.assert_array_equal(seen[1].codes, np.select([small.network.values["a"] > 0, small.network.values["a"] < 0], [2, 1]))
    with pytest.raises(InputError, match=r"steps\.1: dkm trains PyTorch models, not none ones"):
        compress(network(), recipe(*steps), training=data)
    with pytest.raises(RecipeError, match="differentiable k-means trains: give `train`"):
        recipe("{step: cluster, clusters: 8, dkm: {}}")
