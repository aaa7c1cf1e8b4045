"""Encoded tensors in safetensors files: self-describing, versioned, checksummed."""

import hashlib
import json
import os
import tempfile
from math import prod
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from compress.errors import BrokenFile, RecipeError
from compress.formats import CodebookFormat, FloatFormat, Format, IntFormat
from compress.numerics import coding, reach
from compress.numerics.encoded import Encoded, code_type, entry_scales
from compress.numerics.packing import pack_low_first, unpack_low_first
from compress.numerics.scales import from_bfloat16_bits, to_bfloat16_bits
from compress.numerics.scaling import ScaleCodes

VERSION, CODED_VERSION = "1", "2"
"""Files that hold every code as it is, and those that leave some out or are entropy-coded."""
FORMAT = TypeAdapter(Annotated[IntFormat | FloatFormat | CodebookFormat, Field(discriminator="type")])


def save(encoded: Encoded, path: str | os.PathLike, entropy: bool = False) -> None:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
        try:
            file.write(to_bytes(encoded, entropy))
            file.flush()
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def to_bytes(encoded: Encoded, entropy: bool = False) -> bytes:
    """The safetensors file, codes in the form that takes the fewest bytes."""
    from safetensors.numpy import save as serialized

    from compress.numerics.file_size import smallest_form

    dense, bits = to_arrays(encoded), encoded.format.bits

    def file(form: str) -> bytes:
        tensors = dense | coding.to_form(encoded.codes, bits, form)
        told = about(encoded.format, encoded.shape, form, entropy)
        tensors = coding.entropy_coded(tensors) if entropy else tensors
        return serialized(tensors, metadata=told | {"sha256": checksum(tensors, told)})

    if entropy:
        return min(map(file, coding.FORMS), key=len)
    return file(smallest_form(encoded.shape, encoded.format, coding.stored_codes(encoded.codes)))


def about(fmt: Format, shape: tuple[int, ...], form: str = "dense", entropy: bool = False) -> dict[str, str]:
    """What a file says of itself, but for its checksum; compress.numerics.file_size predicts its bytes."""
    version = VERSION if form == "dense" and not entropy else CODED_VERSION
    told = {"compresskit.encoded": version, "format": FORMAT.dump_json(fmt).decode(), "shape": json.dumps(shape)}
    return told | ({"entropy": coding.ENTROPY} if entropy else {})


def load(path: str | os.PathLike) -> Encoded:
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    try:
        with safe_open(path, "numpy") as file:
            told, tensors = dict(file.metadata() or {}), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dict
    except SafetensorError as error:
        raise BrokenFile(f"{path.name}: truncated, or not a safetensors file: {error}") from error
    if told.get("compresskit.encoded") not in (VERSION, CODED_VERSION):
        raise BrokenFile(f"{path.name}: not an encoded tensor of version {VERSION} or {CODED_VERSION}, which `Encoded.save` writes")
    if told.pop("sha256", "") != checksum(tensors, told):
        raise BrokenFile(f"{path.name}: altered: its contents do not have the checksum that it names; write it again")
    try:
        fmt, shape = FORMAT.validate_json(told["format"]), tuple(json.loads(told["shape"]))
        if told.get("entropy") not in (None, coding.ENTROPY):
            raise BrokenFile(f"{path.name}: its codes are coded by {told['entropy']}, which this version does not know")
        return from_arrays(coding.entropy_decoded(tensors, prod(shape), fmt.bits) if "entropy" in told else tensors, fmt, shape)
    except (ValidationError, RecipeError, KeyError, ValueError, IndexError) as error:
        raise BrokenFile(f"{path.name}: its format and its arrays do not fit together: {error}") from error


