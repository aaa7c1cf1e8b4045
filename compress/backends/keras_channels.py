"""Channels of a Keras model that go together, read from its own graph, and the model without some.

Every tensor carries a label for each channel of its last axis. A layer with a kernel makes new labels, an addition makes labels equal,
a concatenation joins them, a flatten repeats them. What an unknown operation touches keeps its width.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import keras
import numpy as np

from compress.backends.keras_copying import copied, is_graph
from compress.backends.keras_layouts import CONVOLUTIONS, DEPTHWISE, SEPARABLE, TRANSPOSED, Slot, walk
from compress.backends.keras_network import KerasNetwork
from compress.channels import Group, Role, Slice, removals, smaller
from compress.errors import InputError

WIDTHS = {keras.layers.Dense: "units", **dict.fromkeys((*CONVOLUTIONS, *SEPARABLE, *TRANSPOSED), "filters")}
MERGES = ("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum")
POOLS = tuple(f"{kind}Pooling{n}D" for kind in ("Average", "Max", "GlobalAverage", "GlobalMax") for n in (1, 2, 3))
PADS = tuple(f"{kind}{n}D" for kind in ("ZeroPadding", "Cropping", "UpSampling", "SpatialDropout") for n in (1, 2, 3))
ALONE = (  # layers and operations that treat each channel by itself; layers and their keras.ops twins share names
    *("Activation", "ReLU", "LeakyReLU", "ELU", "Identity", "Dropout", "GaussianDropout", "GaussianNoise", "AlphaDropout"),
    *("Relu", "Relu6", "LeakyRelu", "Elu", "Selu", "Celu", "Gelu", "Silu", "Sigmoid", "HardSigmoid", "HardSilu", "Tanh", "Softplus", "Softsign"),
    *POOLS,
    *PADS,
)
PLAIN = (  # activations of one value
    *("linear", "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "sigmoid", "hard_sigmoid", "hard_silu", "tanh", "softplus"),
    *("softsign", "mish", "exponential"),
)


@dataclass
class Labels:
    """Channels as numbers, and which of them turned out to be the same (union-find)."""

    parent: list[int] = field(default_factory=list)
    reasons: dict[int, str] = field(default_factory=dict)  # why a label must stay
    uses: dict[tuple[str, int, Role], np.ndarray] = field(default_factory=dict)  # label of every position of an axis of a tensor

    def new(self, count: int) -> np.ndarray:
        first = len(self.parent)
        self.parent.extend(range(first, first + count))
        return np.arange(first, first + count)

    def find(self, label: int) -> int:
        while self.parent[label] != label:
            self.parent[label] = self.parent[self.parent[label]]
            label = self.parent[label]
        return label

    def join(self, one: np.ndarray, other: np.ndarray) -> None:
        for a, b in zip(one, other, strict=True):
            a, b = sorted((self.find(a), self.find(b)))
            self.parent[b] = a

    def freeze(self, labels: np.ndarray, reason: str) -> None:
        for label in labels:
            self.reasons.setdefault(int(label), reason)

    def use(self, name: str, axis: int, role: Role, labels: np.ndarray) -> None:
        """A layer that is called twice ties the labels of both calls."""
        known = self.uses.setdefault((name, axis, role), labels)
        self.join(known, labels)


class Walk:
    """One walk along the operations of a functional model."""

    def __init__(self, network: KerasNetwork):
        self.network, self.labels, self.tensors = network, Labels(), {}
        self.names = {id(slot.variable): name for name, slot in network.slots.items()}
        graph = getattr(network.model, "_functional", None) or network.model
        for depth in sorted(graph._nodes_by_depth, reverse=True):
            for node in graph._nodes_by_depth[depth]:
                self.visit(node)
        for tensor in keras.tree.flatten(graph.outputs):
            self.labels.freeze(self.tensors[id(tensor)], "they are the model's output")

    def visit(self, node: Any) -> None:
        operation, given = node.operation, node.input_tensors
        labels = [self.tensors[id(tensor)] for tensor in given]
        made = None if node.is_input or len(node.output_tensors) != 1 else self.through(operation, given, labels, node.arguments)
        if made is not None:
            self.tensors[id(node.output_tensors[0])] = made
            if mixes(operation):
                self.labels.freeze(made, f"the activation of {operation.name} mixes channels or is not known")
            return
        reason = f"{operation.name} is a {type(operation).__name__}, which is not followed"
        for tensor in node.output_tensors:
            self.tensors[id(tensor)] = self.labels.new((tensor.shape[-1] or 0) if tensor.shape else 0)
        for each in [*labels, *(self.tensors[id(tensor)] for tensor in node.output_tensors)]:
            self.labels.freeze(each, reason)

    def through(self, operation: Any, given: list[Any], labels: list[np.ndarray], arguments: Any) -> np.ndarray | None:
        """Labels of the operation's output, or None where it is not known what it does to them."""
        name = type(operation).__name__
        if not type(operation).__module__.startswith("keras.") or getattr(operation, "data_format", None) == "channels_first":
            return None
        if type(operation) in WIDTHS or isinstance(operation, DEPTHWISE):
            return self.layer(operation, labels[0])
        if name == "MultiHeadAttention" and not operation.get_config()["use_gate"]:
            return self.attention(operation, arguments)
        if name == "BatchNormalization" and operation.axis in (-1, len(given[0].shape) - 1):
            for variable in operation.variables:
                self.use(variable, 0, "follow", labels[0])
            return labels[0]
        if name in MERGES:
            return self.merge(given, labels, arguments)
        if name == "Concatenate" and operation.axis in (-1, len(given[0].shape) - 1):
            return np.concatenate(labels)
        if name == "Flatten":
            inner = given[0].shape[1:-1]
            return None if None in inner or len(given[0].shape) < 2 else np.tile(labels[0], int(np.prod(inner, dtype=int)))
        return labels[0] if name in ALONE else None

    def layer(self, layer: keras.Layer, labels: np.ndarray) -> np.ndarray | None:
        """Through a layer with a kernel. A depthwise convolution keeps its channels, `depth_multiplier` of them for each."""
        if getattr(layer, "groups", 1) > 1:
            return None
        leaves = {variable.name: variable for variable in layer.variables}
        if isinstance(layer, (*DEPTHWISE, *SEPARABLE)):
            labels = np.repeat(labels, layer.depth_multiplier)
            self.use(leaves["depthwise_kernel" if isinstance(layer, SEPARABLE) else "kernel"], 0, "output", labels)
        if not isinstance(layer, DEPTHWISE):
            kernel = leaves["pointwise_kernel" if isinstance(layer, SEPARABLE) else "kernel"]
            self.use(kernel, 1, "input", labels)
            before = self.labels.uses.get((self.names[id(kernel)], 0, "output"))
            labels = self.labels.new(getattr(layer, WIDTHS[type(layer)])) if before is None else before
            self.use(kernel, 0, "output", labels)
        if "bias" in leaves:
            self.use(leaves["bias"], 0, "output", labels)
        return labels

    def attention(self, layer: keras.layers.MultiHeadAttention, arguments: Any) -> np.ndarray:
        """Through an attention: a head goes as a whole from its query, key, value and output. What the layer returns keeps its width."""
        named = dict(zip(("query", "value", "key"), arguments.args, strict=False)) | arguments.kwargs
        sources = {"query": named["query"], "key": named["value"] if named.get("key") is None else named["key"], "value": named["value"]}
        heads, output = self.labels.new(layer.num_heads), layer.output_dense
        for part, source in sources.items():
            projection = getattr(layer, f"{part}_dense")
            self.use(projection.kernel, 1, "input", self.tensors[id(source)])
            self.use(projection.kernel, 0, "output", np.repeat(heads, projection.kernel.shape[-1]))
            if projection.bias is not None:
                self.use(projection.bias, 0, "output", heads)
        self.use(output.kernel, 1, "input", np.repeat(heads, output.kernel.shape[1]))
        made = self.labels.new(output.kernel.shape[-1])
        self.labels.freeze(made, f"{layer.name} returns them: of an attention, whole heads are taken out")
        return made

    def use(self, variable: keras.Variable, axis: int, role: Role, labels: np.ndarray) -> None:
        self.labels.use(self.names[id(variable)], axis, role, labels)

    def merge(self, given: list[Any], labels: list[np.ndarray], arguments: Any) -> np.ndarray | None:
        """Channels that are added are the same channel. A constant with an axis of its own, or a broadcast channel axis, is not followed."""
        values = keras.tree.flatten((arguments.args, arguments.kwargs))
        constants = [value for value in values if not isinstance(value, keras.KerasTensor) and np.ndim(value) > 0]
        if constants or len({len(each) for each in labels}) > 1 or len({len(tensor.shape) for tensor in given}) > 1:
            return None
        for one, other in pairwise(labels):
            self.labels.join(one, other)
        return labels[0]


