"""Laws of removed channels, over small models of both frameworks that couple channels in every way that is followed."""

import functools

import numpy as np
import pytest

from compress import compress, open_model
from compress.channels import Group, Slice, choose, scores
from compress.errors import InputError
from compress.network import Weight


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((1, *shape)).astype(np.float32)


def torch_model(name: str):
    pytest.importorskip("torch_pruning")
    import torch
    from torch import nn

    class Residual(nn.Module):
        """A sum, a depthwise convolution inside its branch, a concatenation, an unfolded batch norm, a flatten."""

        def __init__(self):
            super().__init__()
            self.stem, self.expand = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 1)
            self.depthwise, self.project = nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.Conv2d(12, 8, 1)
            self.side, self.norm = nn.Conv2d(8, 6, 1), nn.BatchNorm2d(14)
            self.hidden, self.logits = nn.Linear(14 * 16, 20), nn.Linear(20, 5)

        def forward(self, x):
            x = torch.relu(self.stem(x))
            x = x + self.project(torch.relu(self.depthwise(torch.relu(self.expand(x)))))
            x = self.norm(torch.cat([x, torch.relu(self.side(x))], 1))
            return self.logits(torch.relu(self.hidden(torch.flatten(nn.functional.max_pool2d(x, 2), 1))))

    class Mixing(nn.Module):
        """Everything between its layers looks at several channels, but for the identity behind `plain`."""

        def __init__(self):
            super().__init__()
            self.softmax, self.plain, self.shuffled = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
            self.grouped, self.normed, self.summed, self.logits = nn.Conv2d(8, 8, 1, groups=2), nn.Linear(8, 12), nn.Linear(12, 6), nn.Linear(6, 4)
            self.norm = nn.LayerNorm(12)

        def forward(self, x):
            x = self.shuffled(self.plain(torch.softmax(self.softmax(x), 1)))
            x = self.grouped(x.view(-1, 2, 4, 6, 6).transpose(1, 2).reshape(-1, 8, 6, 6)).mean((2, 3))
            return self.logits(self.summed(self.norm(self.normed(x))).cumsum(1))

    class Attention(nn.Module):
        """Four heads of 4 channels, as Hugging Face's models lay them out, in a residual branch between layer norms."""

        def __init__(self):
            super().__init__()
            self.head_dim, self.norm = 4, nn.LayerNorm(8)
            self.query, self.key, self.value, self.out = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 8)
            self.up, self.down, self.logits = nn.Linear(8, 20), nn.Linear(20, 8), nn.Linear(8, 3)

        def forward(self, x):
            x = x.flatten(1, 2)
            query, key, value = (layer(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for layer in (self.query, self.key, self.value))
            mixed = nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
            x = self.norm(x + self.out(mixed))
            return self.logits(x + self.down(torch.relu(self.up(x))))

    def sequential():
        first = (nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.ConvTranspose2d(16, 8, 2, stride=2), nn.ReLU())
        return nn.Sequential(*first, nn.Flatten(), nn.Linear(8 * 144, 10, bias=False), nn.ReLU(), nn.Linear(10, 3))

    torch.manual_seed(0)
    model = {"sequential": sequential, "residual": Residual, "mixing": Mixing, "attention": Attention}[name]()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
    return open_model(model, noise(3, 8, 8))


def keras_model(name: str):
    keras = pytest.importorskip("keras")
    layers = keras.layers

    def sequential():
        first = [layers.Conv2D(8, 3, use_bias=False, name="conv"), layers.BatchNormalization(), layers.ReLU()]
        return keras.Sequential([keras.Input((8, 8, 3)), *first, layers.Flatten(), layers.Dense(12, "relu", name="hidden"), layers.Dense(3)])

    def residual():
        """The torch model of this name, with a depthwise multiplier, a separable and a transposed convolution and a layer that runs twice."""
        x = keras.Input((8, 8, 3), name="x")
        stem = layers.Conv2D(8, 3, padding="same", name="stem")(x)
        y = layers.Conv2D(12, 1, activation="relu", name="expand")(stem)
        y = layers.ReLU()(layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2, name="depthwise")(y))
        y = layers.Add()([layers.Conv2D(8, 1, name="project")(layers.BatchNormalization(name="inside")(y)), stem])
        side = keras.ops.relu(layers.SeparableConv2D(6, 3, padding="same", depth_multiplier=2, name="side")(y))
        y = layers.BatchNormalization(name="norm")(layers.Concatenate()([y, side]))
        y = layers.Flatten()(layers.MaxPooling2D()(layers.Conv2DTranspose(5, 2, name="transposed")(y)))
        twice = layers.Dense(20, "tanh", name="twice")
        y = twice(twice(layers.Dense(20, "relu", name="hidden")(y)))
        return keras.Model(x, layers.Dense(5, name="logits")(y))

    def mixing():
        x = keras.Input((8, 8, 3), name="x")
        y = layers.Conv2D(8, 3, activation="softmax", name="softmax")(x)
        y = layers.Conv2D(8, 1, name="shuffled")(layers.Conv2D(8, 1, name="plain")(y))
        y = layers.Conv2D(8, 1, groups=2, name="grouped")(layers.Reshape((6, 6, 8))(y))
        y = layers.LayerNormalization(name="norm")(layers.Dense(12, name="normed")(layers.GlobalAveragePooling2D()(y)))
        return keras.Model(x, layers.Dense(4, name="logits")(keras.ops.cumsum(layers.Dense(6, name="summed")(y), 1)))

    def attention():
        """The torch model of this name; a second attention's query is another layer's output."""
        x = keras.Input((8, 8, 3), name="x")
        y = layers.Dense(8, name="embed")(layers.Reshape((64, 3))(x))
        y = layers.LayerNormalization()(layers.Add()([y, layers.MultiHeadAttention(4, 4, 3, name="heads")(y, y)]))
        asked = layers.Dense(12, "relu", name="asked")(y)
        y = layers.MultiHeadAttention(4, 4, name="crossed", use_bias=False)(asked, y, key=y)
        y = layers.Dense(8, name="down")(layers.Dense(20, "relu", name="up")(y))
        return keras.Model(x, layers.Dense(3, name="logits")(y))

    keras.utils.set_random_seed(0)
    model = {"sequential": sequential, "residual": residual, "mixing": mixing, "attention": attention}[name]()
    random = np.random.default_rng(0)
    for variable in model.weights:
        positive = "variance" in variable.name or "gamma" in variable.name
        variable.assign(random.uniform(0.5, 1.5, variable.shape) if positive else random.normal(0, 0.2, variable.shape))
    return open_model(model)


