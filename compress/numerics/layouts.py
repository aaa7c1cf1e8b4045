"""The packing orders of the files that other libraries read, by name. GGUF's blocks, which hold their scales too, are in layouts_blocks.py.

`codes` are plain integers: int8 where `signed`, else uint8 (for codebooks and small floats: the code itself, sign bit and all). Where a consumer stores
signed codes with an offset, as compressed-tensors does, the layout adds it and takes it away again; `about` says so.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from compress.errors import InputError
from compress.numerics.packing import pack_low_first, unpack_low_first

Shape = tuple[int, ...]
WORD = np.dtype("<i4")
BYTE = np.dtype(np.uint8)
AWQ_ORDER = np.array([0, 2, 4, 6, 1, 3, 5, 7])  # of eight outputs, the one in each nibble of a word, lowest nibble first
GPTQ_BITS = (2, 3, 4, 8)
DENSE_BITS = tuple(range(1, 9))
HQQ_THREE_BIT_CODES = 10  # of an int32; the two highest bits stay empty


@dataclass(frozen=True)
class Layout:
    """How one consumer orders codes in its file: pack gives the very array that the file holds, unpack is its inverse.

    bits     widths that it can hold
    signed   codes are int8 in [-2^(bits-1), 2^(bits-1) - 1], else uint8 in [0, 2^bits - 1]
    flat     takes codes of any shape in row-major order; else only [rows, columns], mostly [out, in]
    words    widths that are packed into int32; the others are in uint8
    """

    name: str
    bits: tuple[int, ...]
    signed: bool
    flat: bool
    about: str
    shape_of: Callable[[Shape, int], Shape]
    write: Callable[[np.ndarray, int], np.ndarray]
    read: Callable[[np.ndarray, int, Shape], np.ndarray]
    words: tuple[int, ...] = ()

    def packed_shape(self, shape: Shape, bits: int) -> Shape:
        """Shape of the packed array for codes of `shape`. InputError says why where the layout cannot hold them."""
        if bits not in self.bits:
            raise InputError(f"layout {self.name} holds codes of {', '.join(map(str, self.bits))} bits, not {bits}")
        if not self.flat and len(shape) != 2:
            raise InputError(f"layout {self.name} holds codes of shape [rows, columns], not {list(shape)}")
        if not prod(shape):
            raise InputError(f"layout {self.name}: there are no codes in shape {list(shape)}")
        return self.shape_of(shape, bits)

    def dtype(self, bits: int) -> np.dtype:
        """Of the packed array."""
        return WORD if bits in self.words else BYTE

    def pack(self, codes: np.ndarray, bits: int) -> np.ndarray:
        """uint8 or int32 [packed_shape]: the array in the consumer's file. InputError for codes or a shape that it cannot hold."""
        shape = self.packed_shape(codes.shape, bits)
        check_range(codes, bits, self.signed, self.name)
        return np.ascontiguousarray(self.write(codes, bits)).reshape(shape)

    def unpack(self, packed: np.ndarray, bits: int, shape: Shape) -> np.ndarray:
        """int8 (uint8 where not signed) of `shape`: the codes that pack was given. InputError where the packed array has another shape or dtype."""
        expected = self.packed_shape(shape, bits)
        if packed.shape != expected or packed.dtype != self.dtype(bits):
            found = f"{packed.dtype} {list(packed.shape)}"
            raise InputError(f"layout {self.name}: {bits}-bit codes of shape {list(shape)} are {self.dtype(bits)} {list(expected)} when packed, not {found}")
        codes = self.read(np.ascontiguousarray(packed), bits, shape)
        return np.ascontiguousarray(codes, np.int8 if self.signed else np.uint8).reshape(shape)


def check_range(codes: np.ndarray, bits: int, signed: bool, name: str) -> None:
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    if codes.dtype.kind not in "iu":
        raise InputError(f"layout {name} packs integer codes, not {codes.dtype}")
    least, most = int(codes.min()), int(codes.max())
    if least < low or most > high:
        raise InputError(f"layout {name} holds {bits}-bit codes from {low} to {high}; these reach from {least} to {most}")


