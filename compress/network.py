"""What every backend presents: named weights in one canonical layout, and a way to run samples."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

Inputs = Mapping[str, np.ndarray]
"""One batch: arrays by input name, the sample axis first."""

COMPRESSIBLE = (
    "linear",
    "conv1d",
    "conv2d",
    "conv3d",
    "depthwise_conv1d",
    "depthwise_conv2d",
    "depthwise_conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "embedding",
    "attention",
    "recurrent",
)
"""Layer kinds whose weights recipes compress. `attention` is a fused projection such as MultiheadAttention.in_proj_weight."""


@dataclass(frozen=True)
class Weight:
    """A tensor of the model. `value` is float32 in canonical layout: output channel first, then inputs, then kernel.

    linear [out, in] · conv [out, in / groups, *kernel] · depthwise conv [channels * multiplier, 1, *kernel] ·
    transposed conv [out, in / groups, *kernel] · embedding [entries, size].
    Kinds outside COMPRESSIBLE (`bias`, `norm`, `parameter`, `buffer`) keep the framework's own layout.
    """

    name: str  # the framework's own path, as `encoder.layer.0.output.dense.weight`
    kind: str
    value: np.ndarray
    tied: tuple[str, ...] = ()  # other names of the very same tensor


@dataclass(frozen=True)
class InputSpec:
    name: str
    shape: tuple[int, ...]  # of one batch as exported: the first axis is the batch
    dtype: str  # NumPy's name
    file_name: str = ""  # what an artifact's file calls it


class Network(Protocol):
    """A framework's model, opened for inference: evaluation mode, batch norms folded where they follow a convolution.

    It is a copy: the caller's model never changes, and neither does a Network.
    """

    framework: str  # the backend's registered name
    inputs: tuple[InputSpec, ...]  # in the order of the model's call
    notes: tuple[str, ...]  # what opening did and what it left alone, in words
    model: Any  # the framework's own object, for exporters of the same framework: not to be changed

    def weights(self) -> dict[str, Weight]:
        """Every parameter and constant buffer, tied ones once."""
        ...

    def with_weights(self, values: Mapping[str, np.ndarray]) -> "Network":
        """A copy of the network holding these canonical values instead; the others stay."""
        ...

    def run(self, inputs: Inputs) -> list[np.ndarray]:
        """Outputs of one batch, in the model's order."""
        ...
