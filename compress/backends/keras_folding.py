"""Batch norms of a Keras model folded into the convolution or dense layer before them.

Who feeds whom is read from a traced graph, so that it holds for functional, sequential and subclassed models alike.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from compress.backends.keras_copying import copied, graph_layers
from compress.backends.keras_layouts import CONVOLUTIONS, DEPTHWISE, SEPARABLE, TRANSPOSED, layout_of, slots, walk

FOLDABLE = (keras.layers.Dense, *CONVOLUTIONS, *DEPTHWISE, *SEPARABLE, *TRANSPOSED)


@dataclass(frozen=True)
class Fold:
    layer: str  # paths of the convolution or dense layer and of the batch norm behind it
    norm: str


def fold_batch_norms(model: keras.Model, run: Callable[[keras.Model], Any]) -> tuple[keras.Model, tuple[str, ...]]:
    """The model with its batch norms folded, and notes that say which were and which were not. `model` is changed where it is subclassed.

    In sequential and functional models the layer gets a bias and the norm's place is taken by an Identity layer. A subclassed model's
    graph is its own code: there the norm stays and becomes an exact identity.
    """
    folds, left = find_folds(model, lambda: run(model))
    layers = dict(walk(model))
    replaceable = graph_layers(model)
    inside = [fold for fold in folds if not {id(layers[fold.layer]), id(layers[fold.norm])} <= replaceable]
    for fold in inside:
        neutralize(layers[fold.layer], layers[fold.norm])
    outside = [fold for fold in folds if fold not in inside]
    if outside:
        model = rebuilt(model, run, [(layers[fold.layer], layers[fold.norm]) for fold in outside])
    notes = [f"{len(folds)} batch norms folded into the layers before them"] if folds else []
    if left:
        notes.append(f"batch norms left as they are (not alone behind a convolution or dense layer): {', '.join(left)}")
    return model, tuple(notes)


def rebuilt(model: keras.Model, run: Callable[[keras.Model], Any], pairs: list[tuple[keras.Layer, keras.Layer]]) -> keras.Model:
    """A copy where every layer of a pair has its norm inside."""
    values, replacements = {}, {}
    names = {id(slot.variable): name for name, slot in slots(model).items()}
    for layer, norm in pairs:
        kernel, offset = folded_values(layer, norm)
        name = names[id(kernel_of(layer))]
        values[name], values[f"{name.rpartition('/')[0]}/bias"] = kernel, offset
        replacements[id(layer)], replacements[id(norm)] = with_bias, identity
    return copied(model, run, values, replacements)


@dataclass
class Call:
    """What one layer did while the model was traced."""

    count: int = 0
    training: bool = False
    source: Any = None
    result: Any = None
    operations: set[str] = field(default_factory=set)


def find_folds(model: keras.Model, call: Callable[[], Any]) -> tuple[list[Fold], list[str]]:
    """Foldable pairs, and the paths of the batch norms that cannot be folded. `call` runs the model on symbolic inputs."""
    found = {path: layer for path, layer in walk(model) if isinstance(layer, (*FOLDABLE, keras.layers.BatchNormalization))}
    norms = [path for path, layer in found.items() if isinstance(layer, keras.layers.BatchNormalization)]
    if not norms:
        return [], []
    owners = [layer for _, layer in walk(model)]
    calls, outputs = traced(found, call)
    folds = []
    for norm in norms:
        before = [path for path in found if path not in norms and calls[path].result is not None and calls[path].result is calls[norm].source]
        if before and fits(found[before[0]], found[norm], calls[before[0]], calls[norm], outputs) and owners.count(found[before[0]]) == 1:
            folds.append(Fold(before[0], norm))
    return folds, [norm for norm in norms if norm not in {fold.norm for fold in folds}]


def traced(found: dict[str, keras.Layer], call: Callable[[], Any]) -> tuple[dict[str, Call], list[int]]:
    """The call of every layer in one traced run, and the identities of the model's outputs."""
    calls = {path: Call() for path in found}
    outputs: list[int] = []

    def run():
        result = call()
        outputs.extend(map(id, keras.tree.flatten(result)))
        return result

    try:
        for path, layer in found.items():
            layer.call = recorder(layer.call, calls[path])
        tf.function(run).get_concrete_function()
    finally:
        for layer in found.values():
            del layer.call
    return calls, outputs


