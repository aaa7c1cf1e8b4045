"""Training, in each framework: what a weight was given by earlier steps is kept, on digits of MNIST."""

from dataclasses import replace

import numpy as np
import pytest
from training_cases import training_case, values

from compress.backends import training_loop
from compress.errors import BrokenFile, InputError, TrainingError
from compress.formats import DynamicActivations, IntFormat, PerAxis, PerGroup, PerTensor, StaticActivations
from compress.numerics import encode
from compress.numerics.clustering import cluster, codes_of, distinct, values_of
from compress.numerics.given_scales import encode_at
from compress.training import Budget, Constraint, Distillation, Training

INT4, INT2 = IntFormat(4, PerAxis()), IntFormat(2, PerAxis())


@pytest.fixture(params=["keras", "pytorch"])
def case(request):
    return training_case(request.param)


def test_training_learns_and_leaves_the_network_alone(case):
    before = {name: value.copy() for name, value in values(case.trained).items()}
    learned = case.train({}, 30)
    assert case.accuracy(case.trained) > 0.85
    for name, value in values(case.trained).items():
        np.testing.assert_array_equal(value, before[name])
        assert not np.array_equal(values(learned)[name], value), name


def test_pytorch_flushes_denormals_while_it_trains_and_only_then():
    torch = pytest.importorskip("torch")

    def flushed(*_) -> bool:
        return bool((torch.tensor(1e-39) * torch.ones(())) == 0)

    seen = []
    training_case("pytorch").train({}, 2, progress=lambda *_: seen.append(flushed()))
    assert seen == [True, True] and not flushed()


def test_pruned_weights_stay_zero_and_the_others_recover(case):
    masks = case.sparse(0.8)
    cut = case.trained.with_weights({name: values(case.trained)[name] * mask for name, mask in masks.items()})
    learned = case.train({name: Constraint(mask=mask) for name, mask in masks.items()}, 80, cut)
    for name, mask in masks.items():
        assert not values(learned)[name][~mask].any() and (values(learned)[name][mask] != 0).mean() > 0.99
        assert not np.signbit(values(learned)[name][~mask]).any()
    assert case.accuracy(learned) > case.accuracy(cut)


@pytest.mark.parametrize("per", ["tensor", "axis"])
def test_clusters_keep_their_members_and_move_together(case, per):
    constraints, shared = {}, {}
    for name, mask in case.sparse().items():
        codes, centroids = cluster(values(case.trained)[name], 4, per, mask=mask)
        shared[name] = values_of(codes, centroids)
        constraints[name] = Constraint(mask=mask, codes=codes, per_axis=per == "axis", zero=True)
    start = case.trained.with_weights(shared)
    learned = case.train(constraints, 60, start)
    for name, constraint in constraints.items():
        value = values(learned)[name]
        assert distinct(value, per) <= 4 and not value[~constraint.mask].any()
        assert not np.array_equal(value, shared[name])
        for i in range(4):
            members = (value if per == "tensor" else value[0])[(constraint.codes if per == "tensor" else constraint.codes[0]) == i]
            assert len(np.unique(members)) <= 1
    assert case.accuracy(learned) > case.accuracy(start)


def test_a_centroid_gets_the_sum_of_its_members_gradients(case):
    """One step of Adam moves by the learning rate along the gradient's sign, whatever its size."""
    name, rate = case.kernels[1], 3e-3
    codes, centroids = cluster(values(case.trained)[name], 3, "tensor")
    start = case.trained.with_weights({name: values_of(codes, centroids)})
    order = np.random.default_rng((0, 0)).permutation(2000)[:32]
    gradient = case.gradient(start, case.data.inputs["image"][order], case.data.labels[order])
    moved = values(case.train({name: Constraint(codes=codes)}, 1, start))[name] - values(start)[name]
    for i in range(3):
        wanted = -rate * np.sign(gradient[codes == i].sum())
        np.testing.assert_allclose(moved[codes == i], wanted, rtol=1e-2, atol=0)  # Adam's epsilon, and the centroid's own rounding


