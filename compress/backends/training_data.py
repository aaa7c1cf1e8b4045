"""What trainings share, whatever the framework: batches, checkpoints, checks of labels, moments of what layers see."""

import inspect
import json
import os
import warnings
from collections.abc import Iterable, Mapping
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from compress.errors import BrokenFile, InputError, TrainingError
from compress.network import InputSpec, Network
from compress.registry import suggest
from compress.samples import Data, arrays, samples
from compress.steps.selector import glob
from compress.training import Constraint, Course


class Batches:
    """The batch of every step: each epoch goes over the samples in an order of its own that follows from (seed, epoch)."""

    def __init__(self, course: Course, inputs: tuple[InputSpec, ...]):
        self.course, self.inputs = course, self.checked(course, inputs)
        self.labels = np.asarray(course.data.labels)
        self.samples = len(self.labels)
        self.size = min(course.budget.batch, self.samples)

    @staticmethod
    def checked(course: Course, inputs: tuple[InputSpec, ...]) -> list[np.ndarray]:
        given, names = course.data.inputs, tuple(spec.name for spec in inputs)
        try:
            if isinstance(given, Mapping | tuple | np.ndarray):
                found = arrays(given, names)
            else:
                single = list(samples(given, inputs))
                found = {name: np.concatenate([sample[name] for sample in single]) for name in names}
        except InputError as error:
            raise InputError(f"{course.name}: {error}") from error
        count = len(np.asarray(course.data.labels))
        for spec in inputs:
            shape = found[spec.name].shape
            if shape[1:] != tuple(spec.shape[1:]):
                raise InputError(f"{course.name}: training input {spec.name} has samples of shape {list(shape[1:])}, the model takes {list(spec.shape[1:])}")
            if shape[0] != count or not count:
                raise InputError(f"{course.name}: {shape[0]} samples of training input {spec.name} for {count} labels")
        return [found[spec.name].astype(spec.dtype, copy=False) for spec in inputs]

    def at(self, step: int) -> tuple[list[np.ndarray], np.ndarray]:
        """Inputs in the model's order, and labels."""
        epoch, place = divmod(step, self.samples // self.size)
        taken = order(self.course.budget.seed, epoch, self.samples)[place * self.size : (place + 1) * self.size]
        return [array[taken] for array in self.inputs], self.labels[taken]


@lru_cache(maxsize=1)
def order(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)


class Checkpoint:
    """A training's state in a safetensors file that says which training it belongs to; nothing where the course keeps none."""

    def __init__(self, course: Course, batches: Batches, weights: Mapping[str, np.ndarray]):
        self.path: Path | None = course.checkpoint
        self.total = course.budget.total(batches.samples)
        self.name, self.training = course.name, fingerprint(course, batches, weights) if course.checkpoint else ""

    def read(self, names: set[str]) -> tuple[int, dict[str, np.ndarray]]:
        """(steps done, arrays by name); 0 where there is no file, or with a warning one of another training. BrokenFile for one that cannot be read."""
        if self.path is None or not self.path.exists():
            return 0, {}
        header, found = read_tensors(self.path, "numpy", f"{self.name}: remove it to train from the start")
        if header.get("training") != self.training or set(found) != names:
            warnings.warn(f"{self.name}: {self.path} is the checkpoint of another budget, data, recipe or model; training starts anew", stacklevel=3)
            return 0, {}
        return int(header["step"]), found

    def write(self, step: int, values: Mapping[str, np.ndarray]) -> None:
        """Replaces the file in one move, so that there is a whole one at any time. TrainingError for a number that is not finite: a checkpoint is good."""
        broken = next((name for name, value in values.items() if not np.isfinite(value).all()), None)
        if broken:
            raise TrainingError(f"{self.name}: {broken.partition('|')[0]} is not finite after step {step} of {self.total}{advice(self.path)}")
        if self.path is None:
            return
        from safetensors.numpy import save_file

        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        save_file({name: np.ascontiguousarray(value) for name, value in values.items()}, part, {"training": self.training, "step": str(step)})
        os.replace(part, self.path)


def read_tensors(path: Path, framework: str, remedy: str) -> tuple[dict[str, str], dict[str, Any]]:
    """(what the header says, arrays or tensors by name) of a safetensors file. BrokenFile, with what to do, for one that cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework) as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (a handle, not a dict)
    except SafetensorError as error:
        raise BrokenFile(f"{path} cannot be read ({error}); {remedy}") from error


def advice(checkpoint: Path | None) -> str:
    """How an error about a training that diverged ends."""
    kept = f"; the last good checkpoint is kept in {checkpoint}" if checkpoint else ""
    return f". A smaller learning rate often helps{kept}"


def fingerprint(course: Course, batches: Batches, weights: Mapping[str, np.ndarray]) -> str:
    """Equal for the same budget, loss, constraints, data, teacher and first weights. A loss of one's own counts by its source, not by what it closes over."""
    data, loss = course.data, course.data.loss
    said = {
        "budget": course.budget.model_dump(),
        "rate": course.budget.learning_rate or data.learning_rate,
        "loss": loss if isinstance(loss, str) else source(loss),
        "shapes": [list(array.shape) for array in batches.inputs],
        "remask": course.remask_every if course.remask else None,
        "constraints": {name: [repr(c.format), repr(c.activations), c.per_axis, c.zero, c.learned, c.temperature] for name, c in course.constraints.items()},
    }
    digest = sha256(json.dumps(said, sort_keys=True).encode())
    fixed = [(name, array) for name, c in course.constraints.items() for array in (c.mask, c.codes, c.scales) if array is not None]
    taught = course.teacher.weights() if course.budget.distill else {}
    given = [("", array) for array in (*batches.inputs, batches.labels)]
    for name, array in [*weights.items(), *((name, weight.value) for name, weight in taught.items()), *fixed, *given]:
        digest.update(f"{name}{array.dtype}{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def source(function: Any) -> str:
    """A function's source code, or its name where Python does not have it."""
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        return getattr(function, "__qualname__", type(function).__name__)


def clusters(value: np.ndarray, constraint: Constraint) -> tuple[np.ndarray, np.ndarray]:
    """(int64 codes in the shape of a canonical value, numbered through all channels; float32 centroids [all clusters], the means of their values).

    Cluster 0 is 0 where the constraint says so.
    """
    codes = constraint.codes.astype(np.int64)
    count = int(codes.max()) + 1
    size = count * len(codes) if constraint.per_axis else count
    if constraint.per_axis:
        codes = codes + count * np.arange(len(codes)).reshape(-1, *[1] * (codes.ndim - 1))
    members = np.bincount(codes.ravel(), minlength=size)
    centroids = np.bincount(codes.ravel(), value.ravel(), size) / np.maximum(members, 1)
    if constraint.zero:
        centroids[::count] = 0
    return codes, centroids.astype(np.float32)


def check_constraint(name: str, constraint: Constraint, shape: tuple[int, ...]) -> None:
    """InputError for a mask or codes that do not fit a canonical shape."""
    for what in ("mask", "codes"):
        given = getattr(constraint, what)
        if given is not None and given.shape != shape:
            raise InputError(f"{name}: a {what} of shape {list(given.shape)} does not fit, expected {list(shape)}")


def feature_layers(course: Course, names: Iterable[str]) -> list[str]:
    """The layers whose outputs a teacher teaches. InputError where there is no teacher, or a glob matches no layer."""
    distill = course.budget.distill
    if distill is None:
        return []
    if course.teacher is None:
        raise InputError(f"{course.name}: the budget distils, but there is no teacher")
    names, patterns = list(names), (distill.features,) if isinstance(distill.features, str) else distill.features or ()
    for pattern in patterns:
        if not any(glob(pattern, name) for name in names):
            close = suggest(pattern, names)
            raise InputError(f"{course.name}: distill.features: {pattern!r} matches no layer; {close}the model has {', '.join(names[:6])}, ...")
    return [name for name in names if glob(patterns, name)]


def check_features(course: Course, found: Mapping[str, list[Any]], taught: Mapping[str, list[Any]]) -> None:
    """InputError where the outputs of a layer are not of the teacher's shapes, or there are none."""
    for name, tensors in found.items():
        here, there = ([list(t.shape[1:]) for t in each] for each in (tensors, taught[name]))
        if not here:
            raise InputError(f"{course.name}: distill.features: layer {name} has no floating-point outputs, or the model does not call it")
        if here != there:
            reason = "channels that were taken out have no teacher: name layers that kept theirs"
            raise InputError(f"{course.name}: distill.features: layer {name} puts out {here} for each sample, its teacher {there}; {reason}")


def check_labels(course: Course, batches: Batches, output: Any) -> None:
    """InputError for labels that the loss cannot compare with a first output [1, ...]."""
    labels, shape = batches.labels, tuple(output.shape[1:])
    wanted = {"cross_entropy": shape[:-1], "mse": shape}.get(course.data.loss) if isinstance(course.data.loss, str) else labels.shape[1:]
    if labels.shape[1:] != wanted:
        raise InputError(f"{course.name}: labels have samples of shape {list(labels.shape[1:])}, {course.data.loss} of this model needs {list(wanted)}")
    if course.data.loss != "cross_entropy":
        return
    if not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"{course.name}: cross_entropy needs class indices as labels, integers, not {labels.dtype}")
    if labels.min() < 0 or labels.max() >= shape[-1]:
        raise InputError(f"{course.name}: labels from {labels.min()} to {labels.max()} are not classes 0 to {shape[-1] - 1} of this model")


def second_moments(network: Network, names: Iterable[str], data: Data) -> dict[str, np.ndarray]:
    """float64 [in * kernel, in * kernel] by name: the mean of the outer products of what each named weight is multiplied by."""
    sums: dict[str, np.ndarray] = {}
    counts: dict[str, int] = {}

    def see(name: str, rows: np.ndarray) -> None:
        rows = rows.astype(np.float64)
        sums[name] = sums.get(name, 0) + rows.T @ rows
        counts[name] = counts.get(name, 0) + len(rows)

    names = tuple(names)
    network.observe(names, data, see)
    unused = [name for name in names if name not in sums]
    if unused:
        raise InputError(f"no sample reached the layer(s) of {', '.join(unused)}, so their inputs are not known")
    return {name: sums[name] / counts[name] for name in names}
