"""Calibration and example data: whatever a user has, seen as an iterable of batches of named arrays."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from compress.errors import InputError
from compress.network import InputSpec

Data = Mapping[str, np.ndarray] | np.ndarray | tuple | list | Iterable[Any] | Callable[[], Iterable[Any]]
"""One array or a dict of arrays with the samples first; a tuple of arrays in the model's input order; an iterable of single-sample dicts,
tuples or arrays (each with its batch axis of 1); or a function that returns such an iterable, for data that is streamed."""


def arrays(batch: Any, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """One batch as arrays by name, in the order of `names`."""
    if isinstance(batch, Mapping):
        missing = [name for name in names if name not in batch]
        if missing:
            raise InputError(f"the data lacks the input(s) {', '.join(missing)}; it has {', '.join(map(str, batch))}")
        return {name: np.asarray(batch[name]) for name in names}
    given = batch if isinstance(batch, tuple) else (batch,)
    if len(given) != len(names):
        raise InputError(f"the model takes {len(names)} input(s) ({', '.join(names)}), the data has {len(given)}")
    return dict(zip(names, map(np.asarray, given), strict=True))


def samples(data: Data, inputs: tuple[InputSpec, ...]) -> Iterator[dict[str, np.ndarray]]:
    """Single samples, each array with a batch axis of 1, cast to the network's dtypes. InputError where there are none."""
    names = tuple(spec.name for spec in inputs)
    dtypes = {spec.name: spec.dtype for spec in inputs}
    if isinstance(data, Iterator):
        raise InputError("an iterator can be read only once: give a list, an array, or a function that returns a fresh iterator")
    found = 0
    for batch in data() if callable(data) else ([data] if isinstance(data, Mapping | tuple | np.ndarray) else data):
        named = arrays(batch, names)
        sizes = {len(a) for a in named.values()}
        if len(sizes) != 1:
            raise InputError(f"inputs disagree on the number of samples: { {n: len(a) for n, a in named.items()} }")
        for i in range(sizes.pop()):
            found += 1
            yield {name: a[i : i + 1].astype(dtypes[name], copy=False) for name, a in named.items()}
    if not found:
        raise InputError("the data is empty: calibration and example inputs need at least one sample")
