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
from evaluators.tasks import open_task

LABELS = "labels.npy"
DESCRIPTION = "data.json"


def prepare(reference: str, folder: str, limit: int, out: str, task: str = "classification") -> dict[str, Any]:
    """Writes the first `limit` test samples of a task into the folder `out`; says how many there are and the hash of every file."""
    from compress.references import load_data  # brings pydantic, which a measuring process need not have

    inputs, labels = load_data(reference, Path(folder), limit=limit)
    names, arrays = stacked(inputs)
    arrays, labels = [array[:limit] for array in arrays], None if labels is None else np.asarray(labels)[:limit]
    check(reference, names, arrays, labels)
    try:
        labels = open_task(task).check(labels)
    except InputError as error:
        hint = "; a pair of arrays is taken for two inputs: name them, as {'x': array}" if labels is None and isinstance(inputs, tuple) else ""
        raise InputError(f"{reference!r} does not fit the task {task}: {error}{hint}") from error
    files = {f"{index}.npy": array for index, array in enumerate(arrays)} | ({} if labels is None else {LABELS: labels})
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".data-", dir=Path(out).parent) as fresh:
        whole = Path(fresh) / "whole"
        whole.mkdir()
        for name, array in files.items():
            np.save(whole / name, array)
        (whole / DESCRIPTION).write_text(json.dumps({"inputs": names, "task": task}))
        if not Path(out).exists():
            os.replace(whole, out)
    return {"count": len(arrays[0]), "files": {name: file_hash(Path(out) / name) for name in files}}


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


def check(reference: str, names: list[str], arrays: list[np.ndarray], labels: np.ndarray | None) -> None:
    count = len(arrays[0] if labels is None else labels)
    if not count:
        raise InputError(f"{reference!r} returns no samples")
    for name, array in zip(names, arrays, strict=True):
        if len(array) != count:
            raise InputError(f"{reference!r}: input {name!r} has {len(array)} samples for {count} {'of the first input' if labels is None else 'labels'}")
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            raise InputError(f"{reference!r}: input {name!r} holds NaN or infinity")


def is_whole(folder: Path, files: Mapping[str, str]) -> bool:
    return all((folder / name).is_file() for name in [*files, DESCRIPTION])


def labels(folder: Path) -> np.ndarray | None:
    """[samples, ...], None where the task has none."""
    return np.load(folder / LABELS) if (folder / LABELS).exists() else None


def described(folder: Path) -> dict[str, Any]:
    return json.loads((folder / DESCRIPTION).read_text())


def task(folder: Path) -> str:
    """What the samples are for."""
    return described(folder)["task"]


def stored_samples(folder: Path, inputs: tuple[InputSpec, ...]) -> Iterator[dict[str, np.ndarray]]:
    """Single samples under the artifact's input names. Arrays are mapped, so only samples that are used take memory."""
    names = described(folder)["inputs"]
    arrays = [np.load(folder / f"{index}.npy", mmap_mode="r") for index in range(len(names))]
    by_position = all(name.isdigit() for name in names)
    for sample in samples(tuple(arrays) if by_position else dict(zip(names, arrays, strict=True)), inputs):
        yield {name: np.array(array) for name, array in sample.items()}
