"""A Keras 3 model as a tf_keras model that computes the same, some of its layers inside TFMOT's wrappers."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tf_keras

from compress.backends import tf_keras_tfmot as tfmot
from compress.backends.keras_copying import is_graph
from compress.backends.keras_layouts import Slot, walk
from compress.backends.keras_network import KerasNetwork
from compress.training import Constraint


class Untwinned(Exception):
    """tf_keras or TFMOT cannot do what Keras 3 does, in words."""


@dataclass
class Twin:
    """model takes the network's inputs as a list and gives its outputs flat.

    variables  by id of the Keras 3 variable
    held       by tensor name, what is not simply its variable
    """

    network: KerasNetwork
    constraints: Mapping[str, Constraint]
    layers: dict[int, Callable] = field(default_factory=dict)
    variables: dict[int, tf.Variable] = field(default_factory=dict)
    held: dict[str, tfmot.Hold] = field(default_factory=dict)
    model: Any = None

    def __post_init__(self):
        self.paths = {id(layer): path for path, layer in walk(self.network.model)}
        self.constrained: dict[int, list[str]] = {}
        for name in self.constraints:
            self.constrained.setdefault(id(self.network.slots[name].layer), []).append(name)
        inputs = [tf_keras.Input(spec.shape[1:], dtype=spec.dtype) for spec in self.network.inputs]
        self.model = tf_keras.Model(inputs, keras.tree.flatten(self.through(self.network.model, inputs)))
        missing = [name for name in self.constraints if id(self.network.slots[name].variable) not in self.variables or name not in self.held]
        if missing:
            raise Untwinned(f"{', '.join(missing)}: inside another layer, which its wrappers do not reach")

    def through(self, model: keras.Model, inputs: Any) -> Any:
        """The model's graph walked with tf_keras layers in the place of its own."""
        graph = model._functional if isinstance(model, keras.Sequential) else model
        return graph._run_through_graph(inputs, operation_fn=self.layer)

    def layer(self, operation: Any) -> Callable:
        if is_graph(operation):
            return lambda inputs, **_: self.through(operation, inputs)
        if id(operation) not in self.layers:
            self.layers[id(operation)] = self.made(operation)
        return self.layers[id(operation)]

    def made(self, operation: Any) -> Callable:
        old = old_layer(operation, self.paths.get(id(operation), ""))
        names = self.constrained.get(id(operation), [])
        if len(names) > 1:
            raise Untwinned(f"{', '.join(names)}: its wrappers hold one weight of a layer")
        placed: list[Callable] = []

        def call(*args: Any, **kwargs: Any) -> Any:
            if not placed:
                self.build(old, operation, args)
                placed.append(self.wrapped(old, names[0]) if names else old)
            return placed[0](*args, **({} if names else said(old, kwargs)))

        return call

    def build(self, old: Any, operation: keras.Layer, args: tuple) -> None:
        """Gives the layer its variables with the values of the Keras 3 layer."""
        if not old.built:
            old.build(keras.tree.map_structure(lambda x: x.shape, args[0]))
        if [tuple(v.shape) for v in old.weights] != [tuple(v.shape) for v in operation.weights]:
            raise Untwinned(f"{operation.name}: a {type(operation).__name__} of tf_keras has other variables")
        old.set_weights([keras.ops.convert_to_numpy(v) for v in operation.weights])
        self.variables |= {id(new): variable for new, variable in zip(operation.weights, old.weights, strict=True)}

    def wrapped(self, old: Any, name: str) -> Callable:
        slot, constraint = self.network.slots[name], self.constraints[name]
        attribute = next((a for a in tfmot.ATTRIBUTES if getattr(old, a, None) is self.variables[id(slot.variable)]), None)
        if attribute is None:
            raise Untwinned(f"{name}: inside another layer, which its wrappers do not reach")
        hold = self.held[name] = tfmot.Hold(slot, constraint)
        if constraint.format is not None:
            return tfmot.quantized(old, attribute, hold, constraint, slot.layout.shape[0])
        return (tfmot.pruned if constraint.codes is None else tfmot.clustered)(old, attribute, hold, constraint)

    def value(self, name: str, slot: Slot) -> np.ndarray:
        """Canonical: pruned and clustered, not rounded."""
        variable = self.variables[id(slot.variable)]
        found = self.held[name](variable) if name in self.held else tf.convert_to_tensor(variable)
        return slot.layout.canonical(found.numpy() + np.float32(0))  # a pruned -0 becomes 0

    def call(self, tensors: list[tf.Tensor], training: bool) -> Any:
        """Outputs in the structure of the Keras 3 model's."""
        return keras.tree.pack_sequence_as(self.network.model._outputs_struct, keras.tree.flatten(self.model(tensors, training=training)))


def old_layer(layer: Any, path: str) -> Any:
    """The tf_keras layer of this class and configuration, without weights; without initializers, regularizers and constraints, which no training here uses."""
    old = getattr(tf_keras.layers, type(layer).__name__, None)
    if old is None or not isinstance(layer, keras.Layer):
        raise Untwinned(f"{getattr(layer, 'name', layer)}: tf_keras has no {type(layer).__name__}")
    known = inspect.signature(old.__init__).parameters
    config = {key: value for key, value in layer.get_config().items() if key in known and not key.endswith(("_initializer", "_regularizer", "_constraint"))}
    try:
        return old.from_config({**config, "name": path.replace("/", "."), "trainable": layer.trainable, "dtype": layer.dtype_policy.name})
    except (TypeError, ValueError) as error:
        raise Untwinned(f"{path}: tf_keras does not make this {type(layer).__name__}: {error}") from error


def said(old: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A call's arguments, for inference: norms keep their statistics, nothing is dropped out."""
    given = {key: value for key, value in kwargs.items() if value is not None and key != "training"}
    return {**given, "training": False} if "training" in inspect.signature(old.call).parameters else given


def twin(network: KerasNetwork, constraints: Mapping[str, Constraint], batch: list[np.ndarray]) -> Twin:
    """The network's twin, proven to compute the same on this batch. Untwinned with the reason where there is none."""
    if not is_graph(network.model):
        raise Untwinned("the model is code of its own")
    for name, constraint in constraints.items():
        reason = tfmot.unfit(network.slots[name], constraint) if name in network.slots else "the model has no such tensor"
        if reason:
            raise Untwinned(f"{name}: {reason}")
    plain = Twin(network, {})
    pairs = zip(keras.tree.flatten(network.call(network.model, batch)), keras.tree.flatten(plain.call(batch, False)), strict=True)
    worst = max(float(np.abs(a.numpy() - b.numpy()).max()) / max(1.0, float(np.abs(a.numpy()).max())) for a, b in pairs)
    if not worst < 1e-4:  # the same operations in float32; only kernels may differ
        raise Untwinned(f"tf_keras computes other outputs than Keras 3 ({worst:.1e} apart)")
    return Twin(network, constraints) if constraints else plain