@pytest.mark.parametrize("per", ["tensor", "axis"])
def test_weights_choose_their_clusters_in_differentiable_k_means(per):
    """DKM in PyTorch: nearest centroids in the end, few values, zeros kept, other members than at the start, and no worse than members that stay."""
    case = training_case("pytorch")
    hard, soft, shared, weights = {}, {}, {}, values(case.trained)
    for name, mask in case.sparse().items():
        codes, centroids = cluster(weights[name], 5, per, mask=mask)
        shared[name] = values_of(codes, centroids)
        hard[name] = Constraint(mask, codes, per == "axis", zero=True)
        soft[name] = replace(hard[name], temperature=1.0)
    start = case.trained.with_weights({name: weights[name] * c.mask for name, c in hard.items()})
    learned = case.train(soft, 60, start)
    for name, constraint in soft.items():
        value = values(learned)[name]
        assert distinct(value, per) <= 5 and not value[~constraint.mask].any()
    assert (codes_of(value, per, constraint.mask) != constraint.codes).any()  # of the linear layer
    assert case.accuracy(learned) > case.accuracy(case.trained.with_weights(shared))
    assert case.accuracy(learned) >= case.accuracy(case.train(hard, 60, case.trained.with_weights(shared))) - 0.02


def test_a_cold_temperature_is_k_means_and_gradients_reach_every_weight():
    torch = pytest.importorskip("torch")
    from compress.backends.pytorch_dkm import SoftClusters

    value = np.random.default_rng(0).standard_normal((6, 50)).astype(np.float32)
    codes, centroids = cluster(value, 5, "tensor")
    weights = torch.from_numpy(value).requires_grad_(True)
    cold = SoftClusters(value, None, Constraint(codes=codes, temperature=1e-4), torch.device("cpu"))
    np.testing.assert_allclose(cold.attended(weights).detach(), values_of(codes, centroids), atol=2e-3)  # a value halfway between two centroids
    soft = SoftClusters(value, None, Constraint(codes=codes, temperature=1.0), torch.device("cpu"))
    found = soft.attended(weights)
    found[0, 0].backward()
    assert (weights.grad.numpy()[codes == codes[0, 0]] != 0).all()  # through their centroid
    assert len(np.unique(soft.nearest(weights).detach())) == 5 < len(np.unique(found.detach()))


@pytest.mark.parametrize("fmt", [INT4, INT2], ids=["int4", "int2"])
def test_quantization_aware_training_beats_rounding_once(case, fmt):
    learned = case.train({name: Constraint(format=fmt) for name in case.kernels}, 120)
    assert case.accuracy(learned, fmt) >= case.accuracy(case.trained, fmt)
    if fmt is INT2:  # rounding to 3 levels costs much, training wins at least two thirds of it back
        lost = case.accuracy(case.trained) - case.accuracy(case.trained, fmt)
        assert lost > 0.02 and case.accuracy(case.trained) - case.accuracy(learned, fmt) < lost / 3


@pytest.mark.parametrize("learned", [False, True], ids=["fitted", "learned"])
def test_the_forward_pass_computes_with_the_exported_codes(case, learned):
    """The loss of the first step is that of the network with decoded weights."""
    loss = case.first_loss({name: Constraint(format=INT2, learned=learned) for name in case.kernels})
    decoded = case.trained.with_weights({name: encode(values(case.trained)[name], INT2).decode() for name in case.kernels})
    assert loss == pytest.approx(cross_entropy(case, decoded, step=0), rel=1e-5)  # float32 sums of 200 products


def cross_entropy(case, network, step):
    """Of a step of the first epoch, in float64."""
    order = np.random.default_rng((0, 0)).permutation(2000)[32 * step : 32 * step + 32]
    logits = network.run({"image": case.data.inputs["image"][order]})[0].astype(np.float64)
    likelihood = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return -likelihood[np.arange(32), case.data.labels[order]].mean()


LEARNED = {
    "tensor": IntFormat(4, PerTensor(), "narrow", fit="mse"),
    "axis": IntFormat(2, PerAxis(), "noclip", scale_dtype="float16"),
    "group": IntFormat(3, PerGroup(9), scale_dtype="bfloat16"),
}