def mixes(operation: Any) -> bool:
    """Whether the operation's activation looks at several channels at once."""
    activation = getattr(operation, "activation", None)
    return activation is not None and getattr(activation, "__name__", "") not in PLAIN


def channel_groups(network: KerasNetwork) -> tuple[Group, ...]:
    """Every group once; those whose channels cannot be removed say why. InputError where the model's graph is its own code."""
    if not is_graph(network.model):
        raise InputError(f"channels of {type(network.model).__name__} cannot be followed: its graph is its own code. Build it as a functional model")
    labels = Walk(network).labels
    roots = np.array([labels.find(label) for label in range(len(labels.parent))])
    reasons: dict[int, dict[str, None]] = {}
    for label, reason in labels.reasons.items():
        reasons.setdefault(int(roots[label]), {})[reason] = None
    groups = []
    for channels in components(labels, roots):
        slices = slices_of(labels, roots, channels)
        if any(part.role == "output" for part in slices):  # others are made by the input or by what is not followed
            why = {reason: None for channel in channels for reason in reasons.get(int(channel), ())}
            groups.append(group_of(slices, len(channels), tuple(why)))
    return tuple(groups)


def components(labels: Labels, roots: np.ndarray) -> list[np.ndarray]:
    """Channels, as root labels, that belong to one group: those of layers that share any."""
    linked = Labels(parent=list(range(len(roots))))
    for (_, _, role), used in labels.uses.items():
        if role == "output":
            linked.join(roots[used], np.full(len(used), roots[used[0]]))
    found: dict[int, list[int]] = {}
    for root in np.unique(roots).tolist():
        found.setdefault(linked.find(root), []).append(root)
    return [np.array(channels) for channels in found.values()]


