"""ONNX operators whose sizes, axes or indices are constants, in torch.

onnx2torch's own read them from tensors while they run, which torch.export cannot follow.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def reshape(x: torch.Tensor, axis: int, sizes: list[int]) -> torch.Tensor:
    return x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(sizes)])


def expand(x: torch.Tensor, axis: int, sizes: list[int]) -> torch.Tensor:
    return x.expand(torch.broadcast_shapes(x.shape, sizes))


def unsqueeze(x: torch.Tensor, axis: int, axes: list[int]) -> torch.Tensor:
    for place in sorted(one % (x.ndim + len(axes)) for one in axes):
        x = x.unsqueeze(place)
    return x


def squeeze(x: torch.Tensor, axis: int, axes: list[int]) -> torch.Tensor:
    return x.squeeze(tuple(axes))


def gather(x: torch.Tensor, axis: int, index: int | list) -> torch.Tensor:
    if isinstance(index, int):
        return x.select(axis, index)
    places = torch.tensor(index) % x.shape[axis]
    return x.index_select(axis, places.flatten()).unflatten(axis, places.shape)


def cut(x: torch.Tensor, axis: int, starts: list[int], ends: list[int], axes: list[int] | None = None, steps: list[int] | None = None) -> torch.Tensor:
    places = [slice(None)] * x.ndim
    for i, place in enumerate(axes or range(len(starts))):
        places[place] = slice(starts[i], ends[i], steps[i] if steps else 1)
    return x[tuple(places)]


def split(x: torch.Tensor, axis: int, sizes: list[int]) -> tuple[torch.Tensor, ...]:
    return torch.split(x, sizes, axis)


def tile(x: torch.Tensor, axis: int, repeats: list[int]) -> torch.Tensor:
    return x.tile(repeats)


FIXED: dict[str, Callable[..., Any]] = {
    "Reshape": reshape,
    "Expand": expand,
    "Unsqueeze": unsqueeze,
    "Squeeze": squeeze,
    "Gather": gather,
    "Slice": cut,
    "Split": split,
    "Tile": tile,
}


class Fixed(nn.Module):
    """One of these operators; `given` are its constants, `axis` its attribute."""

    def __init__(self, name: str, given: list[Any], axis: int):
        super().__init__()
        self.name, self.given, self.axis = name, given, axis

    def forward(self, x: torch.Tensor) -> Any:
        return FIXED[self.name](x, self.axis, *self.given)