@pytest.mark.parametrize("fmt", LEARNED.values(), ids=LEARNED)
def test_learned_scales_are_those_of_the_forward_pass(case, fmt):
    """What a training leaves, encoded by its scales, is what the next step computes with, and as good as a fit of every moment."""
    constraints = {name: Constraint(mask, format=fmt, learned=True) for name, mask in case.sparse(0.5).items()}
    start = case.trained.with_weights({name: values(case.trained)[name] * c.mask for name, c in constraints.items()})
    network, scales = start.train(case.course(constraints, 40))
    weights = values(network)
    encoded = {name: encode_at(weights[name], fmt, scales[name]) for name in case.kernels}
    for name in case.kernels:
        first = encode(values(start)[name], fmt)
        assert scales[name].shape == first.scales.shape and (scales[name] > 0).all() and np.mean(scales[name] != first.scales) > 0.8
        np.testing.assert_array_equal(encoded[name].scales, scales[name])
        assert not encoded[name].decode()[~constraints[name].mask].any()
    again = {name: Constraint(c.mask, format=fmt, learned=True, scales=scales[name]) for name, c in constraints.items()}
    loss = case.first_loss(again, start=network)
    decoded = network.with_weights({name: found.decode() for name, found in encoded.items()})
    assert loss == pytest.approx(cross_entropy(case, decoded, step=0), rel=1e-5)
    fitted = case.train({name: Constraint(c.mask, format=fmt) for name, c in constraints.items()}, 40, start)
    assert case.accuracy(decoded) > case.accuracy(fitted, fmt) - 0.02


def test_a_scale_gets_the_gradient_of_lsq(case):
    """One step of Adam multiplies a scale by exp(-+ learning rate): the sign is that of equation 3 of Esser et al. 2020."""
    name, fmt = case.kernels[1], IntFormat(3, PerAxis(), fit="mse")
    value, scale = values(case.trained)[name], encode(values(case.trained)[name], fmt).scales
    decoded = case.trained.with_weights({name: encode(value, fmt).decode()})
    order = np.random.default_rng((0, 0)).permutation(2000)[:32]
    gradient = case.gradient(decoded, case.data.inputs["image"][order], case.data.labels[order])
    ratio = value / scale[:, None]
    slope = np.where(ratio < -4, -4, np.where(ratio > 3, 3, np.rint(ratio) - ratio))
    network, scales = case.trained.train(case.course({name: Constraint(format=fmt, learned=True)}, 1))
    np.testing.assert_allclose(np.log(scales[name] / scale), -3e-3 * np.sign((gradient * slope).sum(1)), rtol=1e-2)
    moved = values(network)[name] != value
    assert not moved[(ratio < -4) | (ratio > 3)].any() and moved.mean() > 0.9  # clipped weights get no gradient


@pytest.mark.parametrize("activations", [StaticActivations(), StaticActivations(16), DynamicActivations()], ids=str)
def test_all_three_together(case, activations):
    constraints, start, int8 = {}, {}, IntFormat(8, PerTensor())
    for name, mask in case.sparse().items():
        codes, centroids = cluster(values(case.trained)[name], 8, "tensor", mask=mask)
        start[name] = values_of(codes, centroids)
        constraints[name] = Constraint(mask, codes, zero=True, format=int8, activations=activations)
    learned = case.train(constraints, 40, case.trained.with_weights(start))
    for name, mask in case.sparse().items():
        decoded = encode(values(learned)[name], int8).decode()
        assert distinct(values(learned)[name], "tensor") <= 8 and distinct(decoded, "tensor") <= 8
        assert not decoded[~mask].any() and not values(learned)[name][~mask].any()
    assert case.accuracy(learned, int8) > case.accuracy(case.trained.with_weights(start)) - 0.02
    assert case.clean(learned)


def test_activations_are_rounded_while_training(case):
    def first_loss(activations):
        return case.first_loss({name: Constraint(activations=activations) for name in case.kernels})

    assert first_loss(DynamicActivations()) != first_loss(None)
    assert first_loss(DynamicActivations()) == pytest.approx(first_loss(None), rel=0.05)  # 8 bits change little
    assert first_loss(DynamicActivations()) == first_loss(StaticActivations())  # the average of one batch is its range


def test_masks_change_while_the_sparsity_grows(case):
    asked = []

    def remask(share, current):
        asked.append((share, {name: float((value == 0).mean()) for name, value in current.items()}))
        return {name: np.abs(value) >= np.quantile(np.abs(value), 0.8 * min(1, 2 * share)) for name, value in current.items()}

    constraints = {name: Constraint(mask=np.ones_like(values(case.trained)[name], bool)) for name in case.kernels}
    learned = case.train(constraints, 40, remask=remask, remask_every=10)
    assert [share for share, _ in asked] == [0, 0.25, 0.5, 0.75, 1.0]
    assert all(np.diff([zeros[case.kernels[0]] for _, zeros in asked]) >= 0)
    for name in case.kernels:
        assert (values(learned)[name] == 0).mean() == pytest.approx(0.8, abs=0.02)


class Interrupted(Exception):
    pass


