"""One adapter per framework: it shows a model as a Network."""

import sys
from pathlib import Path
from typing import Any

from compress.errors import InputError
from compress.network import Network
from compress.registry import Entry, Registry
from compress.samples import Data

BACKENDS = Registry(
    "backend",
    {
        "pytorch": Entry("compress.backends.pytorch_network", "torch", "torch.nn.Module and Hugging Face models"),
        "keras": Entry("compress.backends.keras_network", "tensorflow", "Keras 3 and tf_keras models, .keras, .h5 of Keras 2, SavedModel"),
    },
    aliases={"torch": "pytorch", "tensorflow": "keras", "tf": "keras"},
)


def backend_of(model: Any) -> str:
    """The registered backend that opens a model object or path. InputError for anything else."""
    if isinstance(model, str | Path):
        path = Path(model)
        if not path.exists():
            raise InputError(f"{path}: no such model file; a model in code is named as `file.py:function`")
        if path.suffix in (".keras", ".h5", ".hdf5") or (path / "saved_model.pb").exists():
            return "keras"
        raise InputError(f"{path}: models open from .keras, .h5, a SavedModel folder, or `file.py:function`")
    bases = {base.__module__.split(".")[0] for base in type(model).__mro__}
    torch = sys.modules.get("torch")
    if "keras" in bases or "tf_keras" in bases:
        return "keras"
    if torch is not None and isinstance(model, torch.nn.Module):
        return "pytorch"
    raise InputError(f"a {type(model).__module__}.{type(model).__name__} is neither a torch.nn.Module nor a Keras model")


def open_model(model: Any, inputs: Data | None = None) -> Network:
    """A model object, or a path to .keras, .h5 or a SavedModel, as a Network; the caller's model is left as it is.

    inputs  example data; PyTorch models need it to know their input shapes. Only its first sample is used.
    """
    return BACKENDS.load(backend_of(model)).open_model(model, inputs)
