"""Operators of a LiteRT graph that decode a packed weight: the arrays that `Encoded.save` writes, to float32, bit for bit as `Encoded.decode`.

LiteRT has no kernel for codebooks, codes of 3, 5, 6 or 7 bits, float zero points and 8-bit float scales; casts, gathers and products it has.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np

from compress.formats import CodebookFormat, FloatFormat, Format, Granularity, IntFormat, PerAxis, PerBlock, PerGroup
from compress.numerics import Encoded
from compress.numerics.codebooks import levels
from compress.numerics.encoded import code_type
from compress.numerics.storing import from_storage
from exporters.litert_nodes import Nodes
from exporters.tflite_file import Place

BYTE = np.arange(256, dtype=np.uint8)


@dataclass(frozen=True, eq=False)
class Packed:
    """A weight in a graph: packed codes, and the float32 factors that decode them."""

    owner: str  # the plan's name
    encoded: Encoded
    codes: Place
    factors: Mapping[str, Place]


def typed(arrays: Mapping[str, np.ndarray], fmt: Format) -> dict[str, tuple[np.ndarray, str]]:
    """The arrays of `storing.to_arrays` with the types under which LiteRT can decode them."""
    found = {name: (array, str(array.dtype)) for name, array in arrays.items()}
    if fmt.bits >= 8 and not isinstance(fmt, CodebookFormat):
        codes = arrays["codes"].view(code_type(fmt))
        found["codes"] = codes, "bfloat16" if isinstance(fmt, FloatFormat) and fmt.dtype == "bfloat16" else str(codes.dtype)
    if not isinstance(fmt, FloatFormat) and fmt.scale_dtype == "bfloat16":
        found |= {name: (array, "bfloat16") for name, array in arrays.items() if name in ("scales", "zero_points") and array.dtype == np.uint16}
    return found


def factors(nodes: Nodes, arrays: Mapping[str, Place], fmt: Format) -> dict[str, Place]:
    """float32 scales, zero points and codebooks, each as long as there are scales: all that turns codes into values."""
    found = {}
    if "scales" in arrays or "scale_codes" in arrays:
        found["scales"] = scales(nodes, arrays, fmt)
    if "zero_points" in arrays:
        stored, integer = arrays["zero_points"], fmt.zero_point == "integer"
        found["zero_points"] = integers(nodes, stored, fmt, prod(found["scales"].shape)) if integer else small_floats(nodes, stored, fmt.scale_dtype)
    if "codebook" in arrays:
        books = nodes.cast(arrays["codebook"], "float32")
        found["codebook"] = nodes.binary("MUL", books, arrays["codebook_scales"]) if "codebook_scales" in arrays else books
    return found


def unpack(nodes: Nodes, codes: Place, given: Mapping[str, Place], fmt: Format, shape: tuple[int, ...]) -> Place:
    """float32 in `shape` from packed codes and their factors."""
    if isinstance(fmt, FloatFormat):
        return nodes.reshape(nodes.cast(codes, "float32"), shape)
    rows = Reach.of(shape, fmt.granularity)
    if isinstance(fmt, IntFormat):
        values = integers(nodes, codes, fmt, prod(shape))
    elif fmt.learned:
        return rows.whole(nodes, entries(nodes, rows.grouped(nodes, indices(nodes, codes, fmt.bits, prod(shape))), given["codebook"], fmt, rows), shape)
    else:
        table = given["codebook"] if "codebook" in given else nodes.constant(levels(fmt.codebook).values)
        values = nodes.gather(table, indices(nodes, codes, fmt.bits, prod(shape)))
    if "scales" not in given:
        return nodes.reshape(values, shape)
    return rows.whole(nodes, scaled(nodes, rows.grouped(nodes, values), given, fmt, rows), shape)


def scaled(nodes: Nodes, values: Place, given: Mapping[str, Place], fmt: IntFormat | CodebookFormat, rows: "Reach") -> Place:
    scale = nodes.reshape(given["scales"], rows.scales)
    if "zero_points" not in given:
        return nodes.binary("MUL", values, scale)
    zero = nodes.reshape(given["zero_points"], rows.scales)
    if fmt.zero_point == "offset":
        return nodes.binary("ADD", nodes.binary("MUL", values, scale), zero)
    return nodes.binary("MUL", nodes.binary("SUB", values, zero), scale)


def entries(nodes: Nodes, codes: Place, books: Place, fmt: CodebookFormat, rows: "Reach") -> Place:
    """Entries of the codebooks that belong to codes [rows, groups, size]."""
    if prod(rows.scales) > 1:
        codes = nodes.binary("ADD", codes, nodes.reshape(nodes.range(prod(rows.scales), fmt.entries), rows.scales))
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
    values = nodes.gather(nodes.constant(levels("dynamic8").values), nodes.cast(codes, "int32")) if how.dynamic else nodes.cast(codes, "float32")
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