def slices_of(labels: Labels, roots: np.ndarray, channels: np.ndarray) -> tuple[Slice, ...]:
    """Where these channels, ascending, are in the model's tensors."""
    slices = []
    for (name, axis, role), used in labels.uses.items():
        positions = np.flatnonzero(np.isin(roots[used], channels))
        if len(positions):
            slices.append(Slice(name, axis, role, positions, np.searchsorted(channels, roots[used][positions])))
    return tuple(slices)


def group_of(slices: tuple[Slice, ...], size: int, reasons: tuple[str, ...]) -> Group:
    read = any(part.role == "input" for part in slices)
    reason = "; ".join(reasons) or ("no layer reads them" if not read else "there is only one" if size < 2 else "")
    return Group(next(part.weight for part in slices if part.role == "output"), size, slices, reason)


def shrunk(network: KerasNetwork, groups: tuple[Group, ...], kept: Mapping[str, np.ndarray]) -> KerasNetwork:
    """A copy of the network that has only these channels; groups that `kept` does not name stay whole."""
    changed = smaller(network.weights(), removals(groups, kept))
    attentions = {id(layer.query_dense): layer for _, layer in walk(network.model) if isinstance(layer, keras.layers.MultiHeadAttention)}
    values, replacements = {}, {}
    for name, value in changed.items():
        slot = network.slots[name]
        values[name] = keras_layout(value, slot)
        if id(slot.layer) in attentions and slot.layout.kind == "linear":
            layer = attentions[id(slot.layer)]
            width = layer.output_dense.kernel.shape[-1]
            replacements[id(layer)] = configured(num_heads=len(value) // layer.key_dim, output_shape=width)
        if slot.layout.kind not in ("bias", "norm") and type(slot.layer) in WIDTHS and slot.variable.name != "depthwise_kernel":
            replacements[id(slot.layer)] = configured(**{WIDTHS[type(slot.layer)]: len(value)})
    shorter = copied(network.model, network.run_symbolic, values, replacements)
    return KerasNetwork(shorter, network.inputs, network.structure, network.notes, network.from_tf_keras)


def keras_layout(value: np.ndarray, slot: Slot) -> np.ndarray:
    """A canonical value with fewer entries than the slot's, as Keras lays it out."""
    axes, shape = slot.layout.axes, slot.variable.shape
    if value.ndim < len(axes):  # an attention's [heads * size, in] or [out, heads * size]
        value = value.reshape((-1, shape[2], value.shape[1]) if axes == (1, 2, 0) else (len(value), -1, shape[1]))
    if slot.layout.kind.startswith("depthwise"):
        value = value.reshape(-1, *(shape[axis] for axis in axes[1:]))
    return value.transpose(np.argsort(axes))


def configured(**changed: int):
    return lambda layer: type(layer).from_config({**layer.get_config(), **changed})
