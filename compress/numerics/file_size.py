"""The size of a file that `Encoded.save` writes, known before anything is encoded."""

import json
from math import prod

import numpy as np

from compress.formats import CodebookFormat, FloatFormat, Format, IntFormat
from compress.numerics import coding, reach
from compress.numerics.encoded import SCALE_BYTES, code_type
from compress.numerics.storing import about

ORDER = ("uint8", "int8", "int16", "uint16", "float16", "float32")
"""safetensors lays arrays out from the widest type of its list to the narrowest, then by name."""
NAMES = {"uint8": "U8", "int8": "I8", "int16": "I16", "uint16": "U16", "float16": "F16", "float32": "F32"}
CHECKSUM = "0" * 64
Arrays = dict[str, tuple[str, tuple[int, ...]]]


def file_bytes(shape: tuple[int, ...], fmt: Format, stored: int | None = None) -> int:
    """Exact bytes of the file: the length of the header, the header, and the arrays.

    stored: how many codes are not the most frequent one; None where that is not known, and the file has at most these bytes.
    """
    form = "dense" if stored is None else smallest_form(shape, fmt, stored)
    return bytes_in(form, shape, fmt, stored or 0)


def smallest_form(shape: tuple[int, ...], fmt: Format, stored: int) -> str:
    """The first of coding.FORMS that takes the fewest bytes."""
    return min(coding.FORMS, key=lambda form: bytes_in(form, shape, fmt, stored))


def bytes_in(form: str, shape: tuple[int, ...], fmt: Format, stored: int) -> int:
    arrays, start = arrays_of(shape, fmt, form, stored), 0
    header: dict = {"__metadata__": about(fmt, shape, form) | {"sha256": CHECKSUM}}
    for name in sorted(arrays, key=lambda name: (-ORDER.index(arrays[name][0]), name)):
        dtype, lengths = arrays[name]
        stop = start + prod(lengths) * np.dtype(dtype).itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": list(lengths), "data_offsets": [start, stop]}
        start = stop
    size = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
    return 8 + size + -size % 8 + start  # safetensors fills the header with spaces


def arrays_of(shape: tuple[int, ...], fmt: Format, form: str = "dense", stored: int = 0) -> Arrays:
    """dtype and shape of what `storing.to_arrays` returns, codes in a form."""
    found: Arrays = {name: ("uint8", (size,)) for name, size in coding.sizes(form, prod(shape), fmt.bits, stored).items()}
    if isinstance(fmt, FloatFormat):
        return found
    scales = reach.scale_shape(shape, fmt.granularity)
    if isinstance(fmt, IntFormat):
        return found | {"scales": (stored_type(fmt.scale_dtype), scales)} | zero_point_arrays(scales, fmt)
    return found | scale_arrays(scales, fmt) | codebook_arrays(scales, fmt)


def stored_type(scale_dtype: str) -> str:
    """Types that NumPy lacks lie there as bit patterns."""
    return scale_dtype if scale_dtype in ("float32", "float16") else f"uint{8 * SCALE_BYTES[scale_dtype]}"


def zero_point_arrays(scales: tuple[int, ...], fmt: IntFormat) -> Arrays:
    if fmt.symmetric:
        return {}
    if fmt.zero_point != "integer":
        return {"zero_points": (stored_type(fmt.scale_dtype), scales)}
    narrow = fmt.bits < 8
    return {"zero_points": ("uint8" if narrow else code_type(fmt).name, (-(-prod(scales) * fmt.bits // 8) if narrow else prod(scales),))}


def scale_arrays(scales: tuple[int, ...], fmt: CodebookFormat) -> Arrays:
    if fmt.scaling == "none":
        return {}
    if fmt.double:
        count = prod(scales)
        codes = "int8" if fmt.double.kind == "linear" else "uint8"
        return {"scale_codes": (codes, (count,)), "scale_factors": ("float32", (-(-count // fmt.double.block),)), "scale_offset": ("float32", (1,))}
    whole: Arrays = {"global_scale": ("float32", (1,))} if fmt.scaling == "nvfp4" else {}
    return {"scales": (stored_type(fmt.scale_dtype), scales)} | whole


def codebook_arrays(scales: tuple[int, ...], fmt: CodebookFormat) -> Arrays:
    """Learned and users' entries."""
    if isinstance(fmt.codebook, str):
        return {}
    if not fmt.learned:
        return {"codebook": ("float32", (fmt.entries,))}
    dtype = fmt.codebook.entry_dtype
    factors: Arrays = {"codebook_scales": ("float32", (*scales, 1))} if dtype == "int8" else {}
    return {"codebook": (dtype, (*scales, fmt.entries))} | factors
