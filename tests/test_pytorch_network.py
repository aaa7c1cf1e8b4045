"""Laws of the PyTorch backend over a list of small models."""

import layer_oracle
import numpy as np
import pytest

from compress import compress, open_model
from compress.errors import InputError
from compress.formats import IntFormat, PerAxis
from compress.network import COMPRESSIBLE
from compress.numerics import encode

torch = pytest.importorskip("torch")
nn = torch.nn
RANDOM = np.random.default_rng


def randomized(model):
    """The model with weights as training leaves them: no zero bias, no unit variance."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if "running_var" in name or ("norm" in name and name.endswith("weight")):
                tensor.uniform_(0.5, 2.0, generator=generator)
            elif tensor.is_floating_point():
                tensor.normal_(0, 0.4, generator=generator)
    return model


class Convolutional(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.first_norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.depthwise, self.depthwise_norm = nn.Conv2d(4, 8, 3, groups=4), nn.BatchNorm2d(8, affine=False)
        self.transposed, self.transposed_norm = nn.ConvTranspose2d(8, 6, 2, groups=2), nn.BatchNorm2d(6)
        self.linear, self.linear_norm = nn.Linear(150, 5), nn.BatchNorm1d(5)

    def forward(self, image):
        x = torch.relu(self.first_norm(self.first(image)))
        x = self.transposed_norm(self.transposed(self.depthwise_norm(self.depthwise(x))))
        return self.linear_norm(self.linear(x.flatten(1)))


class Unfoldable(nn.Module):
    """Norms before any layer, behind a layer that others read too, running twice, over another axis than the layer's outputs,
    behind a tied layer, and under two names."""

    def __init__(self):
        super().__init__()
        self.before, self.read_twice, self.beside_norm = nn.BatchNorm1d(4), nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.last, self.twice_norm = nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.rows, self.axis_norm = nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.tied, self.tied_norm, self.other = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)
        self.other.weight = self.tied.weight
        self.aliased, self.alias_norm = nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.alias = nn.ModuleList([self.alias_norm])

    def forward(self, x):
        y = self.read_twice(self.before(x + self.other(self.tied_norm(self.tied(x)))))
        y = self.alias[0](self.aliased(y))
        y = self.twice_norm(self.last(self.twice_norm(y + self.beside_norm(y))))
        return self.axis_norm(self.rows(torch.stack([y, y * 2, -y, y + 1], 1)))


class ValueDependent(nn.Module):
    """Control flow on values, which torch.export refuses."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 3), nn.BatchNorm1d(3)

    def forward(self, x):
        return self.norm(self.linear(x)) if x.sum() > 0 else self.linear(x)


class TiedHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.mix, self.head = nn.Embedding(20, 8), nn.Linear(8, 8), nn.Linear(8, 20, bias=False)
        self.head.weight = self.words.weight

    def forward(self, tokens):
        return self.head(self.mix(self.words(tokens)))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.attention, self.norm = nn.Embedding(20, 8), nn.MultiheadAttention(8, 2, batch_first=True), nn.LayerNorm(8)

    def forward(self, tokens):
        x = self.words(tokens)
        return self.norm(x + self.attention(x, x, x)[0])


