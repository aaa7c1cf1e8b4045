"""Laws of the Keras backend over a list of small models."""

import layer_oracle
import numpy as np
import pytest

from compress import compress, open_model
from compress.errors import InputError
from compress.formats import IntFormat, PerAxis
from compress.network import COMPRESSIBLE
from compress.numerics import encode

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")
layers = keras.layers
RANDOM = np.random.default_rng


def randomized(model):
    """The model with weights as training leaves them: no zero bias, no unit variance."""
    random = RANDOM(0)
    for variable in model.weights:
        positive = "variance" in variable.name or "gamma" in variable.name
        variable.assign(random.uniform(0.5, 2.0, variable.shape) if positive else random.normal(0, 0.4, variable.shape))
    return model


def sequential(shape, *parts, dtype="float32"):
    return keras.Sequential([keras.Input(shape, dtype=dtype, name="x"), *parts])


def convolutional():
    return sequential(
        (8, 8, 3),
        layers.Conv2D(4, 3, use_bias=False, name="first"),
        layers.BatchNormalization(name="first_norm"),
        layers.ReLU(),
        layers.SeparableConv2D(6, 3, depth_multiplier=2, name="separable"),
        layers.BatchNormalization(scale=False, name="separable_norm"),
        layers.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise"),
        layers.BatchNormalization(center=False, name="depthwise_norm"),
        layers.Conv2DTranspose(5, 2, use_bias=False, name="transposed"),
        layers.BatchNormalization(name="transposed_norm"),
        layers.Flatten(),
        layers.Dense(5, name="dense"),
        layers.BatchNormalization(name="dense_norm"),
    )


def nested():
    x = keras.Input((8, 8, 3), name="image")
    inner = convolutional()
    inner.name = "inner"
    y = layers.BatchNormalization(name="norm")(layers.Dense(4, name="head")(inner(x)))
    return keras.Model(x, [y, keras.ops.relu(y)])


def attention():
    tokens = keras.Input((6,), dtype="int32", name="tokens")
    x = layers.Embedding(20, 8, name="words")(tokens)
    x = layers.LayerNormalization(name="norm")(x + layers.MultiHeadAttention(2, 4, name="attention")(x, x))
    return keras.Model(tokens, layers.EinsumDense("abc,cd->abd", (None, 5), bias_axes="d", name="einsum")(x))


def recurrent():
    return sequential((5, 3), layers.Bidirectional(layers.LSTM(4, return_sequences=True, name="lstm"), name="both"), layers.GRU(3, name="gru"), layers.Dense(2))


def two_inputs():
    given = {"left": keras.Input((3,), name="left"), "right": keras.Input((4,), name="right")}
    return keras.Model(given, {"sum": layers.Dense(2, name="a")(given["left"]) + layers.Dense(2, name="b")(given["right"])})


def tied_head():
    tokens = keras.Input((6,), dtype="int32", name="tokens")
    embedding = layers.ReversibleEmbedding(20, 8, name="words")
    return keras.Model(tokens, embedding(layers.Dense(8, name="mix")(embedding(tokens)), reverse=True))


def shared_inside():
    """One dense layer that two nested models use."""
    shared = layers.Dense(4, name="shared")
    x = keras.Input((4,), name="x")
    first, second = (keras.Sequential([keras.Input((4,)), shared], name=name) for name in ("first", "second"))
    return keras.Model(x, second(first(x)))


def unfoldable():
    """A norm before any layer, one behind a layer that others read too, one behind a relu, one that runs twice."""
    x = keras.Input((6, 6, 3), name="x")
    y = layers.BatchNormalization(name="before")(x)
    y = layers.Conv2D(4, 1, name="read_twice")(y)
    y = y + layers.BatchNormalization(name="beside")(y)
    y = layers.BatchNormalization(name="behind_relu")(layers.Conv2D(4, 1, activation="relu", name="active")(y))
    twice = layers.BatchNormalization(name="twice")
    return keras.Model(x, twice(layers.Conv2D(4, 1, name="last")(twice(y))))


class Block(keras.Model):
    def __init__(self, filters=4):
        super().__init__()
        self.filters = filters
        self.convolution = layers.Conv2D(filters, 3, use_bias=False)
        self.norm = layers.BatchNormalization()
        self.heads = [layers.Dense(5), layers.Dense(3)]

    def call(self, x, training=None):
        x = keras.ops.relu(self.norm(self.convolution(x), training=training))
        return [head(x) for head in self.heads]