@functools.cache
def network(framework: str, name: str):
    return torch_model(name) if framework == "torch" else keras_model(name)


def run(net) -> np.ndarray:
    shape = net.inputs[0].shape
    return net.run({net.inputs[0].name: noise(*shape[1:])})[0]


def size(net) -> int:
    return sum(weight.value.size for weight in net.weights().values())


def zeroed(net, kept):
    """The network whose removed channels are made of zeros: weights, biases, and the norms behind them."""
    values = {}
    for group in net.channel_groups():
        removed = np.setdiff1d(np.arange(group.size), kept.get(group.id, np.arange(group.size)))
        for part in group.slices:
            if part.role == "output" or part.weight.endswith(("beta", "bias", "mean")):
                value = values.setdefault(part.weight, net.weights()[part.weight].value.copy())
                np.moveaxis(value, part.axis, 0)[part.of(removed)] = 0
    return net.with_weights(values)


FRAMEWORKS = ("torch", "keras")
REMOVED = {  # channels of each group that go at 30%, by the first layer that makes them
    "torch sequential": {"0": 4, "3": 2, "6": 3},
    "torch residual": {"project": 2, "depthwise": 3, "side": 1, "hidden": 6},
    "torch attention": {"value": 1, "up": 6},  # one head of four
    "keras attention": {"heads": 1, "asked": 3, "crossed": 1, "down": 2, "up": 6},
    "keras sequential": {"conv": 2, "hidden": 3},
    "keras residual": {"stem": 2, "expand": 3, "side": 1, "transposed": 1, "hidden": 6},
}


@pytest.mark.parametrize(("framework", "name"), [case.split() for case in REMOVED])
def test_channels_of_zeros_go_without_a_trace(framework, name):
    net = network(framework, name)
    kept = choose(net.channel_groups(), net.weights(), 0.3)
    empty = zeroed(net, kept)
    before, whole, small = run(net), run(empty), run(empty.without_channels(kept))
    assert np.abs(before - whole).max() > 1e-3  # the channels did matter
    np.testing.assert_allclose(small, whole, rtol=1e-4, atol=1e-5 * np.abs(whole).max())


