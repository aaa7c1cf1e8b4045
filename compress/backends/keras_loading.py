"""Keras 3 models from files of Keras 3 and Keras 2, and from live tf_keras models."""

import inspect
import json
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import h5py
import keras

from compress.backends.archives import check_archive
from compress.errors import InputError

DROPPED = {"groups": 1, "time_major": False}  # arguments of Keras 2 that Keras 3 lacks, with the value that it always has
NESTED = ("Functional", "Model", "Sequential")
TRAINING = ("kernel_initializer", "kernel_regularizer", "kernel_constraint")  # said twice by Keras 2's depthwise layers, without effect


def load(model: Any) -> keras.Model:
    """A Keras 3 model from a model of Keras 3 or tf_keras, a .keras or .h5 file, or a SavedModel folder. InputError where it cannot be read."""
    if isinstance(model, keras.Model):
        return model
    if isinstance(model, str | Path):
        return load_path(Path(model))
    if isinstance(model, keras.Layer):
        raise InputError(f"{type(model).__name__} is a layer: wrap it as keras.Sequential([keras.Input(shape), layer])")
    if hasattr(model, "get_config") and hasattr(model, "save"):
        return from_old_keras(model)
    raise InputError(f"a {type(model).__module__}.{type(model).__name__} is not a Keras model")


def load_path(path: Path) -> keras.Model:
    if path.is_dir() and (path / "saved_model.pb").exists():
        return load_saved_model(path)
    if path.suffix == ".keras":
        check_archive(path)
    try:
        return load_h5(path) if path.suffix in (".h5", ".hdf5") else keras.models.load_model(path, compile=False, safe_mode=True)
    except (ValueError, TypeError, OSError, KeyError, AttributeError) as error:
        raise InputError(f"{path} cannot be opened as a Keras model: {advice(error)}") from error


def advice(error: Exception) -> str:
    """What to do about a failed load."""
    text = str(error)
    if "Could not locate" in text or "Unknown layer" in text or "TFOpLambda" in text:
        return f"it uses a class that this process lacks; name a function of yours that imports it and loads the model, as `file.py:function` ({first(text)})"
    if "lambda" in text.lower():
        return (
            "it holds a Lambda layer, whose code would run on loading. If you trust the file, load it yourself "
            "(keras.models.load_model(path, safe_mode=False)) and give the model, or name a function of yours that does, as `file.py:function`"
        )
    return first(text)


def first(text: str) -> str:
    return text.strip().splitlines()[0][:300] if text.strip() else "the file is damaged"


def load_h5(path: Path) -> keras.Model:
    """A model from HDF5 of either Keras: arguments that only Keras 2 knew are taken out of a copy of the file first."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "model.h5"
        shutil.copyfile(path, copy)
        with h5py.File(copy, "r+") as file:
            config = file.attrs.get("model_config")
            if config is None:
                raise InputError(f"{path} holds weights without a model: build the model in code, load_weights, and give it as `file.py:function`")
            file.attrs["model_config"] = json.dumps(modern(json.loads(config)))
        return keras.models.load_model(copy, compile=False, safe_mode=True)


def modern(node: Any) -> Any:
    """A Keras 2 configuration without the arguments that have no meaning any more, where the Keras 3 layer does not take them."""
    if isinstance(node, list):
        return [modern(child) for child in node]
    if not isinstance(node, dict):
        return node
    node = {key: modern(child) for key, child in node.items()}
    if node.get("class_name") in NESTED and isinstance(node.get("config"), dict):
        node["config"] = renumbered(node["config"])
    layer = getattr(keras.layers, str(node.get("class_name")), None)
    if layer is None or not isinstance(node.get("config"), dict):
        return node
    known, config = inspect.signature(layer.__init__).parameters, node["config"]
    gone = [key for key in config if key not in known and (key in TRAINING or (key in DROPPED and config[key] == DROPPED[key]))]
    node["config"] = {key: value for key, value in config.items() if key not in gone}
    return node


def renumbered(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a Keras 2 graph with the calls of a model inside it counted from 0: Keras 2 counts them from 1, and Keras 3 does not know."""
    layers = config.get("layers", [])
    kinds = {layer.get("name"): layer["class_name"] for layer in layers}
    calls = [call for layer in layers for node in layer.get("inbound_nodes", []) if isinstance(node, list) for call in node if isinstance(call, list)]
    ends = [end for end in config.get("output_layers", []) if isinstance(end, list)] if calls else []
    for call in calls:
        call[1] -= kinds[call[0]] in NESTED
    for end in ends:
        end[1] -= kinds[end[0]] == "Sequential"  # of other models it knows
    return config


def load_saved_model(folder: Path) -> keras.Model:
    """The Keras 2 model inside a SavedModel folder, read by tf_keras. InputError where there are no Keras layers in it."""
    metadata = folder / "keras_metadata.pb"
    if not metadata.exists():
        raise InputError(
            f"{folder} is a SavedModel without Keras layers (written by tf.saved_model.save, or model.export of Keras 3): its graph no longer says "
            "which constant is which layer's weight. Give the .keras or .h5 file that it was exported from, or a function that builds the model"
        )
    if b'"class_name": "Lambda"' in metadata.read_bytes():
        raise InputError(f"{folder} cannot be opened as a Keras model: {advice(ValueError('lambda'))}")
    try:
        import tf_keras
    except ModuleNotFoundError as error:
        raise InputError(f"{folder} was saved by Keras 2, which tf_keras reads: pip install tf_keras") from error
    try:
        model = tf_keras.models.load_model(folder, compile=False)
    except (ValueError, TypeError, OSError, KeyError, AttributeError) as error:
        raise InputError(f"{folder} cannot be opened as a Keras model: {advice(error)}") from error
    return from_old_keras(model)


def from_old_keras(model: Any) -> keras.Model:
    """A live tf_keras model as a Keras 3 model, by way of its HDF5 form. InputError for subclassed ones, which have none."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.h5"
        try:
            with warnings.catch_warnings(action="ignore", category=UserWarning):  # that HDF5 is an old format
                model.save(path, include_optimizer=False)
        except NotImplementedError as error:
            raise InputError(f"{type(model).__name__} of tf_keras is subclassed, so Keras 3 cannot rebuild it: write it as a Keras 3 model") from error
        return load_path(path)
