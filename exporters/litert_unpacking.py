"""Operators of a LiteRT graph that decode a packed weight: the arrays that `Encoded.save` writes, to float32, bit for bit as `Encoded.decode`.

LiteRT has no kernel for codebooks, codes of 3, 5, 6 or 7 bits, float zero points and 8-bit float scales; casts, gathers and products it has.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np

from compress.formats import CodebookFormat, FloatFormat, Format, Granularity, IntFormat, PerAxis, PerBlock, PerGroup
from compress.numerics import reach
from compress.numerics.codebooks import levels
from compress.numerics.encoded import code_type
from compress.numerics.storing import from_storage
from exporters.litert_nodes import Nodes
from exporters.tflite_file import Place

BYTE = np.arange(256, dtype=np.uint8)


def typed(arrays: Mapping[str, np.ndarray], fmt: Format) -> dict[str, tuple[np.ndarray, str]]:
    """The arrays of `storing.to_arrays` with the types under which LiteRT can decode them."""
    found = {name: (array, str(array.dtype)) for name, array in arrays.items()}
    if fmt.bits >= 8 and not isinstance(fmt, CodebookFormat):
        codes = arrays["codes"].view(code_type(fmt))
        found["codes"] = codes, "bfloat16" if isinstance(fmt, FloatFormat) and fmt.dtype == "bfloat16" else str(codes.dtype)
    if not isinstance(fmt, FloatFormat) and fmt.scale_dtype == "bfloat16":
        found |= {name: (array, "bfloat16") for name, array in arrays.items() if name in ("scales", "zero_points") and array.dtype == np.uint16}
    return found


def unpack(nodes: Nodes, arrays: Mapping[str, Place], fmt: Format, shape: tuple[int, ...]) -> Place:
    """float32 in the canonical `shape`."""
    if isinstance(fmt, FloatFormat):
        return nodes.reshape(nodes.cast(arrays["codes"], "float32"), shape)
    rows = Reach.of(shape, fmt.granularity)
    if isinstance(fmt, IntFormat):
        return unpack_integers(nodes, arrays, fmt, shape, rows)
    codes = indices(nodes, arrays["codes"], fmt.bits, prod(shape))
    if fmt.learned:
        return rows.whole(nodes, learned(nodes, arrays, rows.grouped(nodes, codes), rows), shape)
    table = arrays["codebook"] if "codebook" in arrays else nodes.constant(levels(fmt.codebook).values)
    values = nodes.gather(table, codes)
    if fmt.scaling == "none":
        return nodes.reshape(values, shape)
    scale = nodes.reshape(scales(nodes, arrays, fmt), rows.scales)
    return rows.whole(nodes, nodes.binary("MUL", rows.grouped(nodes, values), scale), shape)


def unpack_integers(nodes: Nodes, arrays: Mapping[str, Place], fmt: IntFormat, shape: tuple[int, ...], rows: "Reach") -> Place:
    values = rows.grouped(nodes, integers(nodes, arrays["codes"], fmt, prod(shape)))
    scale = nodes.reshape(scales(nodes, arrays, fmt), rows.scales)
    if fmt.symmetric:
        return rows.whole(nodes, nodes.binary("MUL", values, scale), shape)
    stored = arrays["zero_points"]
    zero = integers(nodes, stored, fmt, prod(rows.scales)) if fmt.zero_point == "integer" else small_floats(nodes, stored, fmt.scale_dtype)
    zero = nodes.reshape(zero, rows.scales)
    if fmt.zero_point == "offset":
        return rows.whole(nodes, nodes.binary("ADD", nodes.binary("MUL", values, scale), zero), shape)
    return rows.whole(nodes, nodes.binary("MUL", nodes.binary("SUB", values, zero), scale), shape)


def learned(nodes: Nodes, arrays: Mapping[str, Place], codes: Place, rows: "Reach") -> Place:
    """Entries of the codebooks [..., entries] that belong to the codes [rows, groups, size]."""
    books = nodes.cast(arrays["codebook"], "float32")
    if "codebook_scales" in arrays:
        books = nodes.binary("MUL", books, arrays["codebook_scales"])
    entries = books.shape[-1]
    if prod(rows.scales) > 1:
        codes = nodes.binary("ADD", codes, nodes.reshape(nodes.range(prod(rows.scales), entries), rows.scales))
    return nodes.gather(nodes.reshape(books, (prod(books.shape),)), codes)


def indices(nodes: Nodes, packed: Place, bits: int, count: int) -> Place:
    """int32 [count]: codes of up to 8 bits, packed low bits first, as they are without a sign."""
    whole = nodes.cast(packed, "int32")
    if bits == 8:
        return nodes.reshape(whole, (count,))
    if 8 % bits == 0:
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        codes = nodes.gather(nodes.constant((BYTE[:, None] >> shifts & ((1 << bits) - 1)).astype(np.int32)), nodes.reshape(whole, (prod(whole.shape),)))
        return nodes.first(nodes.reshape(codes, (prod(codes.shape),)), count)
    return nodes.first(straddling(nodes, whole, bits), count)


def straddling(nodes: Nodes, whole: Place, bits: int) -> Place:
    """Eight codes from every `bits` bytes (int32): each lies in two neighbours at most."""
    chunks = -(-prod(whole.shape) // bits)
    rows = nodes.reshape(nodes.pad(nodes.reshape(whole, (prod(whole.shape),)), chunks * bits), (chunks, bits))
    place = np.arange(8, dtype=np.int32) * bits
    low = nodes.gather(rows, nodes.constant(place // 8), axis=1)
    high = nodes.gather(rows, nodes.constant(np.minimum(place // 8 + 1, bits - 1)), axis=1)
    word = nodes.binary("ADD", low, nodes.binary("MUL", high, nodes.constant(np.int32([256]))))
    shifted = nodes.binary("RIGHT_SHIFT", word, nodes.constant(place % 8))
    return nodes.reshape(nodes.binary("FLOOR_MOD", shifted, nodes.constant(np.int32([1 << bits]))), (chunks * 8,))


def integers(nodes: Nodes, packed: Place, fmt: IntFormat, count: int) -> Place:
    """float32 [count]: integer codes, or zero points in the same bits."""
    if fmt.bits >= 8:
        return nodes.reshape(nodes.cast(packed, "float32"), (count,))
    values = np.arange(1 << fmt.bits)
    if fmt.signed:
        values = (values ^ 1 << (fmt.bits - 1)) - (1 << (fmt.bits - 1))
    return nodes.gather(nodes.constant(values.astype(np.float32)), indices(nodes, packed, fmt.bits, count))


def scales(nodes: Nodes, arrays: Mapping[str, Place], fmt: IntFormat | CodebookFormat) -> Place:
    """float32 scales, with a scale of scales or of the tensor multiplied in."""
    if "scale_codes" in arrays:
        return double(nodes, arrays, fmt)
    found = small_floats(nodes, arrays["scales"], fmt.scale_dtype)
    return nodes.binary("MUL", found, arrays["global_scale"]) if "global_scale" in arrays else found


def double(nodes: Nodes, arrays: Mapping[str, Place], fmt: CodebookFormat) -> Place:
    codes, how = arrays["scale_codes"], fmt.double
    values = nodes.gather(nodes.constant(levels("dynamic8").values), nodes.cast(codes, "int32")) if how.kind == "dynamic" else nodes.cast(codes, "float32")
    rows = Reach.of(codes.shape, PerBlock(how.block))
    product = nodes.binary("MUL", rows.grouped(nodes, values), nodes.reshape(arrays["scale_factors"], rows.scales))
    return nodes.binary("ADD", rows.whole(nodes, product, codes.shape), arrays["scale_offset"])


def small_floats(nodes: Nodes, stored: Place, dtype: str) -> Place:
    """float32 of scales in their own dtype."""
    if dtype.startswith("float8"):
        return nodes.gather(nodes.constant(from_storage(BYTE[:-1], dtype)), nodes.cast(stored, "int32"))
    return nodes.cast(stored, "float32")


@dataclass(frozen=True)
class Reach:
    """What the scales of a tensor reach: values [rows, length] in groups of `size`, the last of a row padded."""

    rows: int
    length: int
    size: int

    @classmethod
    def of(cls, shape: tuple[int, ...], granularity: Granularity) -> "Reach":
        rows = shape[0] if shape and isinstance(granularity, PerAxis | PerGroup) else 1
        length = prod(shape) // rows
        return cls(rows, length, granularity.size if isinstance(granularity, PerGroup | PerBlock) else length)

    @property
    def groups(self) -> int:
        return -(-self.length // self.size)

    @property
    def scales(self) -> tuple[int, int, int]:
        """The shape in which scales meet `grouped` values."""
        return self.rows, self.groups, 1

    def grouped(self, nodes: Nodes, values: Place) -> Place:
        rows = nodes.pad(nodes.reshape(values, (self.rows, self.length)), self.groups * self.size)
        return nodes.reshape(rows, (self.rows, self.groups, self.size))

    def whole(self, nodes: Nodes, groups: Place, shape: tuple[int, ...]) -> Place:
        """The inverse of `grouped`, in the tensor's shape."""
        rows = nodes.reshape(groups, (self.rows, self.groups * self.size))
        return nodes.reshape(nodes.first(rows, self.length), shape)