def recorder(inner: Callable, seen: Call) -> Callable:
    def wrapped(inputs, *args, **kwargs):
        graph = tf.compat.v1.get_default_graph()
        before = len(graph.get_operations())
        result = inner(inputs, *args, **kwargs)
        seen.count += 1
        seen.training |= bool(kwargs.get("training") or (args and args[0] is True))
        seen.source, seen.result = inputs, result
        seen.operations |= {operation.name for operation in graph.get_operations()[before:]}
        return result

    return wrapped


def fits(layer: keras.Layer, norm: keras.layers.BatchNormalization, call: Call, after: Call, outputs: list[int]) -> bool:
    """Whether the norm is the layer's only consumer, both run once, and it normalizes the layer's output channels."""
    rank = len(call.result.shape)
    channel = 1 if getattr(layer, "data_format", "") == "channels_first" else rank - 1
    alone = id(call.result) not in outputs and all(consumer.name in after.operations for consumer in call.result.consumers())
    plain = layer.activation is keras.activations.linear and not after.training
    return alone and plain and call.count == after.count == 1 and norm.axis % rank == channel


def folded_values(layer: keras.Layer, norm: keras.layers.BatchNormalization) -> tuple[np.ndarray, np.ndarray]:
    """The layer's last kernel (Keras layout) times the norm's scale, and the bias that carries its offset."""
    as_float = {v.name: v.value.numpy().astype(np.float64) for v in norm.variables}
    scale = as_float.get("gamma", 1.0) / np.sqrt(as_float["moving_variance"] + norm.epsilon)
    kernel = kernel_of(layer)
    layout, value = layout_of(layer, kernel), kernel.value.numpy().astype(np.float64)
    canonical = layout.canonical(value)
    scaled = canonical * scale.reshape(-1, *[1] * (canonical.ndim - 1))
    bias = layer.bias.value.numpy().astype(np.float64) if layer.use_bias else 0.0
    offset = (bias - as_float["moving_mean"]) * scale + as_float.get("beta", 0.0)
    return layout.keras(scaled, value.shape).astype(np.float32), offset.astype(np.float32)


def kernel_of(layer: keras.Layer) -> keras.Variable:
    """The variable whose output channels are the layer's own."""
    last = "pointwise_kernel" if isinstance(layer, SEPARABLE) else "kernel"
    return next(v for v in layer.variables if v.name.endswith(last))


def with_bias(layer: keras.Layer) -> keras.Layer:
    """A fresh layer of the same configuration with a bias."""
    return type(layer).from_config({**layer.get_config(), "use_bias": True, "bias_initializer": "zeros"})


def identity(norm: keras.layers.BatchNormalization) -> keras.Layer:
    return keras.layers.Identity(name=norm.name, dtype=norm.dtype_policy.name)


def neutralize(layer: keras.Layer, norm: keras.layers.BatchNormalization) -> None:
    """Folds in place, where the graph is the model's own code: the norm becomes an exact identity, or one addition where the layer has no bias."""
    kernel, offset = folded_values(layer, norm)
    kernel_of(layer).assign(kernel)
    carrier = layer.bias if layer.use_bias else norm.beta
    carrier.assign(offset)
    neutral = {"gamma": 1.0, "moving_mean": 0.0, "moving_variance": unit_variance(norm.epsilon), "beta": 0.0}
    for variable in norm.variables:
        if variable is not carrier and variable.name in neutral:
            variable.assign(np.full(variable.shape, neutral[variable.name], np.float32))


def unit_variance(epsilon: float) -> np.float32:
    """The float32 variance whose sum with epsilon is exactly 1, so that the norm's scale is."""
    epsilon = np.float32(epsilon)
    variance = np.float32(1) - epsilon
    while variance + epsilon != np.float32(1):
        variance = np.nextafter(variance, np.float32(2 if variance + epsilon < 1 else 0))
    return variance
