"""Keras models from files, and from the old Keras that tf_keras still is."""

from pathlib import Path
from typing import Any

import keras

from compress.errors import InputError


def load(model: Any) -> keras.Model:
    """A Keras 3 model from a model or a path."""
    if isinstance(model, keras.Model):
        return model
    if isinstance(model, str | Path):
        return load_file(Path(model))
    raise InputError(f"a {type(model).__module__}.{type(model).__name__} is not a Keras model")


def load_file(path: Path) -> keras.Model:
    return keras.models.load_model(path, compile=False)
