"""LoRA of Keras 3 models by Keras' own layers and loop: `enable_lora` on a copy, then `fit`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import keras
import numpy as np

from compress.backends.keras_copying import copied
from compress.backends.keras_layouts import slots, walk
from compress.errors import InputError
from compress.finetune.batches import Samples
from compress.finetune.methods import LoRA, Method
from compress.finetune.targets import each, inside
from compress.registry import suggest
from compress.steps.selector import Patterns, glob

KINDS = (keras.layers.Dense, keras.layers.EinsumDense, keras.layers.Embedding)
DEFAULT = LoRA()


@dataclass(frozen=True, eq=False)
class AdaptedKeras:
    """A copy of a Keras model whose LoRA variables, and layers of `also`, learn. Names are layers' paths with dots."""

    model: keras.Model
    method: LoRA
    notes: tuple[str, ...] = ("adapters are Keras' enable_lora",)

    def trainable(self) -> dict[str, keras.Variable]:
        return {name.replace("/", "."): slot.variable for name, slot in slots(self.model).items() if slot.variable.trainable}

    def sizes(self) -> list[tuple[str, int, bool]]:
        """(name, numbers, whether they learn) of every variable."""
        return [(name.replace("/", "."), int(np.prod(s.variable.shape)), s.variable.trainable) for name, s in slots(self.model).items()]


def adapt_keras(model: keras.Model, method: Method, data: Samples, seed: int) -> AdaptedKeras:
    """InputError for methods and fields that Keras does not have, and for names that match no layer."""
    if not isinstance(model, keras.Model):
        raise InputError(f"a {type(model).__module__}.{type(model).__name__} is no model of Keras 3, which alone has enable_lora")
    if not isinstance(method, LoRA):
        raise InputError(f"Keras models are fine-tuned by lora, and {method.method!r} is another method")
    for name in ("base", "dropout", "magnitude", "b_rate", "start"):
        if getattr(method, name) != getattr(DEFAULT, name):
            raise InputError(f"{name}: Keras' enable_lora has nothing like it; leave it out, or fine-tune a PyTorch model")
    copy = copied(model, lambda fresh: fresh(feed(data, np.arange(1))), {})
    layers = {path: layer for path, layer in walk(copy) if path}
    also = {path for path in named(layers, method.also, "also")}
    targets = named({path: layer for path, layer in layers.items() if isinstance(layer, KINDS) and not below(path, also)}, method.targets, "targets")
    learned = {id(slot.variable) for name, slot in slots(copy).items() if slot.variable.trainable and below(name, also)}
    for path, layer in layers.items():
        if not layer._flatten_layers(include_self=False) and not below(path, also) and path not in targets:
            layer.trainable = False  # batch norms keep their statistics
    for path in targets:
        begin(layers[path], path, method, seed)
    for name, slot in slots(copy).items():
        slot.variable.trainable = id(slot.variable) in learned or "/lora_" in name
    return AdaptedKeras(copy, method)


def named(layers: Mapping[str, keras.Layer], patterns: Patterns, field: str) -> list[str]:
    for pattern in each(patterns):
        if not any(glob(pattern, path) for path in layers):
            what = "Dense, EinsumDense or Embedding layer" if field == "targets" else "layer"
            raise InputError(f"{field}: {pattern!r} matches no {what}; {suggest(pattern, layers)}the model has {', '.join([*layers][:6]) or 'none'}")
    return [path for path in layers if glob(patterns, path)]


def below(path: str, layers: set[str]) -> bool:
    return inside(path.replace("/", "."), [layer.replace("/", ".") for layer in layers])


def begin(layer: keras.Layer, path: str, method: LoRA, seed: int) -> None:
    shape = layer.embeddings.shape if isinstance(layer, keras.layers.Embedding) else layer.kernel.shape
    most = min(math.prod(shape[:-1]), shape[-1])
    if method.rank > most:
        raise InputError(f"{path}: rank {method.rank} does not fit a weight of shape {list(shape)}, which has at most rank {most}")
    draws = keras.initializers.HeUniform(seed=int.from_bytes(sha256(f"{seed} {path}".encode()).digest()[:3]))
    try:
        layer.enable_lora(method.rank, lora_alpha=method.scale * method.rank, a_initializer=draws)
    except (ValueError, NotImplementedError) as error:
        raise InputError(f"{path}: {error}") from error


def merged(model: keras.Model, adapted: AdaptedKeras, data: Samples) -> keras.Model:
    """A copy of the caller's model, without LoRA layers, that computes what the adapted one does."""
    values = {name: np.asarray(slot.variable) for name, slot in slots(adapted.model).items() if "/lora_" not in name}
    for path, layer in walk(adapted.model):
        if getattr(layer, "lora_enabled", False):
            name = "embeddings" if isinstance(layer, keras.layers.Embedding) else "kernel"
            values[f"{path}/{name}"] = keras.ops.convert_to_numpy(getattr(layer, name))
    return copied(model, lambda fresh: fresh(feed(data, np.arange(1))), values)


def feed(data: Samples, rows: np.ndarray) -> Any:
    """The inputs of these samples as Keras takes them: one array, or a dict of several."""
    arrays = {name: array[rows] for name, array in data.inputs.items()}
    return next(iter(arrays.values())) if len(arrays) == 1 else arrays
