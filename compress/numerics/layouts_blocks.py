"""GGUF's blocks, which hold their scales beside the codes (ggml-common.h, gguf-py quants.py)."""

from dataclasses import dataclass

import numpy as np

from compress.errors import InputError
from compress.numerics.layouts import check_range

HALF = np.dtype("<f2")


@dataclass(frozen=True, eq=False)
class SubScales:
    """Scales (or minimums) of the eight sub-blocks of a super-block: unit * codes.

    unit    float16 [blocks]
    codes   uint8 [blocks, 8] in 0..63
    """

    unit: np.ndarray
    codes: np.ndarray


@dataclass(frozen=True)
class BlockLayout:
    """A block of codes with its scale, and its minimum where the format has one; a tensor [out, in] is [out * in / values, values] blocks.

    In the file, GGUF shows a tensor's packed blocks as uint8 [out, in / values * nbytes]: the same bytes.
    Codes are int8 where signed, else uint8. Scales and minimums are float16 [blocks], or SubScales where the blocks are super-blocks.
    stride   4-bit codes `stride` values apart share a byte, the earlier in the low nibble
    """

    name: str
    bits: int
    values: int
    nbytes: int
    signed: bool
    minimums: bool
    sub_blocks: bool
    stride: int
    about: str

    def pack(self, codes: np.ndarray, scales: np.ndarray | SubScales, minimums: np.ndarray | SubScales | None = None) -> np.ndarray:
        """uint8 [blocks, nbytes]. InputError for other shapes, codes out of range, or scales that are not float16 yet: rounding them is the caller's choice."""
        if codes.ndim != 2 or codes.shape[1] != self.values or not codes.size:
            raise InputError(f"layout {self.name} holds codes of shape [blocks, {self.values}], not {list(codes.shape)}")
        if (minimums is not None) != self.minimums:
            raise InputError(f"layout {self.name} {'needs' if self.minimums else 'has no place for'} minimums")
        check_range(codes, self.bits, self.signed, self.name)
        given = [scales, minimums] if self.minimums else [scales]
        for one in given:
            self.check_scales(one, codes.shape[0])
        units = [as_bytes(one.unit if self.sub_blocks else one) for one in given]
        subs = [pack_six_bits(scales.codes, minimums.codes)] if self.sub_blocks else []
        return np.concatenate([*units, *subs, self.write(codes)], axis=1)

    def unpack(self, packed: np.ndarray) -> tuple[np.ndarray, np.ndarray | SubScales, np.ndarray | SubScales | None]:
        """(codes, scales, minimums) that pack was given. InputError where `packed` is not uint8 [blocks, nbytes]."""
        if packed.ndim != 2 or packed.shape[1] != self.nbytes or packed.dtype != np.uint8:
            raise InputError(f"layout {self.name} is uint8 [blocks, {self.nbytes}], not {packed.dtype} {list(packed.shape)}")
        head = 4 if self.minimums else 2
        units = [np.ascontiguousarray(packed[:, at : at + 2]).view(HALF)[:, 0] for at in range(0, head, 2)]
        codes = self.read(packed[:, self.nbytes - self.values * self.bits // 8 :])
        if self.sub_blocks:
            units = [SubScales(unit, sub) for unit, sub in zip(units, unpack_six_bits(packed[:, head : head + 12]), strict=True)]
        return codes, units[0], units[1] if self.minimums else None

    def check_scales(self, given: np.ndarray | SubScales, blocks: int) -> None:
        if isinstance(given, SubScales) != self.sub_blocks:
            raise InputError(f"layout {self.name} takes its scales and minimums as {'SubScales' if self.sub_blocks else 'float16 arrays'}")
        unit = given.unit if self.sub_blocks else given
        if unit.dtype != np.float16 or unit.shape != (blocks,):
            raise InputError(f"layout {self.name} takes float16 scales and minimums [{blocks}], not {unit.dtype} {list(unit.shape)}")
        if self.sub_blocks:
            if given.codes.shape != (blocks, 8):
                raise InputError(f"layout {self.name} has 8 sub-blocks: scales of shape [{blocks}, 8], not {list(given.codes.shape)}")
            check_range(given.codes, 6, False, f"{self.name} (scales of sub-blocks)")

    def write(self, codes: np.ndarray) -> np.ndarray:
        """uint8 [blocks, bytes of the codes]; signed 4-bit codes are stored as code + 8, signed bytes in two's complement."""
        if self.bits == 8:
            return codes.astype(np.int8).view(np.uint8)
        stored = (codes.astype(np.int16) + 8 * self.signed).astype(np.uint8).reshape(codes.shape[0], -1, 2, self.stride)
        return (stored[:, :, 0] | stored[:, :, 1] << 4).reshape(codes.shape[0], -1)

    def read(self, stored: np.ndarray) -> np.ndarray:
        stored = np.ascontiguousarray(stored)
        if self.bits == 8:
            return stored.view(np.int8)
        runs = stored.reshape(stored.shape[0], -1, self.stride)
        codes = np.stack([runs & 15, runs >> 4], axis=2).reshape(stored.shape[0], self.values)
        return codes.astype(np.int8) - np.int8(8) if self.signed else codes


def as_bytes(unit: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(unit, HALF)[:, None].view(np.uint8)


def pack_six_bits(scales: np.ndarray, minimums: np.ndarray) -> np.ndarray:
    """uint8 [blocks, 12] of eight scales and eight minimums of 6 bits (ggml's get_scale_min_k4).

    Bytes 0-3: scales 0-3 under the two high bits of scales 4-7. Bytes 4-7: the same of the minimums. Bytes 8-11: low nibbles of scale and minimum 4-7.
    """
    scale, minimum = scales.astype(np.uint8), minimums.astype(np.uint8)
    firsts = [part[:, :4] | part[:, 4:] >> 4 << 6 for part in (scale, minimum)]
    return np.concatenate([*firsts, scale[:, 4:] & 15 | minimum[:, 4:] << 4], axis=1)


def unpack_six_bits(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scales and minimums, each uint8 [blocks, 8]: the inverse of pack_six_bits."""
    first, second, lows = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([first & 63, first >> 6 << 4 | lows & 15], axis=1)
    return scales, np.concatenate([second & 63, second >> 6 << 4 | lows >> 4], axis=1)


def simple(name: str, bits: int, nbytes: int, signed: bool, minimums: bool, about: str) -> BlockLayout:
    """A block of 32 values under one scale."""
    return BlockLayout(name, bits, 32, nbytes, signed, minimums, sub_blocks=False, stride=16, about=about)


BLOCK_LAYOUTS: dict[str, BlockLayout] = {
    layout.name: layout
    for layout in (
        simple("gguf_q4_0", 4, 18, True, False, "value = scale * code; stored as code + 8, values 0-15 in the low nibbles, 16-31 in the high ones"),
        simple("gguf_q4_1", 4, 20, False, True, "value = scale * code + minimum; values 0-15 in the low nibbles, 16-31 in the high ones"),
        simple("gguf_q8_0", 8, 34, True, False, "value = scale * code; two's complement"),
        BlockLayout(
            "gguf_q4_k", 4, 256, 144, False, True, sub_blocks=True, stride=32,
            about="value = scale * code - minimum, both of a sub-block of 32 values; of every 64 values the first 32 are in the low nibbles",
        ),
    )
}  # fmt: skip
