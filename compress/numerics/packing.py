"""Codes of fewer than 8 bits in bytes."""

import numpy as np


def pack_low_first(codes: np.ndarray, bits: int) -> np.ndarray:
    """uint8 [ceil(n * bits / 8)]: codes of 2 to 8 bits, flat row-major, first element in the low bits, two's complement masked.

    For 2, 4 and 8 bits this is LiteRT's and ONNX's layout; codes of 3, 5, 6 and 7 bits straddle bytes, little end first.
    """
    flat = codes.ravel().astype(np.uint8) & ((1 << bits) - 1)
    if bits == 8:
        return flat
    if 8 % bits == 0:
        each = 8 // bits
        padded = np.zeros(-(-flat.size // each) * each, np.uint8)
        padded[: flat.size] = flat
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        return np.bitwise_or.reduce(padded.reshape(-1, each) << shifts, axis=1)
    planes = np.unpackbits(flat[:, None], axis=1, count=bits, bitorder="little")
    return np.packbits(planes.ravel(), bitorder="little")


def unpack_low_first(packed: np.ndarray, bits: int, count: int, signed: bool = True) -> np.ndarray:
    """int8 (uint8 where not signed) [count]: the inverse of pack_low_first."""
    planes = np.unpackbits(packed.view(np.uint8).ravel(), bitorder="little", count=count * bits).reshape(count, bits)
    codes = np.packbits(planes, axis=1, bitorder="little")[:, 0]
    if not signed:
        return codes
    sign = 1 << (bits - 1)
    return ((codes.astype(np.int16) ^ sign) - sign).astype(np.int8)
