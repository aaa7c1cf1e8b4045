"""Codes of fewer than 8 bits in bytes."""

import numpy as np


def pack_low_first(codes: np.ndarray, bits: int) -> np.ndarray:
    """uint8 [ceil(n * bits / 8)]: codes of 2 to 8 bits, flat row-major, first element in the low bits, two's complement masked.

    For 2, 4 and 8 bits this is LiteRT's and ONNX's layout; codes of 3, 5, 6 and 7 bits straddle bytes, little end first.
    """
    flat = codes.ravel().astype(np.uint8) & ((1 << bits) - 1)
    if bits == 8:
        return flat
    if bits == 4 and flat.size % 2 == 0:
        return flat[0::2] | flat[1::2] << 4
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
    if 8 % bits == 0:
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        codes = (packed.view(np.uint8).reshape(-1, 1) >> shifts & ((1 << bits) - 1)).reshape(-1)[:count]
        return codes if not signed else signed_codes(codes, bits)
    planes = np.unpackbits(packed.view(np.uint8).ravel(), bitorder="little", count=count * bits).reshape(count, bits)
    codes = np.packbits(planes, axis=1, bitorder="little")[:, 0]
    if not signed:
        return codes
    return signed_codes(codes, bits)


def signed_codes(codes: np.ndarray, bits: int) -> np.ndarray:
    """int8 of two's complement in the low bits of uint8."""
    if bits == 8:
        return codes.view(np.int8)
    sign = np.int8(1 << (bits - 1))
    return (codes.view(np.int8) ^ sign) - sign
