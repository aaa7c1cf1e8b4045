"""PyTorch's own fake-quantize modules, as quantization-aware training uses them by default."""

import numpy as np
import torch
from torch.ao.quantization import FakeQuantize, default_fake_quant, default_per_channel_weight_fake_quant, default_weight_fake_quant

from compress.conformance.matrix import Theirs
from compress.conformance.peers import Claim

PACKAGE = "torch"


def module(make):
    def ask(values: np.ndarray) -> Theirs:
        fake = make()
        decoded = fake(torch.from_numpy(values)).numpy()
        scale, zero = (x.numpy().reshape(-1, 1) for x in fake.calculate_qparams())
        # it returns values on the grid only: the nearest code to each is the one it took
        return Theirs(np.rint(decoded.astype(np.float64) / scale) + zero, decoded)

    return ask


ROUNDED_FIRST = "It adds the zero point after rounding, this project before"
CLAIMS = (
    Claim("torch.fakequant.int8", "default_weight_fake_quant", module(default_weight_fake_quant)),
    Claim("torch.fakequant.int8.channel", "default_per_channel_weight_fake_quant", module(default_per_channel_weight_fake_quant)),
    Claim("torch.fakequant.uint8", "FakeQuantize, quint8", module(FakeQuantize.with_args(dtype=torch.quint8)), ROUNDED_FIRST),
    Claim("torch.fakequant.uint7", "default_fake_quant (reduce_range)", module(default_fake_quant), ROUNDED_FIRST),
)