@pytest.mark.parametrize(("framework", "name"), [case.split() for case in REMOVED])
def test_every_tensor_of_a_group_shrinks(framework, name):
    net = network(framework, name)
    groups, before, parameters = net.channel_groups(), run(net), size(net)
    kept = choose(groups, net.weights(), 0.3)
    small = net.without_channels(kept)
    sizes = {group.id: group.size - len(kept[group.id]) for group in groups if group.id in kept}
    assert {key.rpartition("/" if framework == "keras" else ".")[0].split("/")[0]: n for key, n in sizes.items()} == REMOVED[f"{framework} {name}"]
    weights, smaller = net.weights(), small.weights()
    for group in groups:
        for part in group.slices:
            lost = sum(
                len(p.of(np.setdiff1d(np.arange(g.size), kept.get(g.id, np.arange(g.size)))))
                for g in groups
                for p in g.slices
                if (p.weight, p.axis) == (part.weight, part.axis)
            )
            assert smaller[part.weight].value.shape[part.axis] == weights[part.weight].value.shape[part.axis] - lost
    assert size(small) < 0.75 * parameters
    assert size(net) == parameters and np.array_equal(run(net), before)  # the given network is as it was


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_what_mixes_channels_keeps_them(framework):
    left = {group.id.replace("/kernel", "").replace(".weight", ""): group.reason for group in network(framework, "mixing").channel_groups()}
    assert [name for name, reason in left.items() if not reason] == ["plain"]
    assert left.keys() >= {"softmax", "shuffled", "normed", "summed", "logits"}
    words = {"torch": ("LayerNorm", "mixes channels", "no layer reads them"), "keras": ("LayerNormalization", "Cumsum", "the model's output")}[framework]
    assert all(word in left[name] for name, word in zip(("normed", "summed", "logits"), words, strict=True))
    net = network(framework, "mixing")
    stuck = next(group.id for group in net.channel_groups() if group.reason)
    with pytest.raises(InputError, match="cannot be removed"):
        net.without_channels({stuck: np.arange(2)})


def test_bad_choices_are_refused():
    net = network("keras", "sequential")
    for kept, words in (({"nowhere": [0]}, "no group"), ({"conv/kernel": []}, "at least one"), ({"conv/kernel": [8]}, "0 to 7")):
        with pytest.raises(InputError, match=words):
            net.without_channels(kept)


def test_scores_sum_over_everything_that_makes_a_channel():
    first, second = np.array([[3.0], [0.0], [1.0]]), np.array([[0.0, 0.0], [4.0, 3.0], [0.0, 1.0]])
    weights = {"a": Weight("a", "linear", first), "b": Weight("b", "linear", second), "bias": Weight("bias", "bias", np.full(3, 100.0))}
    order = np.array([2, 0, 1])  # b's rows belong to channels 2, 0 and 1
    slices = (Slice("a", 0, "output", np.arange(3), np.arange(3)), Slice("b", 0, "output", np.arange(3), order))
    group = Group("a", 3, (*slices, Slice("bias", 0, "output", np.arange(3), np.arange(3))))
    np.testing.assert_allclose(scores(group, weights), [np.sqrt(9 + 25), 1, 1])
    assert choose([group], weights, 0.34)["a"].tolist() == [0, 2]  # of equals the first goes
    assert choose([group], weights, 0.99)["a"].tolist() == [0]  # one stays
    assert choose([group], weights, 0.3) == {}


def test_what_is_kept_is_a_multiple():
    def left(size: int, rows: int, sparsity: float, multiple: int) -> int:
        weights = {"a": Weight("a", "linear", np.ones((size * rows, 2)))}
        group = Group("a", size, (Slice("a", 0, "output", np.arange(size * rows), np.repeat(np.arange(size), rows)),))
        return len(choose([group], weights, sparsity, multiple).get("a", range(size)))

    assert [left(size, 1, 0.3, 8) for size in (64, 32, 24, 8, 10)] == [48, 24, 16, 8, 8]
    assert left(32, 1, 0.3, 16) == 16
    assert left(12, 32, 0.3, 8) == 9  # heads of 32 rows keep multiples of 8 whatever goes
    assert left(12, 4, 0.3, 8) == 8


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("suffix", (".tflite", ".onnx"))
def test_exported_files_are_the_smaller_network(framework, suffix, tmp_path):
    import exporters

    net = network(framework, "sequential")
    small = net.without_channels(choose(net.channel_groups(), net.weights(), 0.3))
    artifact = exporters.export(compress(small, "float32"), tmp_path / f"small{suffix}")
    np.testing.assert_allclose(run_file(artifact.path, small), run(small), rtol=1e-4, atol=1e-5)
    assert artifact.path.stat().st_size < exporters.export(compress(net, "float32"), tmp_path / f"full{suffix}").path.stat().st_size * 0.8


def run_file(path, net) -> np.ndarray:
    data = noise(*net.inputs[0].shape[1:])
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return session.run(None, {session.get_inputs()[0].name: data})[0]
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=1)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], data)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
