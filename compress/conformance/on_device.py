"""The formats on a device's tensors beside the NumPy oracle: codes, scales, zero points and decoded values, bit by bit."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from compress.conformance.golden import VECTORS
from compress.errors import InputError
from compress.formats import CodebookFormat, Format
from compress.numerics import encode as encode_array
from compress.numerics.encoded import Encoded
from compress.numerics.fast import oracle_only
from compress.presets import PRESETS

ON_DEVICE = tuple(
    name
    for name, preset in PRESETS.items()
    if not (isinstance(preset.format, CodebookFormat) and preset.format.learned) and getattr(preset.format, "fit", "minmax") == "minmax"
)
"""Presets that are computed where the tensor lies; the others are fitted on the CPU only."""


@dataclass(frozen=True)
class Checked:
    """One preset on a device. `different` says what differs by vector; `refused` names vectors that both refuse."""

    preset: str
    vectors: int
    different: dict[str, str]
    refused: tuple[str, ...]


def check(device: str) -> list[Checked]:
    """Every preset of ON_DEVICE with every golden vector."""
    vectors = {label: make().astype(np.float32) for label, make in VECTORS.items()}
    return [checked(name, vectors, device) for name in ON_DEVICE]


def checked(name: str, vectors: Mapping[str, np.ndarray], device: str) -> Checked:
    answers = {label: difference(values, PRESETS[name].format, device) for label, values in vectors.items()}
    different = {label: text for label, text in answers.items() if text}
    return Checked(name, len(answers), different, tuple(label for label, text in answers.items() if text is None))


def difference(values: np.ndarray, fmt: Format, device: str) -> str | None:
    """What differs between the device and the oracle, "" for nothing; None where both refuse such a tensor."""
    import torch

    from compress.backends.torch_numerics import encode_on_device

    with oracle_only():
        wanted = attempt(encode_array, values, fmt)
    found = attempt(encode_on_device, torch.from_numpy(values).to(device), fmt)
    if wanted is None or found is None:
        return None if wanted is found else f"only the {'oracle' if wanted is None else 'device'} refuses it"
    return compared(found.numpy(), wanted) or ("" if near(found.decode().cpu().numpy(), wanted.decode(), slack(wanted)) else "decoded values")


def attempt(encode: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return encode(*arguments)
    except InputError:
        return None


def slack(wanted: Encoded) -> float:
    """A mean of scales is summed in another order on each device, which moves it, and every scale that is quantized twice, by some last digits."""
    return 2e-7 * float(np.abs(wanted.scales).max()) if getattr(wanted.format, "double", None) else 0.0


def compared(found: Encoded, wanted: Encoded) -> str:
    if found.codes.dtype != wanted.codes.dtype or not np.array_equal(found.codes, wanted.codes):
        return f"{int((found.codes != wanted.codes).sum())} of {wanted.codes.size} codes"
    for part in ("scales", "zero_points"):
        a, b = getattr(found, part), getattr(wanted, part)
        if (a is None) != (b is None) or (a is not None and not near(a, b, slack(wanted))):
            return part.replace("_", " ")
    return ""


def near(found: np.ndarray, wanted: np.ndarray, slack: float) -> bool:
    return found.shape == wanted.shape and bool((np.abs(found.astype(np.float64) - wanted.astype(np.float64)) <= slack).all())