def test_an_interrupted_training_goes_on_to_the_same_result(case, tmp_path, monkeypatch):
    conv, logits = case.kernels
    codes, _ = cluster(values(case.trained)[logits], 4, "tensor")
    constraints = {
        conv: Constraint(case.sparse()[conv], format=INT4, learned=True, activations=StaticActivations()),
        logits: Constraint(codes=codes, temperature=1.0 if case.name == "pytorch" else None),
    }
    path = tmp_path / "training.safetensors"
    whole, whole_scales = case.trained.train(case.course(constraints, 30))
    monkeypatch.setattr(training_loop, "SAVE_SECONDS", 0)

    def stop(step, steps, loss):
        if step == 18:
            raise Interrupted

    with pytest.raises(Interrupted):
        case.train(constraints, 30, checkpoint=path, progress=stop)
    steps = []
    resumed, scales = case.trained.train(case.course(constraints, 30, checkpoint=path, progress=lambda step, *_: steps.append(step)))
    assert steps == list(range(18, 31))
    np.testing.assert_array_equal(scales[conv], whole_scales[conv])
    for name, value in values(whole).items():
        np.testing.assert_array_equal(values(resumed)[name], value, err_msg=name)
    again = case.train(constraints, 30, checkpoint=path, progress=lambda *_: pytest.fail("it is done"))
    np.testing.assert_array_equal(values(again)[conv], values(whole)[conv])
    brighter = Training({"image": 2 * case.data.inputs["image"]}, case.data.labels, learning_rate=3e-3)
    for other in ({"data": brighter}, {"budget": Budget(steps=5)}):
        with pytest.warns(UserWarning, match="another budget"):
            case.train(constraints, 30, checkpoint=path, **other)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(BrokenFile, match="training.safetensors"):
        case.train(constraints, 5, checkpoint=path)


def test_a_loss_that_turns_nan_names_step_and_layer_and_keeps_the_checkpoint(case, tmp_path):
    path = tmp_path / "training.safetensors"
    images = case.data.inputs["image"].copy()
    place = np.random.default_rng((0, 0)).permutation(2000)[32 * 3]  # the first sample of step 4
    images[place].flat[3 * 14 + 3] = np.inf
    with pytest.raises(TrainingError, match=r"steps.0 \(test\).* step 4 of 10.* layer conv.*training.safetensors"):
        case.train({}, 10, data=Training(images, case.data.labels), checkpoint=path)
    assert path.exists()


def test_a_training_that_diverges_keeps_finite_numbers(case, tmp_path):
    from safetensors.numpy import load_file

    path = tmp_path / "training.safetensors"
    with pytest.raises(TrainingError, match=r"step \d+ of 10; the first outputs that are not finite are those of layer (conv|logits)"):
        case.train({}, budget=Budget(steps=10, learning_rate=1e37), checkpoint=path)
    assert all(np.isfinite(value).all() for value in load_file(path).values())


def test_weights_that_the_last_step_breaks_are_never_returned(case):
    with pytest.raises(TrainingError, match="is not finite after step 1 of 1"):
        case.train({}, 1, data=Training(case.data.inputs, case.data.labels, case.broken))


def test_every_epoch_takes_every_sample_once_in_an_order_of_its_own(case):
    from compress.backends.training_data import Batches

    x = np.arange(64, dtype=np.float32).reshape(-1, 1, 1, 1) * np.ones((1, *case.data.inputs["image"].shape[1:]), np.float32)
    batches = Batches(case.course({}, data=Training(x, np.arange(64))), case.trained.inputs)
    epochs = [np.concatenate([batches.at(step)[1] for step in steps]) for steps in ((0, 1), (2, 3), (0, 1))]
    assert all(sorted(labels) == list(range(64)) for labels in epochs)
    assert not np.array_equal(epochs[0], epochs[1]) and np.array_equal(epochs[0], epochs[2])
    np.testing.assert_array_equal(batches.at(3)[0][0][:, 0, 0, 0], batches.at(3)[1])  # samples keep their labels


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda x, y: Training(x[:-1], y), "1999 samples.* 2000 labels"),
        (lambda x, y: Training(x[:, :, :7], y), r"shape \[1?4?,? ?1?,? ?7, 1?4?1?\].* takes \[(1, 14, 14|14, 14, 1)\]"),
        (lambda x, y: Training({"picture": x}, y), "lacks the input.* image"),
        (lambda x, y: Training(x, y + 1), "1 to 10 are not classes 0 to 9"),
        (lambda x, y: Training(x, y.astype(np.float32)), "integers, not float32"),
        (lambda x, y: Training(x, np.eye(10, dtype=int)[y]), r"labels have samples of shape \[10\]"),
        (lambda x, y: Training(x, y, "mse"), r"mse .*needs \[10\]"),
        (lambda x, y: Training(x[:0], y[:0]), "0 samples"),
    ],
)
def test_data_that_does_not_fit_is_refused_by_the_steps_name(case, given, message):
    with pytest.raises(InputError, match=r"steps.0 \(test\).*" + message):
        case.train({}, data=given(case.data.inputs["image"], case.data.labels))


