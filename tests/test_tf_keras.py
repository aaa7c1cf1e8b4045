"""tf_keras models: opened as Keras 3 networks, trained inside TFMOT's wrappers. Noise for data: what is kept does not depend on what is learned."""

import os
from functools import cache
from importlib.util import find_spec

import numpy as np
import pytest
from test_cross_framework import shortened

import exporters
from compress import compress, open_model
from compress.errors import InputError, TrainingError
from compress.formats import DynamicActivations, IntFormat, PerAxis, PerGroup, PerTensor, StaticActivations
from compress.numerics import encode
from compress.numerics.clustering import cluster, distinct, values_of
from compress.numerics.pruning import mask as sparse
from compress.recipe import Recipe
from compress.sparsity import NofM, Unstructured
from compress.training import Budget, Constraint, Course, Training

tf = pytest.importorskip("tensorflow")
tf_keras = pytest.importorskip("tf_keras")
if find_spec("tensorflow_model_optimization") is None:  # importing it here would mark the process, which is looked at below
    pytest.skip("TFMOT is not installed", allow_module_level=True)
layers = tf_keras.layers
KERNELS = ("conv/kernel", "depthwise/kernel", "hidden/kernel", "logits/kernel")
PATTERN = {"unstructured": (Unstructured(), 0.6), "2:4": (NofM(2, 4), None)}
INT8 = {"axis": IntFormat(8, PerAxis(), "narrow"), "tensor": IntFormat(8, PerTensor(), "narrow")}


def noise(*shape):
    return np.random.default_rng(7).normal(size=shape).astype(np.float32)


def randomized(model):
    """Weights as training leaves them: norms that are not the identity."""
    random = np.random.default_rng(0)
    model.set_weights([random.uniform(0.5, 1.5, w.shape) if w.ndim == 1 else random.normal(0, 0.3, w.shape) for w in model.get_weights()])
    return model


def small():
    x = tf_keras.Input((8, 8, 3), name="image")
    y = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(8, 3, use_bias=False, name="conv")(x)))
    y = layers.DepthwiseConv2D(3, activation="relu", depth_multiplier=2, name="depthwise")(layers.Dropout(0.5)(y))
    y = layers.Dense(16, "relu", name="hidden")(layers.Flatten()(y))
    return randomized(tf_keras.Model(x, layers.Dense(5, name="logits")(y)))


@cache
def opened():
    return open_model(small(), None)


def course(constraints, steps=8, network=None, **given):
    data = given.pop("data", None) or Training({"image": noise(64, 8, 8, 3)}, np.arange(64) % 5, learning_rate=3e-3)
    return Course("steps.0 (test)", constraints, Budget(steps=steps, batch=16), data, **given)


def values(network):
    return {name: weight.value for name, weight in network.weights().items()}


def made(pattern=None, per=None, fmt=None, activations=None):
    """A network whose kernels have these zeros and clusters, and what training must keep of them."""
    constraints, start = {}, {}
    for name in KERNELS:
        value, mask, codes = values(opened())[name], None, None
        if pattern:
            mask = sparse(np.abs(value), PATTERN[pattern][0], PATTERN[pattern][1] or 0.5)
            value = value * mask
        if per:
            codes, centroids = cluster(value, 4, per, mask=mask)
            value = values_of(codes, centroids)
        start[name] = value
        constraints[name] = Constraint(mask, codes, per == "axis", codes is not None and mask is not None, format=fmt, activations=activations)
    return opened().with_weights(start), constraints


def kept(network, constraints, fmt=None, per=None):
    for name, constraint in constraints.items():
        value = values(network)[name]
        for seen in (value, encode(value, fmt).decode()) if fmt else (value,):
            assert constraint.mask is None or not seen[~constraint.mask].any()
            assert not np.signbit(seen[seen == 0]).any()
            assert per is None or distinct(seen, per) <= 4


def test_a_tf_keras_model_opens_as_it_computes_and_is_left_alone():
    model = small()
    before, image = model.get_weights(), noise(4, 8, 8, 3)
    expected = model(image, training=False).numpy()
    network = open_model(model, None)
    np.testing.assert_allclose(network.run({"image": image})[0], expected, rtol=1e-4, atol=1e-5)  # float32 sums, folded norms
    start, constraints = made("unstructured")
    network.train(course(constraints))
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    np.testing.assert_array_equal(model(image, training=False).numpy(), expected)


CASES = {
    "prune": ("unstructured", None, None, None),
    "cluster-axis": (None, "axis", None, None),
    "prune-cluster": ("unstructured", "tensor", None, None),
    "qat": (None, None, INT8["axis"], StaticActivations()),
    "pqat": ("2:4", None, INT8["axis"], StaticActivations()),
    "cqat": (None, "axis", INT8["axis"], StaticActivations()),
    "pcqat": ("unstructured", "tensor", INT8["tensor"], StaticActivations()),
}


