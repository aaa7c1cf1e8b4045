"""optimum-quanto's quantize_weight with its default optimizers."""

import numpy as np
import torch
from optimum.quanto import AbsmaxOptimizer, MaxOptimizer, qint4, qint8, quantize_weight

from compress.conformance.matrix import CannotTake, Theirs
from compress.conformance.peers import Claim

PACKAGE = "optimum-quanto"


def channels(values: np.ndarray) -> Theirs:
    given = torch.from_numpy(values)
    found = quantize_weight(given, qint8, 0, AbsmaxOptimizer()(given, qint8, 0), optimized=False)
    return Theirs(found._data.numpy(), found.dequantize().numpy())


def groups(values: np.ndarray) -> Theirs:
    given = torch.from_numpy(values)
    try:
        scale, shift = MaxOptimizer()(given, qint4, 0, 128)
        found = quantize_weight(given, qint4, 0, scale, shift, 128, optimized=False)
    except ValueError as error:
        raise CannotTake(str(error)) from error
    return Theirs(found._data.unpack().numpy().reshape(values.shape), found.dequantize().numpy())


HALF = {"arithmetic": "float16"}
CLAIMS = (
    Claim("quanto.int8", "quantize_weight qint8, AbsmaxOptimizer", channels, half=HALF),
    Claim("quanto.int4.group128", "quantize_weight qint4, MaxOptimizer", groups, half=HALF),
)
