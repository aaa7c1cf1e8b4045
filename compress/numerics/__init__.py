"""The reference arithmetic: fit scales, encode, decode, pack and count bytes. NumPy only."""

from compress.numerics.encoded import Encoded, decode, encode, parts, predicted_bytes
from compress.numerics.packing import pack_low_first, unpack_low_first

__all__ = ["Encoded", "decode", "encode", "pack_low_first", "parts", "predicted_bytes", "unpack_low_first"]