@pytest.mark.parametrize("case", CASES)
def test_training_through_tfmot_keeps_what_earlier_steps_made(case):
    pattern, per, fmt, activations = CASES[case]
    start, constraints = made(pattern, per, fmt, activations)
    losses = []
    learned, _ = start.train(course(constraints, progress=lambda step, steps, loss: losses.append(loss)))
    assert learned.notes[-1] == "steps.0 (test) was trained in tf_keras through TFMOT"
    kept(learned, constraints, fmt, per)
    for name, value in values(learned).items():
        assert not np.array_equal(value, values(start)[name]), name
    assert len(losses) == 8 and losses[-1] < losses[0]
    assert "TF_USE_LEGACY_KERAS" not in os.environ


@pytest.mark.parametrize("granularity", INT8)
def test_the_loss_is_that_of_the_plans_codes(granularity):
    losses, fmt = [], INT8[granularity]
    opened().train(course({name: Constraint(format=fmt) for name in KERNELS}, 1, progress=lambda step, steps, loss: losses.append(loss)))
    decoded = opened().with_weights({name: encode(values(opened())[name], fmt).decode() for name in KERNELS})
    order = np.random.default_rng((0, 0)).permutation(64)[:16]
    logits = decoded.run({"image": noise(64, 8, 8, 3)[order]})[0].astype(np.float64)
    likelihood = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    np.testing.assert_allclose(losses, -likelihood[np.arange(16), order % 5].mean(), rtol=1e-4)  # TFMOT rounds a tie here and there the other way


def test_masks_grow_as_the_core_says():
    asked = []

    def remask(share, current):
        asked.append(share)
        return {name: sparse(np.abs(value), Unstructured(), 0.8 * max(share, 0.1)) for name, value in current.items()}

    constraints = {name: Constraint(mask=np.ones_like(values(opened())[name], bool)) for name in KERNELS}
    learned, _ = opened().train(course(constraints, 20, remask=remask, remask_every=10))
    assert asked == [0, 0.5, 1]
    assert all((values(learned)[name] == 0).mean() == pytest.approx(0.8, abs=0.05) for name in KERNELS)


def test_2_of_4_is_what_tfmot_prunes_in_a_dense_layer():
    """TFMOT's `sparsity_m_by_n` counts consecutive inputs too, but in a convolution only those of one kernel position."""
    from tensorflow_model_optimization.python.core.sparsity.keras import pruning_utils

    weight = noise(32, 8)
    rows = pruning_utils.weights_rearrange(tf.constant(weight))
    theirs = pruning_utils.m_by_n_sparsity_mask_prepare(pruning_utils.generate_m_by_n_mask(rows, (2, 4)), tf.TensorShape(weight.shape)).numpy()
    np.testing.assert_array_equal(sparse(np.abs(weight.T), NofM(2, 4), 0.5), theirs.T != 0)


@pytest.mark.parametrize("recipe", ["prune80-cluster16-int8", "pcqat"])
def test_the_file_holds_the_plans_codes(recipe, tmp_path):
    data = {"image": noise(16, 8, 8, 3)}
    small_ = compress(opened(), shortened(Recipe.load(recipe)), calibration=data, training=Training(data, np.arange(16) % 5))
    artifact = exporters.export(small_, tmp_path / "it.tflite")
    assert any("through TFMOT" in note for note in artifact.notes)
    stored = {tensor.name: tensor for tensor in exporters.inspect(artifact.path).tensors}
    for name, encoded in small_.encoded.items():
        np.testing.assert_array_equal(stored[name].codes.ravel(), encoded.codes.ravel())


def branched():
    """Two inputs, a nested model, a layer that is called twice, a norm that folds into nothing."""
    left, right = tf_keras.Input((6,), name="left"), tf_keras.Input((6,), name="right")
    shared = layers.Dense(6, "relu", name="shared")
    y = tf_keras.Input((6,))
    inner = tf_keras.Model(y, layers.LayerNormalization(name="norm")(layers.Dense(6, name="first")(y)), name="inner")
    x = layers.Add()([layers.BatchNormalization(name="before")(shared(left)), inner(shared(right))])
    return randomized(tf_keras.Model([left, right], [layers.Dense(4, name="head")(x), x]))


