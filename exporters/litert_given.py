"""A weight's numbers as the core made them, in the form that litert-quantizer writes."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from compress.formats import FloatFormat, PerAxis, PerGroup
from compress.numerics import Encoded
from exporters.litert_matching import Layout


@dataclass(frozen=True, eq=False)
class Given:
    """A weight's numbers in the file's layout, as litert-quantizer takes them, and what its layer computes with.

    packed: LiteRT's own types cannot hold them; litert-quantizer leaves such weights alone, and operators of the graph decode them.
    """

    name: str  # the plan's
    encoded: Encoded
    layout: Layout
    activations: Any
    packed: bool

    def parameters(self, single_channel_axis: int = 0) -> Any:
        from litert_quantizer import qtyping

        fmt, codes = self.encoded.format, self.layout.to_file(self.encoded.codes)
        if isinstance(fmt, FloatFormat):
            return qtyping.NonLinearQuantParams(num_bits=16, quantized_data=codes)
        axis, block = None, 0
        shape = [1] * codes.ndim
        if isinstance(fmt.granularity, PerAxis):
            axis = single_channel_axis if self.layout.channel_axis is None else self.layout.channel_axis
            shape[axis] = codes.shape[axis]
        elif isinstance(fmt.granularity, PerGroup):
            axis, block = 1, fmt.granularity.size
            shape = list(self.encoded.scales.shape)
        zero = np.zeros(shape, np.int32) if self.encoded.zero_points is None else self.encoded.zero_points.reshape(shape)
        scales = self.encoded.scales.reshape(shape)
        return qtyping.UniformQuantParams(num_bits=fmt.bits, quantized_dimension=axis, scale=scales, zero_point=zero, quantized_data=codes, block_size=block)
