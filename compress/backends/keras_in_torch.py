"""Keras models through Keras's torch backend, in a process of its own since a backend is chosen once: to float ONNX or a torch ExportedProgram.

Run as `python -m compress.backends.keras_in_torch MODEL.keras {onnx,pt2} OUT SPECS`, SPECS being JSON: [[name, shape, dtype], ...].
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from compress.errors import ExportError
from compress.network import InputSpec

OPSET = 21  # the first with 4-bit integers


def to_onnx(keras_model: Any, specs: tuple[InputSpec, ...], path: Path) -> None:
    """Writes the float model as ONNX with the inputs named as in `specs`. ExportError with the child's last words where it fails."""
    in_child(keras_model, specs, path, "onnx")


def to_exported_program(keras_model: Any, specs: tuple[InputSpec, ...], path: Path) -> None:
    """Writes the float model by `torch.export.save`; its positional inputs are in the order of `specs`. ExportError as above."""
    in_child(keras_model, specs, path, "pt2")


def in_child(keras_model: Any, specs: tuple[InputSpec, ...], path: Path, kind: str) -> None:
    root = Path(__file__).parents[2]
    environment = os.environ | {"KERAS_BACKEND": "torch", "PYTHONPATH": os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH", "")]))}
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "model.keras"
        keras_model.save(saved)
        shapes = json.dumps([[spec.name, list(spec.shape), spec.dtype] for spec in specs])
        command = [sys.executable, "-m", "compress.backends.keras_in_torch", str(saved), kind, str(path), shapes]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode or not path.exists():
        last = "\n".join(done.stderr.strip().splitlines()[-8:])
        raise ExportError(f"Keras's torch backend did not export the model (exit code {done.returncode}):\n{last}")


def torch_module(model: Any, count: int):
    """The Keras model as a torch module whose positional arguments are its inputs, flat."""
    import keras
    import torch

    structure = getattr(model, "_inputs_struct", None)
    if structure is None and count > 1:  # a subclassed model's own inputs
        structure = [None] * count

    class Positional(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, *tensors):
            packed = keras.tree.pack_sequence_as(structure, list(tensors)) if structure is not None else tensors[0]
            return tuple(keras.tree.flatten(model(packed, training=False)))

    return Positional().eval().requires_grad_(False)


def child(saved: str, kind: str, path: str, shapes: str) -> None:
    import keras
    import torch

    specs = [InputSpec(name, tuple(shape), dtype) for name, shape, dtype in json.loads(shapes)]
    model = torch_module(keras.saving.load_model(saved, compile=False, safe_mode=False), len(specs))  # the file was written a moment ago by the parent
    example = tuple(torch.zeros(spec.shape, dtype=getattr(torch, spec.dtype)) for spec in specs)
    if kind == "pt2":
        with torch.no_grad():
            torch.export.save(torch.export.export(model, example), path)
        return
    program = torch.onnx.export(model, example, dynamo=True, optimize=False, opset_version=OPSET, input_names=[s.name for s in specs], verbose=False)
    program.save(path, external_data=False)


if __name__ == "__main__":
    child(*sys.argv[1:])
