"""The reach of every scale as one row: between a tensor's own shape and pieces [scales, values per scale]."""

from math import prod

import numpy as np

from compress.errors import InputError
from compress.formats import Granularity, PerAxis, PerBlock, PerGroup


def scale_shape(shape: tuple[int, ...], granularity: Granularity) -> tuple[int, ...]:
    """() per tensor, [out] per axis, [out, groups] per group, [blocks] per block."""
    if isinstance(granularity, PerGroup):
        return (shape[0] if shape else 1), -(-prod(shape[1:]) // granularity.size)
    if isinstance(granularity, PerBlock):
        return (-(-prod(shape) // granularity.size),)
    return shape[:1] if isinstance(granularity, PerAxis) else ()


def check(shape: tuple[int, ...], granularity: Granularity) -> None:
    """InputError where groups do not fit."""
    if isinstance(granularity, PerGroup) and granularity.ragged == "refuse" and prod(shape[1:]) % granularity.size:
        raise InputError(f"{prod(shape[1:])} values per output channel are not divisible by the group size {granularity.size}")


def split(values: np.ndarray, granularity: Granularity) -> list[np.ndarray]:
    """One or two views [scales, values per scale]: the whole groups, and the short ones at the end of each channel or of the tensor."""
    if isinstance(granularity, PerAxis):
        return [values.reshape(values.shape[0], -1)]
    if not isinstance(granularity, PerGroup | PerBlock):
        return [values.reshape(1, -1)]
    rows = values.reshape(values.shape[0] if values.ndim and isinstance(granularity, PerGroup) else 1, -1)
    whole = rows.shape[1] // granularity.size * granularity.size
    if whole == rows.shape[1]:
        return [rows.reshape(-1, granularity.size)]
    pieces = [rows[:, :whole].reshape(-1, granularity.size)] if whole else []
    return [*pieces, rows[:, whole:]]


def join(pieces: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of `split`."""
    if len(pieces) == 1:
        return pieces[0].reshape(shape)
    whole, rest = pieces
    return np.concatenate([whole.reshape(len(rest), -1), rest], axis=1).reshape(shape)


def join_scales(pieces: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """Arrays [scales, ...] of each piece as one array in `shape` (of the scales), keeping further axes."""
    if len(pieces) == 1:
        return pieces[0].reshape(shape + pieces[0].shape[1:])
    whole, rest = pieces
    channels = len(rest)
    return np.concatenate([whole.reshape(channels, -1, *whole.shape[1:]), rest.reshape(channels, 1, *rest.shape[1:])], axis=1).reshape(shape + rest.shape[1:])


def split_scales(scales: np.ndarray, pieces: list[np.ndarray], further: int = 0) -> list[np.ndarray]:
    """Scales [scales, ...] for each piece; `further` axes belong to each scale, as a codebook's entries do."""
    tail = scales.shape[scales.ndim - further :]
    if len(pieces) == 1:
        return [scales.reshape(len(pieces[0]), *tail)]
    rows = scales.reshape(len(pieces[1]), -1, *tail)
    return [rows[:, :-1].reshape(len(pieces[0]), *tail), rows[:, -1]]
