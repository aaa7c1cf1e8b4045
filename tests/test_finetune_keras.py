"""LoRA of Keras models: enable_lora on a copy, trained by fit."""

import numpy as np
import pytest

from compress.errors import InputError, TrainingError
from compress.finetune import Budget, Samples, finetune, load_method, trainable_table

keras = pytest.importorskip("keras")
pytest.importorskip("tensorflow")
layers = keras.layers
RANDOM = np.random.default_rng(0)
DATA = Samples({"tokens": RANDOM.integers(0, 20, (24, 6)).astype(np.int32)}, RANDOM.integers(0, 3, 24))


def model(ends="softmax"):
    keras.utils.set_random_seed(0)
    tokens = keras.Input((6,), dtype="int32", name="tokens")
    x = layers.Embedding(20, 8, name="words")(tokens)
    x = layers.EinsumDense("abc,cde->abde", output_shape=(6, 2, 4), bias_axes="de", name="heads")(x)
    x = layers.BatchNormalization(name="norm")(layers.Flatten()(x))
    x = keras.Sequential([keras.Input((48,)), layers.Dense(16, "relu", name="inner")], name="block")(x)
    return keras.Model(tokens, layers.Dense(3, ends, name="head")(x))


def lora(**changes):
    return load_method("lora", **{"rank": 2, "targets": ("words", "heads", "block/inner"), "also": "head"} | changes)


def arrays(model):
    return [variable.numpy() for variable in model.variables]


def test_only_lora_and_also_learn_and_the_callers_model_stays():
    given = model()
    before, flags = arrays(given), [v.trainable for v in given.variables]
    tuned = finetune(given, lora(), DATA, Budget(epochs=3, batch=8, learning_rate=0.05), test=DATA)
    assert all(np.array_equal(a, b) for a, b in zip(before, arrays(given), strict=True)) and flags == [v.trainable for v in given.variables]
    learns = tuned.adapted.trainable()
    assert {name.rpartition(".")[0] for name in learns} == {"words", "heads", "block.inner", "head"}
    formula = 2 * (20 + 8) + 2 * (8 * 2 + 4) + 2 * (48 + 16) + 16 * 3 + 3
    assert sum(np.prod(v.shape) for v in learns.values()) == formula == trainable_table(tuned.adapted)[-1].learn
    old = {v.path: v.numpy() for v in given.variables}
    for variable in tuned.model.variables:
        if variable.path in old:
            assert np.array_equal(old[variable.path], variable.numpy()) != variable.path.startswith("head/"), variable.path
    losses = [entry["loss"] for entry in tuned.log if "loss" in entry]
    assert len(losses) == 9 and losses[-1] < losses[0] and tuned.scores.shape == (24,) and tuned.log[-1]["score"] == pytest.approx(tuned.scores.mean())


@pytest.mark.parametrize("ends", ["softmax", None])
def test_before_anything_is_learned_the_outputs_are_the_models(ends):
    from compress.finetune.keras_lora import adapt_keras

    given = model(ends)
    assert np.array_equal(given(DATA.inputs["tokens"]).numpy(), adapt_keras(given, lora(), DATA, 0).model(DATA.inputs["tokens"]).numpy())


def test_merged_weights_compute_the_same_without_lora():
    from compress.finetune.keras_lora import merged

    given = model()
    tuned = finetune(given, lora(stabilized=True), DATA, Budget(steps=3, batch=8, learning_rate=0.05))
    plain = merged(given, tuned.adapted, DATA)
    assert [v.path for v in plain.variables] == [v.path for v in given.variables]
    assert np.allclose(plain(DATA.inputs["tokens"]), tuned.model(DATA.inputs["tokens"]), atol=1e-6)
    assert not np.allclose(plain(DATA.inputs["tokens"]), given(DATA.inputs["tokens"]), atol=1e-3)


def test_parts_of_a_batch_add_up_and_seeds_repeat():
    data = Samples({"x": RANDOM.normal(size=(24, 6)).astype(np.float32)}, DATA.labels)
    small = keras.Sequential([keras.Input((6,)), layers.Dense(8, "relu", name="inner"), layers.Dense(3, name="head")])
    budget, method = Budget(steps=4, batch=8, learning_rate=0.01), load_method("lora", rank=2)
    changes = ({}, {"accumulate": 2}, {}, {"seed": 1})
    runs = [finetune(small, method, data, budget.model_copy(update=change)).log for change in changes]
    whole, parts, again, other = ([entry["loss"] for entry in log] for log in runs)
    assert whole == again != other and len(parts) == 4
    assert np.allclose(whole, parts, atol=1e-5)  # sums of gradients in another order
    assert [e["rate"] for e in runs[0]] == pytest.approx([0.01 * Budget(steps=4).factor(i, 4) for i in range(4)])


def test_training_stops_when_evaluations_no_longer_improve():
    log = finetune(model(), lora(), DATA, Budget(steps=40, batch=8, learning_rate=3.0, evaluate_every=1, patience=2, clip=None), test=DATA).log
    assert log[-1]["step"] < 40


@pytest.mark.parametrize(
    ("method", "budget", "options", "said"),
    [
        ({}, {"precision": "bfloat16"}, {}, "budget.precision"),
        ({}, {"optimizer": "adamw8bit"}, {}, "budget.optimizer"),
        ({}, {"recompute": True}, {}, "budget.recompute"),
        ({}, {"compile": True}, {}, "budget.compile"),
        ({}, {}, {"task": "causal_lm"}, "not for causal_lm"),
        ({}, {}, {"checkpoint": "x.safetensors"}, "checkpoint: Keras"),
        ({"dropout": 0.1}, {}, {}, "dropout: Keras' enable_lora has nothing like it"),
        ({"base": "bnb.nf4.dq"}, {}, {}, "base: Keras' enable_lora has nothing like it"),
        ({"targets": "norm"}, {}, {}, "targets: 'norm' matches no Dense, EinsumDense or Embedding layer"),
        ({"also": "hed"}, {}, {}, "also: 'hed' matches no layer; did you mean 'head'"),
        ({"rank": 5}, {}, {}, "heads: rank 5 does not fit"),
    ],
)
def test_what_keras_cannot_do_is_refused(method, budget, options, said):
    with pytest.raises(InputError, match=said):
        finetune(model(), lora(**method), DATA, Budget(**{"steps": 1, "batch": 8} | budget), **options)


def test_bad_data_is_refused():
    with pytest.raises(InputError, match="are not classes 0 to 2"):
        finetune(model(), lora(), Samples(DATA.inputs, DATA.labels + 1), Budget(steps=1))
    with pytest.raises(InputError, match="bucket=False"):
        masked = Samples({"tokens": DATA.inputs["tokens"], "attention_mask": np.ones((24, 6), int)}, DATA.labels)
        finetune(model(), lora(), masked, Budget(steps=1))
    with pytest.raises(InputError, match="fine-tuned by lora"):
        finetune(model(), "bitfit", DATA, Budget(steps=1))
    with pytest.raises(TrainingError, match="the loss is nan at step"):
        broken = model()
        broken.get_layer("head").bias.assign([np.nan] * 3)
        finetune(broken, lora(), DATA, Budget(steps=2))
