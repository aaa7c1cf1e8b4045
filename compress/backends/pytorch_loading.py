"""PyTorch models from files, folders and programs of torch.export."""

from pathlib import Path

import torch
from torch import nn

from compress.backends import exported_program, hugging_face
from compress.samples import Data

AS_EXPORTED = "the program is as torch.export left it: in a training, dropout and batch norms stay as they were exported"


def load(model: Path | torch.export.ExportedProgram, inputs: Data | None, weights_only: bool) -> tuple[nn.Module, Data | None, tuple[str, ...]]:
    """A module, data that has a first sample where it holds one itself, and notes. InputError says what is wrong with a file."""
    if isinstance(model, Path) and model.suffix != ".pt2":
        return from_folder(model, inputs, weights_only)
    program = exported_program.load(model) if isinstance(model, Path) else model
    return exported_program.layered(program), exported_program.example(program) if inputs is None else inputs, (AS_EXPORTED,)


def from_folder(folder: Path, inputs: Data | None, weights_only: bool) -> tuple[nn.Module, Data, tuple[str, ...]]:
    model = hugging_face.load(folder, weights_only)
    if inputs is not None:
        return model, inputs, ()
    found = hugging_face.example(model, folder)
    shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in found.items())
    return model, found, (f"no data was given: files take {shapes}, after the tokenizer or config of the folder",)