def checksum(tensors: dict[str, np.ndarray], about: dict[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tensors[name].shape}".encode())
        digest.update(np.ascontiguousarray(tensors[name]))
    return digest.hexdigest()


def to_arrays(encoded: Encoded) -> dict[str, np.ndarray]:
    """What is stored: packed codes, scales in the bytes of their dtype, zero points, codebooks."""
    fmt, found = encoded.format, {"codes": encoded.packed()}
    if encoded.scale_codes is not None:
        codes = encoded.scale_codes
        found |= {"scale_codes": codes.codes, "scale_factors": codes.factors, "scale_offset": np.array([codes.offset], np.float32)}
    elif encoded.scales is not None:
        found["scales"] = to_storage(encoded.scales, fmt.scale_dtype)
    if encoded.zero_points is not None:
        integer = fmt.zero_point == "integer"
        found["zero_points"] = packed_zero_points(encoded.zero_points, fmt) if integer else to_storage(encoded.zero_points, fmt.scale_dtype)
    if encoded.codebook is not None:
        found |= stored_codebook(encoded.codebook, fmt.codebook.entry_dtype)
    elif isinstance(fmt, CodebookFormat) and isinstance(fmt.codebook, tuple):
        found["codebook"] = np.array(fmt.codebook, np.float32)
    if encoded.global_scale is not None:
        found["global_scale"] = np.array([encoded.global_scale], np.float32)
    return found


def packed_zero_points(zeros: np.ndarray, fmt: IntFormat) -> np.ndarray:
    narrow = zeros.astype(code_type(fmt)).ravel()
    return pack_low_first(narrow, fmt.bits) if fmt.bits < 8 else narrow


def stored_codebook(book: np.ndarray, dtype: str) -> dict[str, np.ndarray]:
    if dtype != "int8":
        return {"codebook": book.astype(dtype)}
    scales = entry_scales(book)
    return {"codebook": np.rint(book / scales).astype(np.int8), "codebook_scales": scales}


def to_storage(scales: np.ndarray, dtype: str) -> np.ndarray:
    """Scales as their dtype's bytes: bfloat16 as uint16, E4M3 and E8M0 as uint8 bit patterns."""
    if dtype == "bfloat16":
        return to_bfloat16_bits(scales)
    if dtype == "float8_e8m0":
        return (np.frexp(scales)[1] - 1 + 127).astype(np.uint8)
    if dtype == "float8_e4m3":
        mantissa, exponent = np.frexp(np.abs(scales))
        exponent = np.maximum(exponent - 1, -6)
        steps = np.rint(np.ldexp(np.abs(scales), 3 - exponent)).astype(np.int32)  # 8 to 15; below 8 where subnormal
        bits = np.where(steps < 8, steps, ((exponent + 7) << 3) + steps - 8)
        return (bits | (np.signbit(scales) << 7)).astype(np.uint8)
    return scales.astype(dtype)


def from_storage(bits: np.ndarray, dtype: str) -> np.ndarray:
    """float32 scales."""
    from compress.numerics.codebooks import levels

    if dtype == "bfloat16":
        return from_bfloat16_bits(bits)
    if dtype == "float8_e8m0":
        return np.ldexp(np.float32(1), bits.astype(np.int32) - 127).astype(np.float32)
    return levels("e4m3").values[bits] if dtype == "float8_e4m3" else bits.astype(np.float32)


def from_arrays(tensors: dict[str, np.ndarray], fmt: Format, shape: tuple[int, ...]) -> Encoded:
    """The inverse of `to_arrays`, for codes in any form."""
    found = {"format": fmt, "codes": coding.from_form(tensors, fmt, code_type(fmt), shape)}
    if isinstance(fmt, FloatFormat):
        return Encoded(**found)
    scales = reach.scale_shape(shape, fmt.granularity)
    if "scale_codes" in tensors:
        found["scale_codes"] = ScaleCodes(tensors["scale_codes"], tensors["scale_factors"], tensors["scale_offset"][0])
        found["scales"] = found["scale_codes"].decode(fmt.double).reshape(scales)
    elif "scales" in tensors:
        found["scales"] = from_storage(tensors["scales"], fmt.scale_dtype).reshape(scales)
    if "zero_points" in tensors:
        found["zero_points"] = zero_points(tensors["zero_points"], fmt, scales)
    if isinstance(fmt, CodebookFormat) and fmt.learned:
        factors = tensors.get("codebook_scales", np.float32(1))
        found["codebook"] = tensors["codebook"].astype(np.float32) * factors
    if "global_scale" in tensors:
        found["global_scale"] = tensors["global_scale"][0]
    return Encoded(**found)


def zero_points(stored: np.ndarray, fmt: IntFormat, shape: tuple[int, ...]) -> np.ndarray:
    if fmt.zero_point != "integer":
        return from_storage(stored, fmt.scale_dtype).reshape(shape)
    wide = unpack_low_first(stored, fmt.bits, prod(shape), signed=fmt.signed) if fmt.bits < 8 else stored
    return wide.astype(np.int32).reshape(shape)
