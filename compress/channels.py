"""Whole channels: which tensors lose entries together when a channel goes, which channels matter least, and the tensors without them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import gcd
from typing import Literal

import numpy as np

from compress.errors import InputError
from compress.network import Network, Weight

Role = Literal["output", "input", "follow"]
"""How a tensor hangs on a channel.

output  it makes the channel: rows of a layer's weight, entries of its bias
input   it reads the channel: columns of a later layer's weight; several for each channel behind a flatten
follow  it acts on the channel alone: a batch norm's parameters and statistics
"""


@dataclass(frozen=True, eq=False)
class Slice:
    """Entries along one axis of a tensor in canonical layout: entry `positions[i]` belongs to channel `channels[i]` of the group."""

    weight: str
    axis: int
    role: Role
    positions: np.ndarray  # int
    channels: np.ndarray  # int, of the same length

    def of(self, removed: np.ndarray) -> np.ndarray:
        """Positions of these channels."""
        return self.positions[np.isin(self.channels, removed)]


@dataclass(frozen=True, eq=False)
class Group:
    """Channels that exist in several tensors at once: one goes from all of them or from none.

    id      name of the first weight that makes the channels
    size    how many channels there are; attention heads count as channels
    reason  why none can be removed; empty where they can
    """

    id: str
    size: int
    slices: tuple[Slice, ...]
    reason: str = ""

    def role(self, role: Role) -> tuple[Slice, ...]:
        return tuple(part for part in self.slices if part.role == role)


def scores(group: Group, weights: Mapping[str, Weight]) -> np.ndarray:
    """float64 [size]: the L2 norm of what makes each channel, over all weights that make it; biases do not count."""
    squares = np.zeros(group.size)
    for part in group.role("output"):
        value = weights[part.weight].value
        if weights[part.weight].kind != "bias":
            rows = np.square(np.moveaxis(value, part.axis, 0), dtype=np.float64).reshape(value.shape[part.axis], -1).sum(1)
            np.add.at(squares, part.channels, rows[part.positions])
    return np.sqrt(squares)


def choose(groups: Iterable[Group], weights: Mapping[str, Weight], sparsity: float, multiple: int = 1) -> dict[str, np.ndarray]:
    """Channels to keep by group id, ascending: each group loses `sparsity` of its own, rounded down, the least salient first. One always stays.

    multiple  what is kept is rounded to the nearest multiple of this many (layers that are no wider than that stay as they are): kernels that work
              on blocks of channels are slow on others. without it, 30% off the digits network made ONNX Runtime 1.8 times slower on a CPU, not faster
    """
    kept = {}
    for group in groups:
        rows = min((len(part.positions) for part in group.role("output") if weights[part.weight].kind != "bias"), default=0) // group.size
        count = remaining(group, rows, sparsity, multiple)
        if count < group.size and not group.reason:
            kept[group.id] = np.sort(np.argsort(scores(group, weights), kind="stable")[group.size - count :])
    return kept


def remaining(group: Group, rows: int, sparsity: float, multiple: int) -> int:
    """How many channels stay. A head is as many channels as it has `rows`."""
    left = max(1, group.size - int(group.size * sparsity + 1e-9))
    step = multiple // gcd(multiple, rows)
    if step == 1:
        return left
    return group.size if group.size <= step else min(group.size, step * max(1, round(left / step)))


def removals(groups: Iterable[Group], kept: Mapping[str, np.ndarray]) -> dict[str, list[tuple[int, np.ndarray]]]:
    """(axis, positions to remove) by tensor name. InputError for an unknown group, one that must stay whole, and indices that do not exist."""
    by_id = {group.id: group for group in groups}
    found: dict[str, list[tuple[int, np.ndarray]]] = {}
    for name, indices in kept.items():
        group = by_id.get(name)
        if group is None:
            raise InputError(f"the model has no group of channels {name!r}; groups: {', '.join(by_id) or 'none'}")
        if group.reason:
            raise InputError(f"channels of {name} cannot be removed: {group.reason}")
        indices = np.unique(np.asarray(indices, int))
        if not len(indices) or indices[0] < 0 or indices[-1] >= group.size:
            raise InputError(f"{name}: keep at least one of channels 0 to {group.size - 1}")
        removed = np.setdiff1d(np.arange(group.size), indices)
        for part in group.slices:
            found.setdefault(part.weight, []).append((part.axis, part.of(removed)))
    return found


def smaller(weights: Mapping[str, Weight], removed: Mapping[str, list[tuple[int, np.ndarray]]]) -> dict[str, np.ndarray]:
    """Canonical values of the tensors that lose entries, without them."""
    values = {}
    for name, parts in removed.items():
        value = weights[name].value
        for axis in {axis for axis, _ in parts}:
            value = np.delete(value, np.concatenate([positions for on, positions in parts if on == axis]), axis)
        values[name] = np.ascontiguousarray(value)
    return values


def unread(group: Group, weights: Mapping[str, Weight], removed: np.ndarray) -> dict[str, np.ndarray]:
    """Values of the tensors that read the group, which ignore these channels: the full network then computes what the smaller one does."""
    values: dict[str, np.ndarray] = {}
    for part in group.role("input"):
        value = values.setdefault(part.weight, weights[part.weight].value.copy())
        np.moveaxis(value, part.axis, 0)[part.of(removed)] = 0
    return values


def unlike(network: Network, smaller_network: Network, group: Group, removed: np.ndarray, inputs: Mapping[str, np.ndarray]) -> str:
    """Why the network without these channels is not the network that ignores them, or nothing where it is."""
    expected = network.with_weights(unread(group, network.weights(), removed)).run(inputs)
    try:
        found = smaller_network.run(inputs)
    except (RuntimeError, ValueError, TypeError) as error:
        return f"the model's own code does not run without some of them: {str(error).strip().splitlines()[0]}"
    if [a.shape for a in expected] != [b.shape for b in found]:
        return "they are the model's output"
    # only the order of sums changes; a float32 network repeats its results to about 1e-5 of their size
    same = all(np.allclose(a, b, rtol=1e-3, atol=1e-4 * max(1e-6, float(np.abs(a).max(initial=0)))) for a, b in zip(expected, found, strict=True))
    return "" if same else "an operation between the layers that make and read them mixes channels"
