"""HQQ without its optimizer: what it starts from."""

import numpy as np
import torch
from hqq.core.quantize import Quantizer

from compress.conformance.matrix import CannotTake, Theirs
from compress.conformance.peers import Claim

PACKAGE = "hqq"


def groups(values: np.ndarray) -> Theirs:
    try:
        codes, meta = Quantizer.quantize(
            torch.from_numpy(values), nbits=4, group_size=64, optimize=False, axis=1, bitpack=False, device="cpu", compute_dtype=torch.float32
        )
    except AssertionError as error:
        raise CannotTake(str(error)) from error
    decoded = Quantizer.dequantize(codes, {**meta, "compute_dtype": torch.float32})
    return Theirs(codes.numpy().reshape(values.shape), decoded.numpy())


RECIPROCAL = "It multiplies by 15 / range, this project by the reciprocal of range / 15"
CLAIMS = (Claim("hqq.int4.group64", "Quantizer.quantize, optimize=False", groups, RECIPROCAL),)
