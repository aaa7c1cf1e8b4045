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
        "pytorch": Entry("compress.backends.pytorch_network", "torch", "torch.nn.Module, folders of Hugging Face models, .pt2 of torch.export"),
        "keras": Entry("compress.backends.keras_network", "tensorflow", "Keras 3 and tf_keras models, .keras, .h5 of Keras 2, SavedModel"),
        "onnx": Entry("compress.backends.onnx_network", "onnx", ".onnx files"),
        "litert": Entry("compress.backends.litert_network", "tensorflow", ".tflite files"),
    },
    aliases={"torch": "pytorch", "tensorflow": "keras", "tf": "keras"},
)

FILES = ("onnx", "litert")
"""Backends whose networks compute and give their weights, and can do no more: they have no gradients, and nobody looks inside."""

SUFFIXES = {".keras": "keras", ".h5": "keras", ".hdf5": "keras", ".onnx": "onnx", ".tflite": "litert", ".pt2": "pytorch"}
FOLDERS = {"saved_model.pb": "keras", "config.json": "pytorch"}  # by a file that lies in them
PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")
KNOWN = f"{', '.join(SUFFIXES)}, a SavedModel or Hugging Face folder, or `file.py:function`"


def backend_of(model: Any) -> str:
    """The registered backend that opens a model object or path. InputError for anything else."""
    if isinstance(model, str | Path):
        return backend_of_path(Path(model))
    bases = {base.__module__.split(".")[0] for base in type(model).__mro__}
    torch = sys.modules.get("torch")
    if "keras" in bases or "tf_keras" in bases:
        return "keras"
    if torch is not None and isinstance(model, (torch.nn.Module, torch.export.ExportedProgram)):
        return "pytorch"
    raise InputError(f"a {type(model).__module__}.{type(model).__name__} is neither a torch.nn.Module nor a Keras model")


def backend_of_path(path: Path) -> str:
    if not path.exists():
        raise InputError(f"{path}: no such model file; a model in code is named as `file.py:function`")
    found = SUFFIXES.get(path.suffix) or next((name for inside, name in FOLDERS.items() if (path / inside).exists()), None)
    if found:
        return found
    if path.suffix in PICKLED:
        raise InputError(
            f"{path} is a pickle, which can run code when it is opened, and holds weights without a model: write a `file.py:function` that builds the model, "
            "loads torch.load(path, weights_only=True) into it and returns it"
        )
    raise InputError(f"{path}: models open from {KNOWN}")


def open_model(model: Any, inputs: Data | None = None, weights_only: bool = False) -> Network:
    """A model object, or the path of a file or folder that holds one, as a Network; the caller's model is left as it is, and a Network is itself.

    inputs        example data; PyTorch models need it to know their input shapes. Only its first sample is used.
    weights_only  allows the pickled weights of a Hugging Face folder, read by torch's unpickler that makes nothing but tensors and containers
    """
    if hasattr(model, "with_weights"):
        return model
    name = backend_of(model)
    if weights_only and name != "pytorch":
        raise InputError("weights_only is for Hugging Face folders with pickled weights")
    return BACKENDS.load(name).open_model(model, inputs, **({"weights_only": True} if weights_only else {}))