class OwnCode(Block):
    """Cannot run on symbolic tensors: it looks at values."""

    def call(self, x, training=None):
        x = self.norm(self.convolution(x), training=training)
        return tf.cond(tf.reduce_sum(x) > 0, lambda: self.heads[0](x), lambda: self.heads[0](-x)) + self.heads[1](x)[..., :1]


class Bilinear(keras.layers.Layer):
    def build(self, shape):
        self.matrix = self.add_weight(shape=(shape[-1], shape[-1]), name="matrix")

    def call(self, x):
        return x * keras.ops.matmul(x, self.matrix)


def built(model, shape):
    model(np.zeros((2, *shape), np.float32))
    return model


IMAGE, SERIES = (8, 8, 3), (5, 3)
MODELS = {
    "convolutional": (convolutional, IMAGE),
    "nested": (nested, IMAGE),
    "conv1d": (lambda: sequential(SERIES, layers.Conv1D(4, 2), layers.Conv1DTranspose(2, 3), layers.DepthwiseConv1D(2, depth_multiplier=2)), SERIES),
    "conv3d": (lambda: sequential((4, 4, 4, 2), layers.Conv3D(3, 2), layers.Conv3DTranspose(2, 2)), (4, 4, 4, 2)),
    "grouped": (lambda: sequential((6, 6, 4), layers.Conv2D(8, 3, groups=2), layers.Conv2D(16, 1, groups=8)), (6, 6, 4)),
    "attention": (attention, "tokens"),
    "recurrent": (recurrent, SERIES),
    "two_inputs": (two_inputs, {"left": (3,), "right": (4,)}),
    "tied_head": (tied_head, "tokens"),
    "shared_inside": (shared_inside, (4,)),
    "unfoldable": (unfoldable, (6, 6, 3)),
    "lambda": (lambda: sequential((4,), layers.Dense(3), layers.Lambda(lambda x: x * 2)), (4,)),
    "unknown": (lambda: sequential((4,), Bilinear(name="bilinear"), layers.Dense(2)), (4,)),
    "deferred": (lambda: built(keras.Sequential([layers.Dense(3), layers.BatchNormalization()]), (4,)), (4,)),
    "subclassed": (lambda: built(Block(), IMAGE), IMAGE),
    "own_code": (lambda: built(OwnCode(), IMAGE), IMAGE),
}


def batch(shape, size=3):
    random = RANDOM(1)
    if shape == "tokens":
        return random.integers(0, 20, (size, 6)).astype(np.int32)
    if isinstance(shape, dict):
        return {name: batch(part, size) for name, part in shape.items()}
    return random.normal(size=(size, *shape)).astype(np.float32)


@pytest.fixture(params=MODELS, scope="module")
def case(request):
    """A model, a batch for it as the framework takes it, the opened network, and the batch by input name."""
    build, shape = MODELS[request.param]
    model, data = randomized(build()), batch(shape)
    network = open_model(model, data)
    return model, data, network, data if isinstance(data, dict) else {network.inputs[0].name: data}


def outputs_of(model, data):
    return [np.asarray(t) for t in keras.tree.flatten(model(data, training=False))]


def test_run_equals_the_model(case):
    model, data, network, named = case
    for ours, theirs in zip(network.run(named), outputs_of(model, data), strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * np.abs(theirs).max())  # folding moves roundings by a few float32 steps


def test_inputs_are_of_batch_one(case):
    _, data, network, named = case
    assert [spec.name for spec in network.inputs] == list(named)
    assert all(spec.shape == (1, *named[spec.name].shape[1:]) and spec.dtype == str(named[spec.name].dtype) for spec in network.inputs)


def test_the_callers_model_is_left_as_it_is(case):
    model, data, _, _ = case
    before = [v.numpy() for v in model.weights], [layer.name for layer in model._flatten_layers()], outputs_of(model, data)
    compress(model, "int8-weight-only", inputs=data).simulate()
    after = [v.numpy() for v in model.weights], [layer.name for layer in model._flatten_layers()], outputs_of(model, data)
    assert before[1] == after[1]
    for old, new in zip(before[0] + before[2], after[0] + after[2], strict=True):
        np.testing.assert_array_equal(old, new)


