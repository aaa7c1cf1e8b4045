"""A study to start from, for a given model."""

import inspect
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from compress.backends import backend_of, open_model
from compress.errors import InputError, OpenShapes
from compress.network import InputSpec
from compress.references import load_model
from evaluators.artifacts import EXPORT
from evaluators.report.files import write
from evaluators.runtimes import RUNTIMES
from evaluators.targets.cpu import Cpu

STUDY = """\
# compresskit compare {file} --out report
name: {name}
models: {{{name}: "{model}"}}
calibration: "{data}:calibration"  # typical inputs: ranges of static recipes are fitted on them, and PyTorch models learn their input shapes
test: "{data}:test"                # what accuracy is measured on; nothing else may use it
samples: 1000                      # of them, from the first; the report says which drop so many can show
# training: "{data}:train"         # for recipes that train, as prune50, qat-int8 or prune80-cluster16-int8
# learning_rate: 0.001             # at its peak, where a recipe says none
recipes: [float32, int8-weight-only, int8-dynamic, int8-static, int4-group32]  # `compresskit recipes` lists more; a .yaml file of your own is one too
runtimes: [{runtimes}]
targets: [cpu]                     # `compresskit targets` lists where else
threads: 1
task: classification               # `compresskit tasks` lists what else
"""

DATA = '''\
"""Data of {file}. Its parts must not overlap: what calibrates or trains a model says nothing when it tests it."""


def calibration():
    """Some hundred typical inputs: {inputs}."""
    raise NotImplementedError("return the inputs, as {{name: array}}")


def test(limit: int):
    """The first `limit` test samples: inputs, {inputs}; and labels int64 [samples]."""
    raise NotImplementedError("return inputs, labels")


def train():
    """What recipes that train learn from: inputs and labels as in `test`."""
    raise NotImplementedError("return inputs, labels")
'''


def start_study(model: str, path: Path) -> list[Path]:
    """Writes a commented study for a model, and beside it data.py with what is to be filled in. The files written; data.py is left as it is if it is there.

    model  a model file, or `file.py:function`, relative to the study's folder
    InputError for a study that is there already, or a model that cannot be opened.
    """
    if path.exists():
        raise InputError(f"{path} is there already; choose another name by --output")
    loaded, name = load_model(model, path.parent), Path(model.partition(":")[0]).stem.replace(".", "-")
    wanted = inputs_of(loaded)
    text = STUDY.format(file=path.name, name=name, model=model, data="data.py", runtimes=", ".join(runtimes_of(backend_of(loaded))))
    files = {path: text, path.with_name("data.py"): DATA.format(file=path.name, inputs=described(wanted))}
    return [write(file, text) for file, text in files.items() if not file.exists()]


def runtimes_of(backend: str) -> list[str]:
    """The runtimes of this CPU for which an exporter writes files of a backend's models."""
    exporters = import_module(EXPORT.partition(":")[0]).EXPORTERS
    return [name for name in Cpu().runtimes() if backend in exporters.load(RUNTIMES.load(name).EXPORTER).SOURCES]


def inputs_of(model: Any) -> Sequence[InputSpec] | Sequence[str]:
    """A model's inputs; of PyTorch models in code, which do not know their shapes, the names."""
    if isinstance(model, str | Path) or backend_of(model) != "pytorch":
        try:
            return open_model(model).inputs
        except OpenShapes as error:
            return [InputSpec(*given) for given in error.inputs]
    return list(inspect.signature(model.forward).parameters)


def described(inputs: Sequence[InputSpec] | Sequence[str]) -> str:
    if all(isinstance(one, str) for one in inputs):
        return f"arrays [samples, ...] by the names that forward has, {', '.join(inputs)}"
    shapes = [", ".join(["samples", *(str(n or "?") for n in one.shape[1:])]) for one in inputs]
    return ", ".join(f"{one.name} {one.dtype} [{shape}]" for one, shape in zip(inputs, shapes, strict=True))