def test_graphs_with_branches_nested_models_and_shared_layers_train_alike():
    model, data = branched(), {"left": noise(32, 6), "right": noise(32, 6)[::-1].copy()}
    network = open_model(model, None)
    names = [name for name in network.weights() if name.endswith("kernel")]
    assert {"shared/kernel", "inner/first/kernel", "head/kernel"} == set(names)
    constraints = {name: Constraint(mask=np.abs(values(network)[name]) > 0.2) for name in names}
    start = network.with_weights({name: values(network)[name] * c.mask for name, c in constraints.items()})
    learned, _ = start.train(course(constraints, data=Training(data, np.arange(32) % 4, learning_rate=3e-3)))
    assert "through TFMOT" in learned.notes[-1]
    kept(learned, constraints)
    for name in ("before/moving_mean", "before/moving_variance"):
        np.testing.assert_array_equal(values(learned)[name], values(start)[name])
    assert not np.array_equal(values(learned)["before/gamma"], values(start)["before/gamma"])


@pytest.mark.parametrize(
    ("constraint", "reason"),
    [
        (Constraint(format=IntFormat(4, PerGroup(32))), "hidden/kernel: it rounds to symmetric 8 bits"),
        (Constraint(format=INT8["axis"], activations=DynamicActivations()), "hidden/kernel: it rounds layer inputs"),
        (Constraint(), "nothing to hold"),
    ],
)
def test_what_tfmot_cannot_hold_is_trained_by_keras_3_and_said(constraint, reason):
    learned, _ = opened().train(course({"hidden/kernel": constraint}, 2))
    assert f"own Keras 3 code, not through TFMOT: {reason}" in learned.notes[-1]
    assert not np.array_equal(values(learned)["hidden/kernel"], values(opened())["hidden/kernel"])
    masks, pruned = {"logits/kernel": Constraint(mask=values(learned)["logits/kernel"] > 0)}, None
    pruned, _ = learned.train(course(masks, 1))  # the next step is TFMOT's again
    assert "through TFMOT" in pruned.notes[-1] and "not through" not in pruned.notes[-1]


def test_recurrent_layers_are_trained_by_keras_3_and_said():
    network = open_model(randomized(tf_keras.Sequential([layers.Input((4, 3)), layers.LSTM(5, name="lstm"), layers.Dense(5)])), None)
    name = next(n for n, w in network.weights().items() if w.kind == "recurrent")
    data = Training(noise(16, 4, 3), np.arange(16) % 5)
    learned, _ = network.train(course({name: Constraint(mask=values(network)[name] > 0)}, 1, data=data))
    assert f"{name}: its wrappers hold no recurrent weights" in learned.notes[-1]


def test_an_interrupted_training_goes_on_to_the_same_result(tmp_path, monkeypatch):
    from compress.backends import training_loop

    start, constraints = made("unstructured", "tensor", INT8["tensor"], StaticActivations())
    constraints["conv/kernel"] = Constraint(mask=constraints["conv/kernel"].mask)
    whole, _ = start.train(course(constraints))
    monkeypatch.setattr(training_loop, "SAVE_SECONDS", 0)

    def stop(step, steps, loss):
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start.train(course(constraints, checkpoint=tmp_path / "it.safetensors", progress=stop))
    steps = []
    resumed, _ = start.train(course(constraints, checkpoint=tmp_path / "it.safetensors", progress=lambda step, *_: steps.append(step)))
    assert steps == [5, 6, 7, 8]
    for name, value in values(whole).items():
        np.testing.assert_array_equal(values(resumed)[name], value, err_msg=name)


def test_a_loss_that_turns_nan_names_step_and_layer(tmp_path):
    images = noise(64, 8, 8, 3)
    images[np.random.default_rng((0, 0)).permutation(64)[16 * 2], 0, 0] = np.inf  # the first sample of step 3
    _, constraints = made("unstructured")
    bad = course(constraints, data=Training({"image": images}, np.arange(64) % 5), checkpoint=tmp_path / "it.safetensors")
    with pytest.raises(TrainingError, match=r"steps.0 \(test\).* step 3 of 8.* layer .*conv.*it.safetensors"):
        opened().train(bad)


def test_what_cannot_be_trained_is_refused_as_for_keras_3():
    _, constraints = made("unstructured")
    with pytest.raises(InputError, match=r"steps.0 \(test\).*labels from 1 to 5 are not classes 0 to 4"):
        opened().train(course(constraints, data=Training({"image": noise(64, 8, 8, 3)}, np.arange(64) % 5 + 1)))
    with pytest.raises(InputError, match="no tensor 'other'"):
        opened().train(course({"other": Constraint(mask=np.ones(3, bool))}))
    with pytest.raises(InputError, match=r"logits/kernel: a mask of shape \[3\]"):
        opened().train(course({"logits/kernel": Constraint(mask=np.ones(3, bool))}))

    class Own(tf_keras.Model):
        def call(self, x):
            return x

    own = Own()
    own(noise(1, 3))
    with pytest.raises(InputError, match="subclassed.*write it as a Keras 3 model"):
        open_model(own, None)
