"""PyTorch models from files."""

from pathlib import Path

from torch import nn

from compress.backends import hugging_face
from compress.samples import Data


def load(path: Path, inputs: Data | None, weights_only: bool) -> tuple[nn.Module, Data, tuple[str, ...]]:
    """A module, data that has a first sample, and notes. InputError says what is wrong with a file."""
    model = hugging_face.load(path, weights_only)
    if inputs is not None:
        return model, inputs, ()
    found = hugging_face.example(model, path)
    shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in found.items())
    return model, found, (f"no data was given: files take {shapes}, after the tokenizer or config of the folder",)
