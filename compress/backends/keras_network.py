"""Keras models as a Network, run by Keras's TensorFlow backend."""

import os
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "tensorflow")  # read once, when keras is first imported

import keras
import numpy as np

from compress.backends.keras_copying import copied, is_graph, unrolled
from compress.backends.keras_folding import fold_batch_norms
from compress.backends.keras_layouts import Slot, slots, unknown_layers
from compress.backends.keras_loading import load
from compress.channels import Group
from compress.errors import InputError, OpenShapes
from compress.network import Inputs, InputSpec, Weight
from compress.samples import Data, samples
from compress.training import Course


class KerasNetwork:
    framework = "keras"

    def __init__(self, model: keras.Model, inputs: tuple[InputSpec, ...], structure: Any, notes: tuple[str, ...], from_tf_keras: bool = False):
        """from_tf_keras: the caller's model is one of tf_keras, so training goes through TFMOT."""
        self.model, self.inputs, self.structure, self.notes, self.from_tf_keras = model, inputs, structure, notes, from_tf_keras

    @cached_property
    def slots(self) -> dict[str, Slot]:
        """Every variable with its layer, under its name."""
        return slots(self.model)

    def weights(self) -> dict[str, Weight]:
        return {name: Weight(name, slot.layout.kind, slot.layout.canonical(slot.value), slot.names[1:]) for name, slot in self.slots.items()}

    def with_weights(self, values: Mapping[str, np.ndarray]) -> "KerasNetwork":
        changed = {}
        for name, value in values.items():
            if name not in self.slots:
                raise InputError(f"the model has no tensor {name!r}")
            try:
                changed[name] = self.slots[name].layout.keras(value, tuple(self.slots[name].variable.shape))
            except InputError as error:
                raise InputError(f"{name}: {error}") from error
        return KerasNetwork(copied(self.model, self.run_symbolic, changed), self.inputs, self.structure, self.notes, self.from_tf_keras)

    def noted(self, *notes: str) -> "KerasNetwork":
        """The same network with these notes behind those that it has not yet."""
        return KerasNetwork(self.model, self.inputs, self.structure, tuple(dict.fromkeys((*self.notes, *notes))), self.from_tf_keras)

    def run(self, inputs: Inputs) -> list[np.ndarray]:
        outputs = self.call(self.model, [keras.ops.convert_to_tensor(inputs[spec.name], dtype=spec.dtype) for spec in self.inputs])
        return [keras.ops.convert_to_numpy(keras.ops.cast(tensor, "float32")) for tensor in keras.tree.flatten(outputs)]

    def call(self, model: keras.Model, tensors: list[Any]) -> Any:
        """A model's outputs for tensors in the order of `inputs`."""
        return model(keras.tree.pack_sequence_as(self.structure, tensors), training=False)

    def run_symbolic(self, model: keras.Model) -> Any:
        """A model's outputs for zeros: builds it, or traces it inside a graph."""
        return self.call(model, [keras.ops.zeros(spec.shape, spec.dtype) for spec in self.inputs])

    def train(self, course: Course) -> tuple["KerasNetwork", dict[str, np.ndarray]]:
        """A copy with what its variables learned, and learned scales: see compress.backends.keras_training and tf_keras_training."""
        if self.from_tf_keras:
            from compress.backends.tf_keras_training import train
        else:
            from compress.backends.keras_training import train
        return train(self, course)

    def observe(self, names: Iterable[str], data: Data, see: Callable[[str, np.ndarray], None]) -> None:
        """Calls see(name, float32 rows [n, in * kernel]) with what the named weights are multiplied by."""
        from compress.backends.keras_observing import observe

        observe(self, names, data, see)

    def second_moments(self, names: Iterable[str], data: Data) -> dict[str, np.ndarray]:
        """float64 [in * kernel, in * kernel] by name: the mean outer product of what the named weights are multiplied by."""
        from compress.backends.training_data import second_moments

        return second_moments(self, names, data)

    def channel_groups(self) -> tuple[Group, ...]:
        from compress.backends.keras_channels import channel_groups

        return channel_groups(self)

    def without_channels(self, kept: Mapping[str, np.ndarray]) -> "KerasNetwork":
        from compress.backends.keras_channels import channel_groups, shrunk

        return shrunk(self, channel_groups(self), kept)