class TwoInputs(nn.Module):
    """Outputs of every shape that models return, and inputs that it writes into."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 2), nn.Linear(4, 2)

    def forward(self, left, right):
        total = self.a(left.mul_(2)) + self.b(right)
        return {"sum": total, "parts": (total * 2, None, [total * 3])}


class Bilinear(nn.Module):
    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.zeros(4, 4))
        self.register_buffer("offset", torch.zeros(4))

    def forward(self, x):
        return x * (x @ self.matrix) + self.offset


def bert():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 20, "max_position_embeddings": 8}
    return transformers.BertModel(transformers.BertConfig(**sizes))


IMAGE, TOKENS = (3, 8, 8), "tokens"
MODELS = {
    "convolutional": (Convolutional, IMAGE),
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(3, 4, 2), nn.ConvTranspose1d(4, 2, 3), nn.Conv1d(2, 4, 2, groups=2)), (3, 5)),
    "conv3d": (lambda: nn.Sequential(nn.Conv3d(2, 3, 2), nn.ConvTranspose3d(3, 2, 2)), (2, 4, 4, 4)),
    "grouped": (lambda: nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.Conv2d(8, 16, 1, groups=8)), (4, 6, 6)),
    "attention": (Attention, TOKENS),
    "recurrent": (lambda: nn.LSTM(3, 4, num_layers=2, bidirectional=True, batch_first=True), (5, 3)),
    "two_inputs": (TwoInputs, {"left": (3,), "right": (4,)}),
    "tied_head": (TiedHead, TOKENS),
    "bert": (bert, {"input_ids": TOKENS, "attention_mask": "ones"}),
    "unfoldable": (Unfoldable, (4,)),
    "value_dependent": (ValueDependent, (4,)),
    "unknown": (lambda: nn.Sequential(Bilinear(), nn.Linear(4, 2)), (4,)),
}


def batch(shape, size=3):
    random = RANDOM(1)
    if shape == TOKENS:
        return random.integers(0, 20, (size, 6))
    if shape == "ones":
        return np.ones((size, 6), np.int64)
    if isinstance(shape, dict):
        return {name: batch(part, size) for name, part in shape.items()}
    return random.normal(size=(size, *shape)).astype(np.float32)


@pytest.fixture(params=MODELS, scope="module")
def case(request):
    """A model in evaluation mode, a batch for it, the opened network, and the batch by input name."""
    build, shape = MODELS[request.param]
    model, data = randomized(build()).eval(), batch(shape)
    network = open_model(model, data)
    return model, data, network, data if isinstance(data, dict) else {network.inputs[0].name: data}


@torch.no_grad()
def outputs_of(model, named):
    return flat(model(**{name: torch.tensor(array) for name, array in named.items()}))


def flat(outputs):
    if outputs is None or isinstance(outputs, torch.Tensor):
        return [] if outputs is None else [outputs.numpy()]
    return [array for value in (outputs.values() if hasattr(outputs, "values") else outputs) for array in flat(value)]


def test_run_equals_the_model(case):
    model, _, network, named = case
    for ours, theirs in zip(network.run(named), outputs_of(model, named), strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * np.abs(theirs).max())  # folding moves roundings by a few float32 steps


def test_inputs_are_of_batch_one(case):
    _, _, network, named = case
    assert [spec.name for spec in network.inputs] == list(named)
    assert all(spec.shape == (1, *named[spec.name].shape[1:]) and spec.dtype == str(named[spec.name].dtype) for spec in network.inputs)


def test_the_callers_model_and_data_are_left_as_they_are(case):
    model, data, network, named = case
    arrays = {name: array.copy() for name, array in named.items()}
    before, training = {name: tensor.clone() for name, tensor in model.state_dict().items()}, model.train().training
    compress(model, "int8-weight-only", inputs=data).simulate().run(named)
    assert model.training is training and all(parameter.requires_grad for parameter in model.parameters())
    model.eval()
    assert list(before) == list(model.state_dict())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    for name, array in arrays.items():
        np.testing.assert_array_equal(named[name], array)


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
    before = {name: weight.value.copy() for name, weight in network.weights().items()}
    outputs, kinds = network.run(named), {name: weight.kind for name, weight in network.weights().items()}
    for name in [name for name in before if kinds[name] in COMPRESSIBLE]:
        changed = network.with_weights({name: before[name] + RANDOM(2).normal(0, 0.5, before[name].shape).astype(np.float32)})
        for other, weight in changed.weights().items():
            assert np.array_equal(weight.value, before[other]) == (other != name)
        assert any(not np.array_equal(a, b) for a, b in zip(changed.run(named), outputs, strict=True)), f"{name} has no effect"
    for name, weight in network.weights().items():
        np.testing.assert_array_equal(weight.value, before[name])


def test_every_tensor_is_there_once(case):
    _, _, network, _ = case
    weights = network.weights()
    buffers = [b for b in network.model.buffers() if b.is_floating_point()]
    assert sum(weight.value.size for weight in weights.values()) == sum(t.numel() for t in [*network.model.parameters(), *buffers])
    names = [name for weight in weights.values() for name in (weight.name, *weight.tied)]
    assert len(set(names)) == len(names)


SINGLE = {
    "linear": (nn.Linear(4, 5, bias=False), (4,)),
    "conv1d": (nn.Conv1d(4, 5, 3, bias=False), (4, 3)),
    "conv2d": (nn.Conv2d(4, 5, (2, 3), bias=False), (4, 2, 3)),
    "conv3d": (nn.Conv3d(4, 5, (2, 3, 2), bias=False), (4, 2, 3, 2)),
    "conv2d grouped": (nn.Conv2d(4, 6, (2, 3), groups=2, bias=False), (4, 2, 3)),
    "depthwise_conv1d": (nn.Conv1d(4, 8, 3, groups=4, bias=False), (4, 3)),
    "depthwise_conv2d": (nn.Conv2d(4, 12, (2, 3), groups=4, bias=False), (4, 2, 3)),
    "conv_transpose1d": (nn.ConvTranspose1d(4, 5, 3, bias=False), (4, 1)),
    "conv_transpose2d": (nn.ConvTranspose2d(4, 5, (2, 3), bias=False), (4, 1, 1)),
    "conv_transpose2d grouped": (nn.ConvTranspose2d(4, 6, (2, 3), groups=2, bias=False), (4, 1, 1)),
    "conv_transpose3d": (nn.ConvTranspose3d(4, 6, (2, 3, 2), groups=2, bias=False), (4, 1, 1, 1)),
}


@pytest.mark.parametrize("name", SINGLE)
def test_canonical_layout_is_what_the_layer_computes(name):
    layer, shape = SINGLE[name]
    kind = name.split()[0]
    x = batch(shape, 1)
    network = open_model(randomized(layer), x)
    (weight,) = network.weights().values()
    sample = x[0].ravel() if "transpose" in kind else x[0]
    expected = layer_oracle.layer(kind, weight.value, sample)
    found = network.run({"input": x})[0][0].reshape(expected.shape)
    assert weight.kind == kind
    assert np.all(np.abs(found - expected) <= layer_oracle.tolerance(kind, weight.value, sample))


def test_embedding_rows_are_entries():
    tokens = batch(TOKENS)
    network = open_model(nn.Embedding(20, 8), tokens)
    np.testing.assert_array_equal(network.run({"input": tokens})[0], network.weights()["weight"].value[tokens])


def test_gpt2_linear_layers_are_turned():
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    layer, x = randomized(conv1d(5, 4)), batch((4,))
    network = open_model(layer, x)
    assert network.weights()["weight"].kind == "linear"
    np.testing.assert_array_equal(network.weights()["weight"].value, layer.weight.detach().numpy().T)
    changed = network.with_weights({"weight": np.zeros((5, 4), np.float32)})
    np.testing.assert_array_equal(changed.run({"x": x})[0], np.broadcast_to(layer.bias.detach().numpy(), (3, 5)))


def test_per_channel_scales_belong_to_output_channels():
    network = open_model(randomized(Convolutional()).eval(), batch(IMAGE))
    for name in ("first.weight", "depthwise.weight", "transposed.weight", "linear.weight"):
        value = network.weights()[name].value
        encoded = encode(value, IntFormat(8, PerAxis(), rule="narrow"))
        np.testing.assert_allclose(encoded.scales, np.abs(value).reshape(len(value), -1).max(1) / 127, rtol=1e-6)
        error = np.abs(network.with_weights({name: encoded.decode()}).weights()[name].value - value)
        assert np.all(error.reshape(len(value), -1).max(1) <= encoded.scales * 0.501)  # half a step, and the float32 rounding of code * scale


def test_tied_weights_stay_tied():
    network = open_model(TiedHead(), batch(TOKENS))
    assert (network.weights()["words.weight"].kind, network.weights()["words.weight"].tied) == ("embedding", ("head.weight",))
    changed = network.with_weights({"words.weight": np.ones((20, 8), np.float32)}).model
    assert changed.head.weight is changed.words.weight
    assert torch.all(changed.head.weight == 1)


def test_attention_and_recurrent_kernels_are_named_as_such():
    attention = open_model(Attention(), batch(TOKENS)).weights()
    assert attention["attention.in_proj_weight"].kind == "attention" and attention["attention.in_proj_weight"].value.shape == (24, 8)
    assert attention["attention.out_proj.weight"].kind == "linear" and attention["norm.weight"].kind == "norm"
    recurrent = open_model(MODELS["recurrent"][0](), batch((5, 3))).weights()
    assert {weight.kind for name, weight in recurrent.items() if name.startswith("weight")} == {"recurrent"}
    assert {weight.kind for name, weight in recurrent.items() if name.startswith("bias")} == {"bias"}


def test_folding_leaves_no_norm_and_says_so():
    network = open_model(randomized(Convolutional()), batch(IMAGE))
    assert network.notes == ("4 batch norms folded into the layers before them",)
    assert not any(weight.kind == "norm" for weight in network.weights().values())
    assert network.weights()["first.bias"].value.shape == (4,)


def test_what_cannot_be_folded_is_named():
    network = open_model(randomized(Unfoldable()), batch((4,)))
    (note,) = network.notes
    assert all(name in note for name in ("before", "beside_norm", "twice_norm", "axis_norm", "tied_norm", "alias_norm"))
    assert sum(weight.kind == "norm" for weight in network.weights().values()) == 18  # gamma, mean and variance of each


def test_code_that_looks_at_values_keeps_its_norms_and_says_so():
    network = open_model(ValueDependent(), batch((4,)))
    assert "batch norms were not folded, since torch.export refused the model" in network.notes[0]
    assert network.weights()["norm.running_var"].kind == "norm"


def test_nan_weights_are_named():
    model = Convolutional()
    with torch.no_grad():
        model.linear.weight.fill_(float("nan"))
    with pytest.raises(InputError, match="linear.weight: .*NaN"):
        compress(model, "int8-weight-only", inputs=batch(IMAGE))


def test_unknown_layer_types_are_named():
    network = open_model(MODELS["unknown"][0](), batch((4,)))
    assert network.weights()["0.matrix"].kind == "parameter" and network.weights()["0.offset"].kind == "buffer"
    assert any("Bilinear 0" in note for note in network.notes)


def test_wrong_names_and_shapes_are_named():
    network = open_model(Convolutional().eval(), batch(IMAGE))
    with pytest.raises(InputError, match="no tensor 'linear.wieght'"):
        network.with_weights({"linear.wieght": np.zeros((5, 150))})
    with pytest.raises(InputError, match=r"linear.weight: .*\[1, 150\].*\[5, 150\]"):
        network.with_weights({"linear.weight": np.zeros((1, 150))})


def test_models_that_cannot_be_opened_say_what_to_do():
    with pytest.raises(InputError, match="give `inputs`"):
        open_model(Convolutional())
    with pytest.raises(InputError, match=r"does not run on the first sample \(image \[1, 3, 2, 2\] float32\)"):
        open_model(Convolutional(), batch((3, 2, 2)))
    with pytest.raises(InputError, match="forward takes left, right; the data has left, top"):
        open_model(TwoInputs(), {"left": batch((3,)), "top": batch((4,))})
    with pytest.raises(InputError, match="output of type str"):
        open_model(Talkative(), batch((4,)))


class Talkative(nn.Linear):
    def __init__(self):
        super().__init__(4, 4)

    def forward(self, x):
        return super().forward(x), "done"