# --- flat bytes: bitsandbytes, ONNX, LiteRT ---


def flat_shape(shape: Shape, bits: int) -> Shape:
    return (-(-prod(shape) * bits // 8),)


def read_flat(signed: bool) -> Callable[[np.ndarray, int, Shape], np.ndarray]:
    return lambda packed, bits, shape: unpack_low_first(packed, bits, prod(shape), signed)


def swap_nibbles(packed: np.ndarray) -> np.ndarray:
    return packed << 4 | packed >> 4


def high_first(name: str, about: str, zero: int, column: bool) -> Layout:
    """Codebook indexes, the first of two in the high nibble. An odd count is filled up with the value 0, which has the code `zero`."""

    def shape_of(shape: Shape, bits: int) -> Shape:
        return (*flat_shape(shape, bits), 1) if column else flat_shape(shape, bits)

    def write(codes: np.ndarray, bits: int) -> np.ndarray:
        packed = swap_nibbles(pack_low_first(codes, bits))
        packed[-1] |= zero * (codes.size % 2)
        return packed

    def read(packed: np.ndarray, bits: int, shape: Shape) -> np.ndarray:
        return unpack_low_first(swap_nibbles(packed), bits, prod(shape), signed=False)

    return Layout(name, (4,), False, True, about, shape_of, write, read)


# --- a whole number of bytes for every row ---


def byte_rows_shape(shape: Shape, bits: int) -> Shape:
    rows, columns = shape
    if columns * bits % 8:
        raise InputError(f"compressed-tensors packs each row of small floats for itself: {columns} columns of {bits} bits do not fill whole bytes")
    return rows, columns * bits // 8


def padded_columns(codes: np.ndarray, multiple: int, fill: int) -> np.ndarray:
    """uint8 [rows, columns rounded up to a multiple]."""
    rows, columns = codes.shape
    padded = np.full((rows, -(-columns // multiple) * multiple), fill, np.uint8)
    padded[:, :columns] = codes
    return padded


def read_padded_rows(packed: np.ndarray, bits: int, shape: Shape) -> np.ndarray:
    each = packed.nbytes * 8 // bits // shape[0]
    return unpack_low_first(packed, bits, shape[0] * each, signed=False).reshape(shape[0], each)[:, : shape[1]]


def matmulnbits(block: int) -> Layout:
    """The layout of input B of ONNX Runtime's MatMulNBits with this block_size; InputError where the operator does not take it."""
    if block < 16 or block & (block - 1):
        raise InputError(f"MatMulNBits takes a block_size of 16, 32, 64, ... (a power of two), not {block}")
    return Layout(
        "matmulnbits", (2, 4, 8), signed=False, flat=False,
        about=f"B of MatMulNBits, [out, blocks of {block} inputs, bytes], low bits first, last block padded with 0; signed codes need 2^(bits-1) added",
        shape_of=lambda shape, bits: (shape[0], -(-shape[1] // block), block * bits // 8),
        write=lambda codes, bits: pack_low_first(padded_columns(codes, block, 0), bits),
        read=read_padded_rows,
    )  # fmt: skip


def write_nbits_zeros(zeros: np.ndarray, bits: int) -> np.ndarray:
    """ONNX Runtime's own quantizer fills a row's last byte with the middle of the range, not with 0."""
    return pack_low_first(padded_columns(zeros, 8 // bits, 1 << (bits - 1)), bits)


# --- int32 words: compressed-tensors, GPTQ, AWQ ---


def to_words(rows: np.ndarray, bits: int) -> np.ndarray:
    """int32 [rows, ceil(columns * bits / 32)]: each row of uint8 codes as a dense stream of bits, little end first; a code may straddle two words."""
    packed = pack_low_first(padded_columns(rows, 32, 0), bits).view(WORD)
    return packed.reshape(rows.shape[0], -1)[:, : -(-rows.shape[1] * bits // 32)]


def from_words(words: np.ndarray, bits: int, columns: int) -> np.ndarray:
    """uint8 [rows, columns]: the inverse of to_words."""
    blocks = -(-columns // 32)  # of 32 codes, which take `bits` words
    whole = np.zeros((words.shape[0], blocks * bits), WORD)
    whole[:, : words.shape[1]] = words
    return unpack_low_first(whole, bits, whole.shape[0] * blocks * 32, signed=False).reshape(whole.shape[0], -1)[:, :columns]


def dense(name: str, bits: tuple[int, ...], about: str, axis: int, words_first: bool, whole: bool = False, middle: bool = False, shift: int = 0) -> Layout:
    """A layout of int32 words, each a run of codes along `axis`.

    words_first   [words, the other axis], else [the other axis, words]
    whole         the codes must fill whole words
    middle        codes are signed, and 2^(bits-1) is added to them
    shift         is added to them
    """

    def added(bits: int) -> int:
        return shift + (1 << bits - 1 if middle else 0)

    def shape_of(shape: Shape, bits: int) -> Shape:
        if whole and shape[axis] * bits % 32:
            raise InputError(f"layout {name} fills int32 words along axis {axis}: {shape[axis]} codes of {bits} bits do not fill whole words")
        words, others = -(-shape[axis] * bits // 32), shape[1 - axis]
        return (words, others) if words_first else (others, words)

    def write(codes: np.ndarray, bits: int) -> np.ndarray:
        stored = codes.astype(np.int16) + added(bits)
        if stored.min() < 0:
            raise InputError(f"layout {name} stores zero - 1: kernels read a zero point of 0 back as 0 or as {1 << bits}; use gptq_v2_zeros")
        words = to_words(stored if axis else stored.T, bits)
        return words.T if words_first else words

    def read(packed: np.ndarray, bits: int, shape: Shape) -> np.ndarray:
        stored = from_words(packed.T if words_first else packed, bits, shape[axis]).astype(np.int16) - added(bits)
        return stored if axis else stored.T

    return Layout(name, bits, middle, False, about, shape_of, write, read, words=bits)


def awq() -> Layout:
    """Outputs along the words like gptq_v2_zeros, but eight of them in AWQ's own order."""
    about = "qweight (GEMM) [in, words] and, from [out, groups], qzeros: eight outputs to a word in the order 0 2 4 6 1 3 5 7"
    plain = dense("awq", (4,), about, axis=0, words_first=False, whole=True)

    def in_order(codes: np.ndarray, order: np.ndarray) -> np.ndarray:
        return codes.reshape(-1, 8, codes.shape[1])[:, order].reshape(codes.shape)

    return replace(
        plain,
        write=lambda codes, bits: plain.write(in_order(codes, AWQ_ORDER), bits),
        read=lambda packed, bits, shape: in_order(plain.read(packed, bits, shape), np.argsort(AWQ_ORDER)),
    )


# --- HQQ: each byte or word takes one code from every part of the rows ---


def hqq_parts(bits: int) -> int:
    return {1: 8, 2: 4, 3: HQQ_THREE_BIT_CODES, 4: 2}.get(bits, 1)


def hqq_shape(shape: Shape, bits: int) -> Shape:
    rows, columns = shape
    parts = hqq_parts(bits)
    if bits != 3 and rows % parts:
        raise InputError(f"HQQ puts {parts} parts of the rows side by side in a byte: {rows} rows are not divisible by {parts}")
    return -(-rows // parts), columns


def hqq_shifts(bits: int) -> np.ndarray:
    """[parts, 1, 1]: the first part of the rows has the highest bits."""
    return (bits * np.arange(hqq_parts(bits))[::-1]).reshape(-1, 1, 1)


def write_hqq(codes: np.ndarray, bits: int) -> np.ndarray:
    packed_rows, columns = hqq_shape(codes.shape, bits)
    whole = np.zeros((hqq_parts(bits) * packed_rows, columns), WORD if bits == 3 else BYTE)
    whole[: codes.shape[0]] = codes
    return np.bitwise_or.reduce(whole.reshape(-1, packed_rows, columns) << hqq_shifts(bits).astype(whole.dtype), axis=0)


def read_hqq(packed: np.ndarray, bits: int, shape: Shape) -> np.ndarray:
    parts = packed[None] >> hqq_shifts(bits).astype(packed.dtype) & (1 << bits) - 1
    return parts.reshape(-1, shape[1])[: shape[0]]


ALL = (
    high_first("bitsandbytes", "NF4 weight [bytes, 1], first of two codes in the high nibble; an odd count ends in code 7, NF4's 0", 7, column=True),
    high_first("bitsandbytes_fp4", "FP4 weight [bytes, 1], first of two codes in the high nibble; an odd count ends in code 0", 0, column=True),
    high_first("matmulbnb4", "B of ONNX Runtime's MatMulBnb4 and torchao's tensor, NF4: bitsandbytes' bytes without the column", 7, column=False),
    high_first("matmulbnb4_fp4", "B of ONNX Runtime's MatMulBnb4, FP4: bitsandbytes' bytes without the column", 0, column=False),
    Layout("onnx", (2, 4, 8), True, True, "raw_data of INT2, INT4, INT8: low bits first, two's complement masked", flat_shape, pack_low_first, read_flat(True)),
    Layout(
        "onnx_unsigned", (2, 4, 6, 8), False, True, "raw_data of UINT2, UINT4, UINT8 and of FLOAT4E2M1, FLOAT6*, FLOAT8*: low bits first",
        flat_shape, pack_low_first, read_flat(False),
    ),
    matmulnbits(32),
    Layout(
        "matmulnbits_zeros", (2, 4, 8), False, False, "zero points [out, blocks] of MatMulNBits, low bits first in each row, padded with 2^(bits-1)",
        lambda shape, bits: (shape[0], -(-shape[1] * bits // 8)), write_nbits_zeros, read_padded_rows,
    ),
    Layout("litert", (2, 4, 8), True, True, "buffer of INT2, INT4, INT8: low bits first, two's complement masked", flat_shape, pack_low_first, read_flat(True)),
    dense(
        "compressed_tensors", DENSE_BITS, "weight_packed of pack-quantized: code + 2^(bits-1), along the inputs, may straddle words",
        axis=1, words_first=False, middle=True,
    ),
    dense(
        "compressed_tensors_zeros", DENSE_BITS, "weight_zero_point [out, groups] of pack-quantized: zero + 2^(bits-1), along the outputs",
        axis=0, words_first=True, middle=True,
    ),
    Layout(
        "compressed_tensors_float", (4, 6), False, False, "weight_packed of NVFP4, MXFP4 and MXFP6: the floats' own bits, low bits first along the inputs",
        byte_rows_shape, pack_low_first, read_padded_rows,
    ),
    dense("gptq", GPTQ_BITS, "qweight [words, out]: along the inputs, low bits first; 3 bits straddle words", axis=1, words_first=True, whole=True),
    dense(
        "gptq_zeros", GPTQ_BITS, "qzeros of a GPTQ v1 file from zero points [out, groups]: zero - 1, [groups, words], along the outputs",
        axis=0, words_first=False, whole=True, shift=-1,
    ),
    dense(
        "gptq_v2_zeros", GPTQ_BITS, "qzeros of a GPTQ v2 file from zero points [out, groups]: [groups, words], along the outputs",
        axis=0, words_first=False, whole=True,
    ),
    awq(),
    Layout(
        "hqq", (1, 2, 3, 4, 5, 6, 8), False, False,
        "W_q of codes [groups, group] (axis 1) or [group, groups] (axis 0): first part of the rows in the high bits; 3 bits: ten per int32; 5, 6: a byte each",
        hqq_shape, write_hqq, read_hqq, words=(3,),
    ),
)  # fmt: skip

LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in ALL}