def test_constraints_that_do_not_fit_are_refused(case):
    with pytest.raises(InputError, match="no tensor 'other'"):
        case.train({"other": Constraint()})
    with pytest.raises(InputError, match=rf"{case.kernels[1]}: a mask of shape \[3\]"):
        case.train({case.kernels[1]: Constraint(mask=np.ones(3, bool))})


def test_a_teacher_alone_teaches(case):
    budget = Budget(steps=250, distill=Distillation(weight=1))  # as many as the teacher took
    wrong = Training(case.data.inputs, (case.data.labels + 1) % 10, learning_rate=3e-3)  # labels that must not count
    learned = case.train({}, start=case.opened(2), budget=budget, data=wrong, teacher=case.trained)
    assert case.accuracy(learned) > 0.8
    with pytest.raises(InputError, match="no teacher"):
        case.train({}, budget=budget)


def test_a_teacher_teaches_what_layers_put_out(case):
    """From one start, with the features' error in the loss, the student's features come nearer to the teacher's."""
    layer = case.kernels[0].partition("/")[0].partition(".")[0]
    student, distances = case.opened(2), []
    for features in (None, "c*v"):
        budget = Budget(steps=60, distill=Distillation(weight=0.5, features=features, feature_weight=100))
        learned = case.train({}, start=student, budget=budget, teacher=case.trained)
        distances.append(np.square(case.features(learned) - case.features(case.trained)).mean())
        assert case.clean(learned) and case.clean(case.trained)
    assert distances[1] < 0.8 * distances[0]
    with pytest.raises(InputError, match=rf"steps.0 \(test\): distill.features: 'cnv' matches no layer; did you mean '{layer}'"):
        case.train({}, budget=Budget(steps=1, distill=Distillation(features=("conv", "cnv"))), teacher=case.trained)
    narrow = case.opened(2, filters=6)
    with pytest.raises(InputError, match=r"layer conv puts out \[\[6?.*6\]?.*\]\] for each sample, its teacher .*8.*; channels that were taken out"):
        case.train({}, start=narrow, budget=Budget(steps=1, distill=Distillation(features="conv")), teacher=case.trained)


def test_a_checkpoint_of_another_teacher_or_loss_is_not_taken_up(case, tmp_path):
    def train(**given):
        case.train({}, checkpoint=tmp_path / "training.safetensors", **given)

    budget = Budget(steps=2, distill=Distillation())
    train(budget=budget, teacher=case.trained)
    train(budget=budget, teacher=case.trained, progress=lambda *_: pytest.fail("it is done"))
    with pytest.warns(UserWarning, match="another budget"):
        train(budget=budget, teacher=case.opened(3))
    own = [Training(case.data.inputs, case.data.labels, function) for function in (case.distance, case.broken)]
    assert fingerprints(case, own[0]) == fingerprints(case, own[0]) != fingerprints(case, own[1])


def fingerprints(case, data):
    from compress.backends.training_data import Batches, fingerprint

    course = case.course({}, data=data)
    return fingerprint(course, Batches(course, case.trained.inputs), values(case.trained))


def test_softmax_outputs_of_keras_are_probabilities():
    case = training_case("keras")
    student = case.opened(2, "softmax")
    teacher = student.with_weights(values(case.trained))
    learned = case.train({}, start=student, budget=Budget(steps=120, distill=Distillation(weight=0.5)), teacher=teacher)
    assert case.accuracy(learned) > 0.7
    assert sum("softmax" in note for note in learned.notes) == 1


def test_losses_of_ones_own_and_squares(case):
    x = np.random.default_rng(0).normal(size=(64, *case.data.inputs["image"].shape[1:])).astype(np.float32)
    y = case.trained.run({"image": x})[0] + 1
    first = [case.first_loss({}, data=Training(x, y, loss)) for loss in ("mse", case.distance)]
    assert first == pytest.approx([1, 1], rel=1e-5)  # both are the mean of ones
