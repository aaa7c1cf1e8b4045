"""Names for things in a user's own code and files: `file.py:function`, `package.module:function`, or a path."""

import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from compress.errors import InputError
from compress.registry import suggest
from compress.training import Training


def resolve(reference: str, folder: Path = Path(".")) -> Any:
    """The object behind `file.py:name` (relative to `folder`, which joins sys.path) or `package.module:name`. InputError says what is missing."""
    place, colon, name = reference.rpartition(":")
    if not colon or not name.isidentifier():
        raise InputError(f"{reference!r}: write `file.py:function` or `package.module:function`")
    module = load_file(folder / place) if place.endswith(".py") else load_module(place)
    if not hasattr(module, name):
        raise InputError(f"{reference!r}: {place} has no {name!r}; {suggest(name, [n for n in vars(module) if not n.startswith('_')])}")
    return getattr(module, name)


def load_module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and name.startswith(error.name):
            raise InputError(f"no module {name!r} can be imported") from error
        raise


def reference_to(function: Callable) -> str:
    """What names a function for other processes: `package.module:name` or `/folder/file.py:name`. InputError where nothing does."""
    name, module = getattr(function, "__qualname__", ""), inspect.getmodule(function)
    if module is None or getattr(module, "__file__", None) is None or getattr(module, name, None) is not function:
        raise InputError(f"{name or function!r} cannot be found by other processes: define it by its name at the top of a file")
    return f"{module.__name__ if module.__package__ else Path(module.__file__).resolve()}:{name}"


def load_file(path: Path) -> Any:
    """A Python file as a module, once per process; its folder joins sys.path, so that it can import its neighbours."""
    path = path.resolve()
    if not path.is_file():
        raise InputError(f"{path.name}: no such file in {path.parent.name}/")
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name not in sys.modules:
        if str(path.parent) not in sys.path:
            sys.path.insert(0, str(path.parent))
        spec = spec_from_file_location(name, path)
        module = module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def load_model(reference: str, folder: Path = Path(".")) -> Any:
    """A model object from `file.py:function` (called without arguments), or the path of a model file, for `open_model`."""
    if is_code(reference):
        return resolve(reference, folder)()
    return folder / reference


def load_data(reference: str, folder: Path = Path("."), **limit: int) -> tuple[Any, Any]:
    """Inputs and labels (None where there are none) from a function that returns inputs or (inputs, labels), or from .npy or .npz.

    A pair is (inputs, labels) where its first part names the inputs, or its second has one axis; else it is two inputs.
    """
    if not is_code(reference):
        return read_arrays(folder / reference), None
    data = resolve(reference, folder)(**limit)
    labelled = isinstance(data, tuple) and len(data) == 2 and (isinstance(data[0], Mapping) or getattr(data[1], "ndim", None) == 1)
    return data if labelled else (data, None)


def load_training(reference: str, learning_rate: float, folder: Path = Path(".")) -> Training:
    """Training data from a function that returns (inputs, labels)."""
    inputs, labels = load_data(reference, folder)
    if labels is None:
        raise InputError(f"{reference!r} returns no labels: training takes (inputs, labels)")
    return Training(inputs, labels, learning_rate=learning_rate)


def is_code(reference: str) -> bool:
    return ":" in reference and not Path(reference).exists()


def read_arrays(path: Path) -> Any:
    import numpy as np

    if path.suffix not in (".npy", ".npz") or not path.is_file():
        raise InputError(f"{path}: data comes from `file.py:function` or an existing .npy or .npz file")
    loaded = np.load(path, allow_pickle=False)
    return dict(loaded) if path.suffix == ".npz" else loaded
