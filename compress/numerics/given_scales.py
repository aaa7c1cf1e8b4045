"""Integers by scales that are given instead of fitted, as training leaves them (LSQ: Esser et al. 2020, Learned Step Size Quantization)."""

import numpy as np

from compress.errors import InputError
from compress.formats import Format, IntFormat, PerBlock, PerGroup
from compress.numerics import reach
from compress.numerics.encoded import Encoded, checked, stored_integers
from compress.numerics.scales import LEAST_MAGNITUDE, quantize, stored


def unlearnable(fmt: Format) -> str | None:
    """Why a format's scales cannot learn, or None."""
    if not isinstance(fmt, IntFormat):
        return "their gradient is that of integers, and this format has levels of its own" if fmt.type == "codebook" else "it has none"
    if not (fmt.symmetric and fmt.signed and not fmt.negative_scales):
        return f"rule {fmt.rule}{'' if fmt.signed else ' without a sign'} has more than one positive scale to learn: take narrow, qmax, half or noclip"
    if fmt.scale_dtype.startswith("float8"):
        return f"{fmt.scale_dtype} is too coarse for the small steps of training: take float32, float16 or bfloat16"
    if isinstance(fmt.granularity, PerBlock) or (isinstance(fmt.granularity, PerGroup) and fmt.granularity.ragged == "short"):
        return f"scales learn per tensor, axis or group of one size, not {fmt.granularity}"
    usual = IntFormat(fmt.bits)
    odd = [what for what in ("rounding", "division", "codes_from", "arithmetic") if getattr(fmt, what) != getattr(usual, what)]
    odd += [] if fmt.small_scale in (usual.small_scale, *LEAST_MAGNITUDE) else ["small_scale"]
    return f"{odd[0]}: {getattr(fmt, odd[0])} is not what training computes, {getattr(usual, odd[0])} is" if odd else None


def encode_at(values: np.ndarray, fmt: IntFormat, scales: np.ndarray) -> Encoded:
    """`values` in a format whose scales may learn, by these float32 scales, shaped as `Encoded.scales`; they are rounded to their storage.

    InputError as `encode`, and for scales of another shape.
    """
    values = np.asarray(values, np.float32)
    checked(values)
    if scales.shape != (expected := reach.scale_shape(values.shape, fmt.granularity)):
        raise InputError(f"scales of shape {list(scales.shape)} do not fit, expected {list(expected)}")
    rows = reach.split(values, fmt.granularity)[0]
    scale = stored(scales.reshape(-1), fmt.scale_dtype, fmt.small_scale)
    return stored_integers(values.shape, fmt, [(quantize(rows, scale, None, fmt), scale, None)])
