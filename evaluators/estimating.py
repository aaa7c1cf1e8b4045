"""Milliseconds for cores that are only emulated: what one real device took for arms that were counted too, fitted and kept in the user's cache."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compress.errors import InputError, RecipeError
from evaluators.emulation.setup import cache_folder
from evaluators.progress import Progress
from evaluators.results import Estimated, Instructions, Results
from evaluators.store import identity, now
from evaluators.targets import Target, open_target

PARTS = ("dot", "mmla", "int_mla", "fmla", "ldst", "branch", "other", "bytes", "call")
"""What an inference is made of: instructions by class, the bytes of the file, which it has to read, and being called from Python, which is not counted."""
FOLDER = "calibrations"
PROTOCOL = {
    "Estimates": "Milliseconds of emulated arms are an estimate: instructions by class and bytes of the file, each at the cost that explains best what a real "
    "device took for other arms (least squared relative error, no cost negative). The error is the root mean square for models that were left out of the fit.",
}


@dataclass(frozen=True)
class Fitted:
    """What a device takes for each of PARTS, in nanoseconds, none of it negative.

    error  root mean square of the relative errors for arms of models that were left out of the fit, one model at a time
    """

    counted_on: str
    target: str  # identity of the emulated target, whose counts it understands
    device: str
    where: Mapping[str, str]
    created: str
    models: int
    arms: int
    nanoseconds: Mapping[str, float]
    error: float


def parts(found: Instructions, file_bytes: int) -> np.ndarray:
    """float64 [PARTS]"""
    named = [getattr(found, name) for name in PARTS[:6]]
    return np.array([*named, found.total - sum(named), file_bytes, 1], np.float64)


def costs(made_of: np.ndarray, ms: np.ndarray) -> np.ndarray:
    """Nanoseconds [PARTS] of least squared relative error, from `made_of` [arms, PARTS]."""
    from scipy.optimize import nnls

    scale = made_of.max(0)
    scale[scale == 0] = 1
    return nnls(made_of / scale * 1e-6 / ms[:, None], np.ones(len(ms)))[0] / scale


def error_unseen(models: Sequence[str], made_of: np.ndarray, ms: np.ndarray) -> float:
    """Fitted.error"""
    relative = np.empty(len(ms))
    for model in set(models):
        left_out = np.array([name == model for name in models])
        relative[left_out] = made_of[left_out] @ costs(made_of[~left_out], ms[~left_out]) * 1e-6 / ms[left_out] - 1
    return float(np.sqrt(np.square(relative).mean()))


def calibrate(counted: str, device: str, studies: Sequence[Path], out: Path, progress: Progress | None = None) -> tuple[Fitted, Path]:
    """Runs the studies on an emulated target and on a device, and keeps what explains the device's times. The fit, and its file.

    RecipeError where the first is not emulated or the second not timed; InputError for fewer than two models that ran on both.
    """
    from evaluators.study import compare

    folder = next((study.parent for study in studies), Path())
    targets = open_target(counted, folder), open_target(device, folder)
    if not targets[0].untimed or targets[1].untimed:
        wrong, what = (counted, "is timed itself: name an emulated one first") if not targets[0].untimed else (device, "has no times to learn from")
        raise RecipeError(f"target {wrong!r} {what}")
    rows: list[tuple[str, np.ndarray, float]] = []
    for study in studies:
        results = compare(study, out / f"{study.parent.name}-{study.stem}", progress, targets=[counted, device])
        rows += on_both(results, counted, device)
    models = [model for model, _, _ in rows]
    if len(set(models)) < 2:
        raise InputError(f"{len(set(models))} model(s) ran on both {counted} and {device}: without a second one nobody knows how far off an estimate is")
    made_of, ms = np.array([row[1] for row in rows]), np.array([row[2] for row in rows])
    fitted = Fitted(
        counted,
        identity(targets[0].identity()),
        device,
        targets[1].environment(),
        now(),
        len(set(models)),
        len(rows),
        dict(zip(PARTS, costs(made_of, ms).tolist(), strict=True)),
        error_unseen(models, made_of, ms),
    )
    return fitted, kept(fitted)


def on_both(results: Results, counted: str, device: str) -> list[tuple[str, np.ndarray, float]]:
    """Model, parts and milliseconds of every arm that was counted on one target and timed on the other."""
    timed = {(arm.model, arm.recipe, arm.runtime, arm.exporter): arm.latency for arm in results.arms if arm.target == device}
    found = []
    for arm in results.arms:
        latency = timed.get((arm.model, arm.recipe, arm.runtime, arm.exporter))
        if arm.target == counted and arm.instructions and latency:
            found.append((arm.model, parts(arm.instructions, arm.size.file_bytes), latency.median_ms.value))
    return found


def kept(fitted: Fitted) -> Path:
    folder = cache_folder() / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (re.sub(r"[^\w.-]+", "-", f"{fitted.counted_on}_{fitted.device}") + ".json")
    fresh = path.with_suffix(f".{os.getpid()}.tmp")
    fresh.write_text(json.dumps(asdict(fitted), indent=2) + "\n", encoding="utf-8")
    os.replace(fresh, path)
    return path


def known(target: Target) -> dict[str, Any] | None:
    """The newest fit, as JSON, that understands an emulated target's counts; None where no device has been measured for it."""
    wanted = identity(target.identity())
    files = [json.loads(path.read_text(encoding="utf-8")) for path in (cache_folder() / FOLDER).glob("*.json")]
    return max((found for found in files if found["target"] == wanted), key=lambda found: found["created"], default=None)


def estimate(fitted: Mapping[str, Any], found: Instructions, file_bytes: int) -> Estimated:
    ms = float(parts(found, file_bytes) @ np.array([fitted["nanoseconds"][name] for name in PARTS])) * 1e-6
    return Estimated(ms, ms * fitted["error"], fitted["device"])
