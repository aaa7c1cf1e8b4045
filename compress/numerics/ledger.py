"""Where the bytes of an encoded tensor go, and how few could do."""

import zlib
from dataclasses import dataclass
from math import ceil

import numpy as np

from compress.numerics.encoded import Encoded, parts


@dataclass(frozen=True)
class TensorLedger:
    """Bytes of one tensor, by what they hold."""

    payload: int  # packed codes, padding included
    scales: int
    zero_points: int
    codebook: int  # levels that a reader does not know by name
    file_bytes: int  # of the file that `Encoded.save` writes, its header included, without entropy coding
    padding_bits: int  # of the payload: bits after the last code
    bits_per_weight: float  # all of it over the number of weights
    shannon_bits: float  # entropy of the codes' distribution: no code of fixed levels needs fewer bits per weight (Shannon 1948)
    deflated_bytes: int  # packed codes after zlib level 9
    float32_bytes: int

    @property
    def shannon_bytes(self) -> int:
        """A bound for the payload: whoever codes codes one by one, however well, needs no fewer bytes."""
        return ceil(self.shannon_bits * self.float32_bytes / 32)

    @property
    def total(self) -> int:
        return self.payload + self.scales + self.zero_points + self.codebook


def ledger(encoded: Encoded) -> TensorLedger:
    from compress.numerics.coding import stored_codes
    from compress.numerics.file_size import file_bytes

    found, count = parts(encoded.shape, encoded.format), encoded.codes.size
    packed = encoded.packed()
    _, counts = np.unique(encoded.codes, return_counts=True)
    share = counts / count
    return TensorLedger(
        payload=found.payload,
        scales=found.scales,
        zero_points=found.zero_points,
        codebook=found.codebook,
        file_bytes=file_bytes(encoded.shape, encoded.format, stored_codes(encoded.codes)),
        padding_bits=8 * found.payload - count * encoded.format.bits,
        bits_per_weight=8 * found.total / count,
        shannon_bits=float(-(share * np.log2(share)).sum()) + 0.0,
        deflated_bytes=len(zlib.compress(packed, 9)),
        float32_bytes=4 * count,
    )
