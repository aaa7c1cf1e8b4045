"""The codes of a saved tensor in fewer bytes: without the most frequent one, and entropy-coded by Zstandard."""

from math import prod

import numpy as np

from compress.errors import BrokenFile
from compress.formats import Format
from compress.numerics.packing import pack_low_first, unpack_low_first
from compress.numerics.sparse import filled, from_mask, from_rows, mask_bytes, most_frequent, row_count, to_mask, to_rows, without

FORMS = ("dense", "bitmask", "rows")
"""dense     every code
bitmask   the most frequent code, then the others; a bit for each weight says which it has
rows      the same; for each row of 255 weights, how many others it has and where: smaller than a bitmask beyond 88% of the most frequent code
"""
CODED = ("codes", "mask", "counts", "places")
"""Arrays that entropy coding makes smaller."""
ENTROPY = "zstd"
LEVEL = 19
Arrays = dict[str, np.ndarray]


def sizes(form: str, count: int, bits: int, stored: int) -> dict[str, int]:
    """Bytes of each array of a form, `stored` of whose `count` codes are not the most frequent one."""
    if form == "dense":
        return {"codes": -(-count * bits // 8)}
    kept = {"codes": -(-(stored + 1) * bits // 8)}
    return kept | ({"mask": mask_bytes(count)} if form == "bitmask" else {"counts": row_count(count), "places": stored})


def stored_codes(codes: np.ndarray) -> int:
    """How many are not the most frequent one."""
    patterns = codes.view(f"u{codes.itemsize}")  # -0.0 is a code of its own
    return int(np.count_nonzero(patterns != most_frequent(patterns)))


def packed(codes: np.ndarray, bits: int) -> np.ndarray:
    """uint8: sub-byte codes low bits first."""
    return pack_low_first(codes, bits) if bits < 8 else np.ascontiguousarray(codes).view(np.uint8).ravel()


def to_form(codes: np.ndarray, bits: int, form: str) -> Arrays:
    if form == "dense":
        return {"codes": packed(codes, bits)}
    patterns, kept = without(codes.view(f"u{codes.itemsize}"))
    values = {"codes": packed(patterns.view(codes.dtype), bits)}
    return values | ({"mask": to_mask(kept)} if form == "bitmask" else dict(zip(("counts", "places"), to_rows(kept), strict=True)))


def from_form(arrays: Arrays, fmt: Format, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """Codes in `dtype` and `shape`, from whichever form. ValueError or IndexError where the arrays do not fit together."""
    count, kept = prod(shape), None
    if "mask" in arrays:
        kept = from_mask(arrays["mask"], count)
    elif "counts" in arrays:
        kept = from_rows(arrays["counts"], arrays["places"], count)
    stored = count if kept is None else 1 + int(kept.sum())
    codes = unpack_low_first(arrays["codes"], fmt.bits, stored, signed=dtype.kind == "i") if fmt.bits < 8 else arrays["codes"].view(dtype)
    return (codes if kept is None else filled(codes, kept)).reshape(shape)


def entropy_coded(arrays: Arrays) -> Arrays:
    """Each array of codes as uint8 of a Zstandard frame."""
    from backports import zstd

    return {name: np.frombuffer(zstd.compress(array, LEVEL), np.uint8) if name in CODED else array for name, array in arrays.items()}


def entropy_decoded(arrays: Arrays, count: int, bits: int) -> Arrays:
    """The inverse. BrokenFile for what is no frame, or holds more than `count` codes take."""
    from backports import zstd

    most = count * max(1, bits // 8) + 8

    def decoded(array: np.ndarray) -> np.ndarray:
        reader = zstd.ZstdDecompressor()
        found = reader.decompress(array, max_length=most)
        if not reader.eof:
            raise BrokenFile(f"entropy-coded codes are cut off, or more than the {most} bytes that the tensor can have")
        return np.frombuffer(found, np.uint8)

    try:
        return {name: decoded(array) if name in CODED else array for name, array in arrays.items()}
    except zstd.ZstdError as error:
        raise BrokenFile(f"entropy-coded codes cannot be read: {error}") from error
