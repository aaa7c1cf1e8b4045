"""Copies of Keras models, with layers replaced and values changed on the way."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
from keras.src.models.functional import Functional

from compress.backends.keras_layouts import slots, walk
from compress.errors import InputError
from compress.network import InputSpec

GRAPH_MODELS = (keras.Sequential, Functional)
Replacements = Mapping[int, Callable[[keras.Layer], keras.Layer]]  # by id of the layer in the model that is copied


def is_graph(model: keras.Layer) -> bool:
    """Whether Keras itself knows the model's graph; otherwise it is the user's own code."""
    return isinstance(model, GRAPH_MODELS) and bool(getattr(model, "inputs", None))


def graph_layers(model: keras.Layer) -> set[int]:
    """Ids of the layers that `copied` can replace: those reached through sequential and functional models only."""
    if not is_graph(model):
        return set()
    children = model._flatten_layers(include_self=False, recursive=False)
    return {identity for child in children for identity in ({id(child)} | graph_layers(child))}


def copied(model: keras.Model, run: Callable[[keras.Model], Any], values: Mapping[str, np.ndarray], replacements: Replacements | None = None) -> keras.Model:
    """A copy of the model with some layers replaced, holding `values` (Keras layout, by name) and the old values of the rest.

    run  calls a model on its inputs: a subclassed copy has no variables before
    """
    custom = {type(layer).__name__: type(layer) for _, layer in walk(model) if not type(layer).__module__.startswith("keras.")}
    with keras.saving.custom_object_scope(custom):
        copy = graph_copy(model, replacements or {}) if is_graph(model) else fresh(model)
    if not is_graph(model):
        run(copy)
    same_names(model, copy)
    if replacements is None and list(slots(copy)) != list(slots(model)):
        raise InputError(f"a copy of {type(model).__name__} made from its config has other variables: its get_config leaves something out")
    old = slots(model)
    for name, slot in slots(copy).items():
        slot.variable.assign(values[name] if name in values else old[name].variable)
    return copy


def graph_copy(model: keras.Model, replacements: Replacements) -> keras.Model:
    def clone(layer: keras.Layer) -> keras.Layer:
        replace = replacements.get(id(layer))
        return replace(layer) if replace else fresh(layer)

    inputs = None
    if any(tensor.shape[0] is not None for tensor in model.inputs):  # a deferred Sequential keeps the batch size of its first call
        inputs = [keras.Input(tensor.shape[1:], dtype=tensor.dtype, name=tensor._keras_history.operation.name) for tensor in model.inputs]
    call = None if isinstance(model, keras.Sequential) else call_layer
    return keras.models.clone_model(model, clone_function=clone, call_function=call, recursive=True, input_tensors=inputs)


def fresh(layer: keras.Layer) -> keras.Layer:
    """A layer of the same class and configuration with no weights yet.

    A class of the user's whose constructor takes neither `name` nor `**kwargs` gets only the arguments that it knows.
    """
    if isinstance(layer, keras.layers.Lambda):  # its code runs already: no detour through bytecode, which Keras rightly distrusts
        return type(layer)(layer.function, layer._output_shape, layer.mask, layer.arguments, name=layer.name, dtype=layer.dtype_policy.name)
    config = layer.get_config()
    known = inspect.signature(type(layer).__init__).parameters
    if "name" in known or any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()) or "from_config" in vars(type(layer)):
        return type(layer).from_config(config)
    return type(layer)(**{key: value for key, value in config.items() if key in known})


def call_layer(layer: keras.Layer, *args, **kwargs) -> Any:
    """The recorded call of a layer. Identity stands where a batch norm was called with a mask and a training flag; it takes neither."""
    return layer(*args) if isinstance(layer, keras.layers.Identity) else layer(*args, **kwargs)


def unrolled(model: keras.Model, inputs: tuple[InputSpec, ...], structure: Any, run: Callable[[keras.Model], Any]) -> tuple[keras.Model, tuple[str, ...]]:
    """A subclassed model as a functional one made of its own layers, where its code is nothing but layers and keras.ops; else itself with a note.

    A functional model needs no code of the user's to be saved, exported and run elsewhere.
    """
    try:
        tensors = [keras.Input(spec.shape[1:], name=spec.name, dtype=spec.dtype) for spec in inputs]
        packed = keras.tree.pack_sequence_as(structure, tensors)
        training = {"training": False} if "training" in inspect.signature(model.call).parameters else {}
        graph = keras.Model(packed, model.call(packed, **training), name=model.name)
    except Exception as error:  # the user's own code decides what comes
        return model, (f"{type(model).__name__} stays its own code, which does not run on symbolic tensors: {str(error).strip().splitlines()[0]}",)
    same = set(slots(graph)) == set(slots(model)) and all(
        np.allclose(a, b, rtol=1e-5, atol=1e-6)  # the same operations: only their order in memory may differ
        for a, b in zip(keras.tree.flatten(run(model)), keras.tree.flatten(run(graph)), strict=True)
    )
    if not same:
        return model, (f"{type(model).__name__} stays its own code: its layers alone do not make up the model",)
    return graph, ()


def same_names(model: keras.Layer, copy: keras.Layer) -> None:
    """Names the copy's layers like the model's: in subclassed models Keras counts names up for every instance."""
    pairs = zip(model._flatten_layers(include_self=False, recursive=False), copy._flatten_layers(include_self=False, recursive=False), strict=True)
    for old, new in pairs:
        new.name = old.name
        same_names(old, new)
