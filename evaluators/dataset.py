"""Test samples, read once from the user's code and kept as .npy files that every measuring process maps: same samples, same order, same bits."""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from compress.artifact import file_hash
from compress.errors import InputError
from compress.network import InputSpec
from compress.samples import Data, samples

LABELS = "labels.npy"
DESCRIPTION = "data.json"


def prepare(reference: str, folder: str, limit: int, out: str) -> dict[str, Any]:
    """Writes the first `limit` test samples into the folder `out`; says how many there are and the hash of every file."""
    from compress.references import load_data  # brings pydantic, which a measuring process need not have

    inputs, labels = load_data(reference, Path(folder), limit=limit)
    if labels is None:
        raise InputError(f"{reference!r} returns no labels: accuracy needs a pair (inputs, labels), labels one-dimensional")
    names, arrays = stacked(inputs)
    labels = np.asarray(labels)[:limit]
    arrays = [array[: len(labels)] for array in arrays]
    check(reference, names, arrays, labels)
    files = {f"{index}.npy": array for index, array in enumerate(arrays)} | {LABELS: labels.astype(np.int64)}
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".data-", dir=Path(out).parent) as fresh:
        whole = Path(fresh) / "whole"
        whole.mkdir()
        for name, array in files.items():
            np.save(whole / name, array)
        (whole / DESCRIPTION).write_text(json.dumps(names))
        if not Path(out).exists():
            os.replace(whole, out)
    return {"count": len(labels), "classes": int(labels.max()) + 1, "files": {name: file_hash(Path(out) / name) for name in files}}


def stacked(inputs: Data) -> tuple[list[str], list[np.ndarray]]:
    """Input names (numbers where the data has none) and one array for each, samples first."""
    if isinstance(inputs, Mapping):
        return list(map(str, inputs)), [np.asarray(array) for array in inputs.values()]
    if isinstance(inputs, np.ndarray | tuple) or hasattr(inputs, "__array__"):
        arrays = inputs if isinstance(inputs, tuple) else (inputs,)
        return [str(index) for index in range(len(arrays))], [np.asarray(array) for array in arrays]
    batches = [stacked(batch) for batch in (inputs() if callable(inputs) else inputs)]
    if not batches:
        raise InputError("the test data is empty")
    return batches[0][0], [np.concatenate(parts) for parts in zip(*(arrays for _, arrays in batches), strict=True)]


def check(reference: str, names: list[str], arrays: list[np.ndarray], labels: np.ndarray) -> None:
    if not len(labels):
        raise InputError(f"{reference!r} returns no samples")
    if not np.issubdtype(labels.dtype, np.integer) and labels.dtype != bool:
        raise InputError(f"{reference!r} returns labels of type {labels.dtype}: class numbers are integers")
    if labels.min() < 0:
        raise InputError(f"{reference!r} returns the label {labels.min()}: class numbers start at 0")
    for name, array in zip(names, arrays, strict=True):
        if len(array) != len(labels):
            raise InputError(f"{reference!r}: input {name!r} has {len(array)} samples for {len(labels)} labels")
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            raise InputError(f"{reference!r}: input {name!r} holds NaN or infinity")


def is_whole(folder: Path, files: Mapping[str, str]) -> bool:
    return all((folder / name).is_file() for name in [*files, DESCRIPTION])


def labels(folder: Path) -> np.ndarray:
    return np.load(folder / LABELS)


def stored_samples(folder: Path, inputs: tuple[InputSpec, ...]) -> Iterator[dict[str, np.ndarray]]:
    """Single samples under the artifact's input names. Arrays are mapped, so only samples that are used take memory."""
    names = json.loads((folder / DESCRIPTION).read_text())
    arrays = [np.load(folder / f"{index}.npy", mmap_mode="r") for index in range(len(names))]
    by_position = all(name.isdigit() for name in names)
    for sample in samples(tuple(arrays) if by_position else dict(zip(names, arrays, strict=True)), inputs):
        yield {name: np.array(array) for name, array in sample.items()}