def open_model(model: Any, inputs: Data | None) -> KerasNetwork:
    """A copy of the model with its batch norms folded. InputError where it has no weights yet, or its input shapes are not known."""
    if keras.backend.backend() != "tensorflow":
        raise InputError(
            f"keras was imported with its {keras.backend.backend()} backend; compress opens Keras models with TensorFlow: "
            "set KERAS_BACKEND=tensorflow before the first import of keras"
        )
    from_tf_keras = any(base.__module__.startswith("tf_keras.") for base in type(model).__mro__)
    model = load(model)
    if not model.built:
        raise InputError(f"the Keras model {model.name!r} is not built, so it has no weights yet: call it on data first, or load trained weights")
    specs, structure = input_specs(model, inputs)
    plain = KerasNetwork(model, specs, structure, ())
    try:
        copy = copied(model, plain.run_symbolic, {})
        copy, kept = (copy, ()) if is_graph(copy) else unrolled(copy, specs, structure, plain.run_symbolic)
        copy, notes = fold_batch_norms(copy, plain.run_symbolic)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise InputError(f"the Keras model {model.name!r} cannot be copied and run: {error}") from error
    unknown = unknown_layers(copy)
    strangers = (f"weights of layers that recipes do not know stay in float: {', '.join(unknown)}",) if unknown else ()
    return KerasNetwork(copy, specs, structure, (*kept, *notes, *strangers), from_tf_keras)


def input_specs(model: keras.Model, inputs: Data | None) -> tuple[tuple[InputSpec, ...], Any]:
    """Input specifications for a batch of 1, and the structure (list, dict, single) that the model is called with.

    Shapes come from the model; what it leaves open comes from the first sample.
    """
    if not getattr(model, "inputs", None):
        return example_specs(model, inputs)
    structure = getattr(model, "_inputs_struct", model.inputs[0])
    specs = tuple(
        InputSpec(name, (1, *tensor.shape[1:]), keras.backend.standardize_dtype(tensor.dtype))
        for name, tensor in zip(input_names(structure), keras.tree.flatten(structure), strict=True)
    )
    if all(size is not None for spec in specs for size in spec.shape):
        return specs, structure
    if inputs is None:
        given = ", ".join(f"{spec.name} {list(spec.shape)}" for spec in specs)
        told = tuple((spec.name, spec.shape, spec.dtype) for spec in specs)
        raise OpenShapes(f"the Keras model {model.name!r} leaves input shapes open ({given}): give `inputs` (or `calibration`), at least one sample", told)
    first = next(samples(inputs, specs))
    return tuple(InputSpec(spec.name, first[spec.name].shape, spec.dtype) for spec in specs), structure


def input_names(structure: Any) -> list[str]:
    """Names of the inputs in flattened order: a dict's own keys, otherwise the names of the input layers."""
    if isinstance(structure, Mapping):
        return [str(path[-1]) for path, _ in keras.tree.flatten_with_path(structure)]
    return [tensor._keras_history.operation.name for tensor in keras.tree.flatten(structure)]


def example_specs(model: keras.Model, inputs: Data | None) -> tuple[tuple[InputSpec, ...], Any]:
    """Input specifications of a model that has no symbolic inputs (a subclassed one), from its first sample."""
    if inputs is None:
        raise InputError(f"the subclassed Keras model {model.name!r} does not know its input shapes: give `inputs` (or `calibration`), at least one sample")
    first = next(iter(inputs() if callable(inputs) else ([inputs] if isinstance(inputs, Mapping | tuple | np.ndarray) else inputs)), None)
    if first is None:
        raise InputError("the data is empty: calibration and example inputs need at least one sample")
    named = dict(first) if isinstance(first, Mapping) else dict(enumerate(first)) if isinstance(first, tuple) else {0: first}
    names = {key: key if isinstance(first, Mapping) else f"input_{key}" if len(named) > 1 else "input" for key in named}
    specs = []
    for key in sorted(named):
        array = np.asarray(named[key])
        dtype = "float32" if array.dtype == np.float64 else str(array.dtype)
        specs.append(InputSpec(names[key], (1, *array.shape[1:]), dtype))
    structure = dict.fromkeys(names.values(), 0) if isinstance(first, Mapping) else [0] * len(named) if len(named) > 1 else 0
    return tuple(specs), structure