def test_its_own_weights_change_nothing(case):
    _, _, network, named = case
    again = network.with_weights({name: weight.value for name, weight in network.weights().items()})
    assert list(again.weights()) == list(network.weights())
    for name, weight in network.weights().items():
        np.testing.assert_array_equal(again.weights()[name].value, weight.value)
    for ours, theirs in zip(again.run(named), network.run(named), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_with_weights_changes_only_what_is_named(case):
    _, _, network, named = case
    before, outputs = network.weights(), network.run(named)
    for name in [name for name, weight in before.items() if weight.kind in COMPRESSIBLE]:
        changed = network.with_weights({name: before[name].value + RANDOM(2).normal(0, 0.5, before[name].value.shape)})
        for other, weight in changed.weights().items():
            assert np.array_equal(weight.value, before[other].value) == (other != name)
        assert any(not np.array_equal(a, b) for a, b in zip(changed.run(named), outputs, strict=True)), f"{name} has no effect"
    for name, weight in network.weights().items():
        np.testing.assert_array_equal(weight.value, before[name].value)


def test_every_variable_is_there_once(case):
    _, _, network, _ = case
    weights = network.weights()
    assert sum(weight.value.size for weight in weights.values()) == sum(int(np.prod(v.shape)) for v in network.model.weights)
    names = [name for weight in weights.values() for name in (weight.name, *weight.tied)]
    assert len(set(names)) == len(names)


SINGLE = {
    "linear": (layers.Dense(5, use_bias=False), (4,)),
    "conv1d": (layers.Conv1D(5, 3, use_bias=False), (3, 4)),
    "conv2d": (layers.Conv2D(5, (2, 3), use_bias=False), (2, 3, 4)),
    "conv3d": (layers.Conv3D(5, (2, 3, 2), use_bias=False), (2, 3, 2, 4)),
    "conv2d grouped": (layers.Conv2D(6, (2, 3), groups=2, use_bias=False), (2, 3, 4)),
    "depthwise_conv1d": (layers.DepthwiseConv1D(3, depth_multiplier=2, use_bias=False), (3, 4)),
    "depthwise_conv2d": (layers.DepthwiseConv2D((2, 3), depth_multiplier=3, use_bias=False), (2, 3, 4)),
    "depthwise_conv2d by groups": (layers.Conv2D(8, (2, 3), groups=4, use_bias=False), (2, 3, 4)),
    "conv_transpose1d": (layers.Conv1DTranspose(5, 3, use_bias=False), (1, 4)),
    "conv_transpose2d": (layers.Conv2DTranspose(5, (2, 3), use_bias=False), (1, 1, 4)),
    "conv_transpose3d": (layers.Conv3DTranspose(5, (2, 3, 2), use_bias=False), (1, 1, 1, 4)),
    "linear of many axes": (layers.EinsumDense("ab,bcd->acd", (2, 3)), (4,)),
    "linear that sums many axes": (layers.EinsumDense("abc,bcd->ad", (5,)), (2, 4)),
}


@pytest.mark.parametrize("name", SINGLE)
def test_canonical_layout_is_what_the_layer_computes(name):
    layer, shape = SINGLE[name]
    kind, transposed = name.split()[0], "transpose" in name
    network = open_model(randomized(sequential(shape, layer)))
    (weight,) = network.weights().values()
    x = batch(shape, 1)
    first = np.moveaxis(x[0], -1, 0) if "conv" in kind else x[0].ravel()
    expected = layer_oracle.layer(kind, weight.value, first.ravel() if transposed else first)
    found = network.run({"x": x})[0][0]
    found = np.moveaxis(found, -1, 0) if "conv" in kind else found.ravel()
    assert weight.kind == kind
    assert np.all(np.abs(found.reshape(expected.shape) - expected) <= layer_oracle.tolerance(kind, weight.value, first.ravel() if transposed else first))


def test_embedding_rows_are_entries():
    network = open_model(randomized(sequential((6,), layers.Embedding(20, 8, name="words"), dtype="int32")))
    tokens = batch("tokens")
    np.testing.assert_array_equal(network.run({"x": tokens})[0], network.weights()["words/embeddings"].value[tokens])


def test_attention_projections_have_one_row_per_output():
    weights = open_model(attention()).weights()
    shapes = {name: weight.value.shape for name, weight in weights.items() if weight.kind == "linear"}
    assert shapes == {f"attention/{part}/kernel": (8, 8) for part in ("query", "key", "value", "attention_output")} | {"einsum/kernel": (5, 8)}
    model = attention()
    kernel = model.get_layer("attention").weights[0].numpy()  # query: [in, heads, size]
    np.testing.assert_array_equal(open_model(model).weights()["attention/query/kernel"].value, kernel.reshape(8, 8).T)


def test_per_channel_scales_belong_to_output_channels():
    network = open_model(randomized(convolutional()))
    for name in ("first/kernel", "depthwise/kernel", "dense/kernel"):
        value = network.weights()[name].value
        encoded = encode(value, IntFormat(8, PerAxis(), rule="narrow"))
        np.testing.assert_allclose(encoded.scales, np.abs(value).reshape(len(value), -1).max(1) / 127, rtol=1e-6)
        error = np.abs(network.with_weights({name: encoded.decode()}).weights()[name].value - value)
        assert np.all(error.reshape(len(value), -1).max(1) <= encoded.scales * 0.501)  # half a step, and the float32 rounding of code * scale


def test_tied_weights_stay_tied():
    head = open_model(tied_head())
    assert [w.name for w in head.weights().values() if w.kind == "embedding"] == ["words/embeddings"]
    shared = open_model(shared_inside()).weights()
    assert shared["first/shared/kernel"].tied == ("second/shared/kernel",)
    assert "second/shared/kernel" not in shared


def test_recurrent_kernels_are_named_as_such():
    kinds = {name: weight.kind for name, weight in open_model(recurrent()).weights().items()}
    assert kinds["both/forward_lstm/lstm_cell/kernel"] == kinds["gru/gru_cell/recurrent_kernel"] == "recurrent"
    assert kinds["gru/gru_cell/bias"] == "bias"


def test_folding_leaves_no_norm_and_says_so():
    network = open_model(randomized(convolutional()))
    assert network.notes == ("5 batch norms folded into the layers before them",)
    assert not any(weight.kind == "norm" for weight in network.weights().values())
    assert network.weights()["first/bias"].value.shape == (4,)


def test_what_cannot_be_folded_is_named():
    network = open_model(randomized(unfoldable()))
    (note,) = network.notes
    assert all(name in note for name in ("before", "beside", "behind_relu", "twice"))
    assert sum(weight.kind == "norm" for weight in network.weights().values()) == 16


def test_a_subclassed_model_of_layers_becomes_functional():
    network = open_model(built(Block(), IMAGE), batch(IMAGE))
    assert type(network.model).__name__ == "Functional"
    assert network.notes == ("1 batch norms folded into the layers before them",)


def test_code_that_looks_at_values_stays_code_with_an_exact_identity():
    network = open_model(randomized(built(OwnCode(), IMAGE)), batch(IMAGE))
    assert type(network.model) is OwnCode
    assert "stays its own code" in network.notes[0] and "1 batch norms folded" in network.notes[1]
    norm = network.model.norm
    scale = norm.gamma.numpy() / np.sqrt(norm.moving_variance.numpy() + np.float32(norm.epsilon))
    np.testing.assert_array_equal(scale, np.ones(4, np.float32))
    np.testing.assert_array_equal(norm.moving_mean.numpy(), np.zeros(4, np.float32))


def test_litert_converter_finds_nothing_to_fold():
    """Constants of the float .tflite are the network's own weights: the converter does no arithmetic on them any more."""
    interpreter_of = pytest.importorskip("ai_edge_litert.interpreter").Interpreter
    network = open_model(randomized(convolutional()))
    call = tf.function(lambda x: network.call(network.model, [x]), input_signature=[tf.TensorSpec(network.inputs[0].shape)], autograph=False)
    holder = tf.Module()
    holder.call, holder.held = call, [variable.value for variable in network.model.variables]  # unfrozen unless something holds them
    interpreter = interpreter_of(model_content=tf.lite.TFLiteConverter.from_concrete_functions([call.get_concrete_function()], holder).convert())
    interpreter.allocate_tensors()
    constants = [interpreter.get_tensor(t["index"]) for t in interpreter.get_tensor_details() if t["name"] and is_constant(interpreter, t["index"])]
    for name, weight in network.weights().items():
        if weight.kind in ("conv2d", "depthwise_conv2d", "linear"):
            axes = (1, *range(2, weight.value.ndim), 0) if weight.kind == "depthwise_conv2d" else (0, *range(2, weight.value.ndim), 1)
            expected = weight.value.transpose(axes)
            assert any(c.shape == expected.shape and np.abs(c - expected).max() <= 1e-6 for c in constants), name


def is_constant(interpreter, index):
    try:
        interpreter.get_tensor(index)
    except ValueError:
        return False
    return True


def test_nan_weights_are_named():
    model = convolutional()
    model.get_layer("dense").kernel.assign(np.full((45, 5), np.nan))
    with pytest.raises(InputError, match="dense/kernel: .*NaN"):
        compress(model, "int8-weight-only")


def test_unknown_layer_types_are_named():
    network = open_model(MODELS["unknown"][0]())
    assert network.weights()["bilinear/matrix"].kind == "parameter"
    assert any("Bilinear bilinear" in note for note in network.notes)


def test_a_value_of_the_wrong_shape_is_named():
    network = open_model(convolutional())
    with pytest.raises(InputError, match=r"dense/kernel: .*\[5, 5\].*\[5, 45\]"):
        network.with_weights({"dense/kernel": np.zeros((5, 5))})


def test_models_without_weights_or_shapes_say_what_to_do():
    with pytest.raises(InputError, match="not built"):
        open_model(keras.Sequential([layers.Dense(3)]))
    with pytest.raises(InputError, match="give `inputs`"):
        open_model(built(Block(), IMAGE))
    with pytest.raises(InputError, match="leaves input shapes open.*give `inputs`"):
        open_model(sequential((None, 3), layers.Conv1D(2, 2)))


def test_open_shapes_come_from_the_data():
    network = open_model(sequential((None, 3), layers.Conv1D(2, 2)), batch(SERIES))
    assert network.inputs[0].shape == (1, 5, 3)


def test_another_keras_backend_is_refused(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(InputError, match="KERAS_BACKEND=tensorflow"):
        open_model(convolutional())


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_files_open_as_what_was_saved(tmp_path, suffix):
    model = randomized(convolutional())
    model.save(tmp_path / f"model{suffix}")
    ours, theirs = open_model(tmp_path / f"model{suffix}"), open_model(model)
    for name, weight in theirs.weights().items():
        np.testing.assert_array_equal(ours.weights()[name].value, weight.value)


def test_lambda_code_in_a_file_is_not_run_unasked(tmp_path):
    for suffix in (".keras", ".h5"):
        MODELS["lambda"][0]().save(tmp_path / f"model{suffix}")
        with pytest.raises(InputError, match="Lambda layer.*safe_mode=False"):
            open_model(tmp_path / f"model{suffix}")


def test_damaged_and_bare_files_say_what_to_do(tmp_path):
    (tmp_path / "bad.keras").write_bytes(b"no zip")
    (tmp_path / "bad.h5").write_bytes(b"no hdf5")
    for name in ("bad.keras", "bad.h5"):
        with pytest.raises(InputError, match=name):
            open_model(tmp_path / name)
    convolutional().save_weights(tmp_path / "only.weights.h5")
    with pytest.raises(InputError, match="weights without a model"):
        open_model(tmp_path / "only.weights.h5")
    tf.saved_model.save(tf.Module(), tmp_path / "bare")
    with pytest.raises(InputError, match="without Keras layers"):
        open_model(tmp_path / "bare")


@pytest.fixture(scope="module")
def old():
    """A trained-looking tf_keras model with layers whose configuration changed since, and its outputs."""
    tf_keras = pytest.importorskip("tf_keras")
    parts = tf_keras.layers
    x = tf_keras.Input((8, 8, 3))
    y = parts.BatchNormalization()(parts.Conv2D(4, 3, use_bias=False, name="first")(x))
    y = parts.SeparableConv2D(4, 1)(parts.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise")(y))
    y = parts.Dense(3, name="dense")(parts.LSTM(5, name="lstm")(parts.Reshape((16, 4))(y)))
    model = tf_keras.Model(x, y)
    random = RANDOM(0)
    model.set_weights([random.uniform(0.1, 0.9, w.shape) for w in model.get_weights()])
    return model, np.asarray(model(batch(IMAGE), training=False))


@pytest.mark.parametrize("form", ["live", "h5", "saved_model"])
def test_keras_2_models_open_in_every_form(old, form, tmp_path):
    model, expected = old
    if form == "h5":
        model.save(tmp_path / "old.h5")
    elif form == "saved_model":
        model.save(tmp_path / "old", save_format="tf")
    network = open_model({"live": model, "h5": tmp_path / "old.h5", "saved_model": tmp_path / "old"}[form])
    np.testing.assert_allclose(network.run({network.inputs[0].name: batch(IMAGE)})[0], expected, rtol=1e-5, atol=1e-5)
    assert network.weights()["depthwise/kernel"].value.shape == (8, 1, 3, 3)
