"""How far two encodings of one tensor are apart."""

from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from compress.formats import CodebookFormat, Format, IntFormat
from compress.numerics import Encoded, encode, reach
from compress.numerics.codebooks import levels
from compress.numerics.scales import rounded

Kind = Literal["EXACT", "UP TO TIES", "±1 CODE", "DIFFERS", "NO ANSWER", "cannot take", "NOT INSTALLED"]
"""From best to worst; the last three are no comparison.

EXACT        every code is the same (-0 and +0 count as one level), and what both decode to differs by at most DECODED_ULPS float32 steps: the cell says
             how many where it is not 0. A step is that of the largest number that decoding adds: the zero point's share, a double-quantized scale's offset
UP TO TIES   every code that differs belongs to a value within TIE of the threshold between the two codes: p is the value over our float32 scale (plus the
             zero point) in float64, and |p - threshold| <= TIE * max(|p|, |zero point|, largest code or level). Four float32 roundings (scale, its
             reciprocal, the product, an added zero point or offset of the codes) move p by no more than that: either code is a right answer
±1 CODE      every code that differs is the neighbour of the other one, away from ties; codes of scales (double quantization) count as codes
DIFFERS      some code is further away, or equal codes decode to other values: another scale, or another rule
NO ANSWER    what the library makes of the tensor decodes to NaN, all of it
cannot take  the library refuses such a tensor; its reason is said

Where both decode the whole reach of a scale to 0, its codes count as the same: under a scale of 0, or for zeros, any code says 0.
"""

TIE = 2.0**-22
DECODED_ULPS = 8
RANK = {kind: rank for rank, kind in enumerate(get_args(Kind)[:4])}


class CannotTake(Exception):
    """The library refuses such a tensor; the message says why."""


@dataclass(frozen=True, eq=False)
class Theirs:
    """What a library made of a tensor: codes, and values in the dtype that it returns; codes of the scales where those are quantized too."""

    codes: np.ndarray
    decoded: np.ndarray
    scale_codes: np.ndarray | None = None


@dataclass(frozen=True)
class Cell:
    """One vector through one preset and one library.

    count    of codes that differ
    ulps     the largest distance of values that equal codes decode to, in float32 steps
    detail   what a reader wants to know beside it
    """

    kind: Kind
    count: int = 0
    ulps: int = 0
    detail: str = ""

    def __str__(self) -> str:
        steps = f", {self.ulps} ulp" if self.ulps and self.kind != "DIFFERS" else ""
        return f"{self.kind} ({self.count}{steps})" if self.count else f"{self.kind}{steps}"


def blank(ours: Encoded, theirs: Theirs) -> np.ndarray:
    """bool in the values' shape: both decode the whole reach of its scale to 0, so that codes under a scale of 0 mean nothing."""
    decoded = ours.decode()
    empty = (decoded == 0) & (theirs.decoded.reshape(decoded.shape) == 0)
    granularity = getattr(ours.format, "granularity", None)
    pieces = [np.broadcast_to(p.all(1, keepdims=True), p.shape) for p in reach.split(empty, granularity)]
    return reach.join(pieces, decoded.shape)


def compare(values: np.ndarray, fmt: Format, theirs: Theirs) -> Cell:
    """The class of one library's codes [out, in] and decoded values against ours."""
    ours = encode(values, fmt)
    codes = np.asarray(theirs.codes).reshape(ours.codes.shape).astype(np.int64)
    distance = np.where(blank(ours, theirs), 0, np.abs(ranked(ours.codes, fmt) - ranked(codes, fmt)))
    off = distance > 0
    count, furthest = int(off.sum()), int(distance.max())
    scale_off = scale_distance(ours, theirs)
    ulps = decoded_ulps(ours, theirs, ~off) if not scale_off.any() else 0
    detail = f"{count} codes, {int((scale_off > 0).sum())} of {scale_off.size} scale codes by up to {scale_off.max()}" if scale_off.any() else ""
    total = count + int((scale_off > 0).sum())
    if furthest > 1 or scale_off.max(initial=0) > 1:
        return Cell("DIFFERS", total, ulps, detail or f"by up to {furthest} codes")
    if ulps > DECODED_ULPS:
        return Cell("DIFFERS", total, ulps, f"equal codes decode up to {ulps:,} float32 steps apart")
    if scale_off.any():
        return Cell("±1 CODE", total, ulps, detail)
    if not count:
        return Cell("EXACT", 0, ulps)
    return Cell("UP TO TIES" if at_ties(values, fmt, ours.codes, codes)[off].all() else "±1 CODE", count, ulps)


def ranked(codes: np.ndarray, fmt: Format) -> np.ndarray:
    """Codes by ascending level, so that neighbours differ by 1; -0 and +0 are one level."""
    if isinstance(fmt, IntFormat):
        return codes.astype(np.int64)
    table = levels(fmt.codebook)
    rank = np.full(len(table.values), -9)
    ordered = table.values[table.order]
    rank[table.order] = np.cumsum(np.concatenate([[0], np.diff(ordered) > 0]))
    return rank[codes]


def scale_distance(ours: Encoded, theirs: Theirs) -> np.ndarray:
    """int [scales]; empty where scales are no codes."""
    if ours.scale_codes is None or theirs.scale_codes is None:
        return np.zeros(0, int)
    return np.abs(ours.scale_codes.codes.astype(int) - np.asarray(theirs.scale_codes).ravel().astype(int))


def decoded_ulps(ours: Encoded, theirs: Theirs, same: np.ndarray) -> int:
    """The largest distance in float32 steps, of the values whose codes are equal; ours are rounded to the dtype that the library returns."""
    decoded = in_their_arithmetic(ours)
    step = np.spacing(np.maximum(np.abs(decoded), largest_term(ours, decoded)).astype(np.float32))
    apart = np.abs(decoded.astype(theirs.decoded.dtype).astype(np.float64) - theirs.decoded.reshape(decoded.shape).astype(np.float64))
    apart = np.where(np.isnan(apart), np.inf, apart)
    return int(np.ceil(min((apart / step)[same].max(initial=0), 2.0**31)))


def in_their_arithmetic(ours: Encoded) -> np.ndarray:
    """float32: decoded values, the product rounded before an offset is added where the format computes in half precision, as the library does."""
    fmt = ours.format
    if ours.zero_points is None or fmt.arithmetic == "float32" or fmt.zero_point != "offset":
        return ours.decode()
    product = rounded(replace(ours, zero_points=np.zeros_like(ours.zero_points)).decode(), fmt.arithmetic)
    return product + spread(ours.zero_points, product.shape, fmt).astype(np.float32)


def largest_term(ours: Encoded, decoded: np.ndarray) -> np.ndarray:
    """The largest magnitude that decoding adds or subtracts: what cancellation leaves is no more exact than that. 0 where it only multiplies."""
    fmt = ours.format
    if ours.zero_points is not None:
        zero = np.abs(spread(ours.zero_points, decoded.shape, fmt))
        return zero if fmt.zero_point == "offset" else zero * np.abs(spread(ours.scales, decoded.shape, fmt))
    if ours.scale_codes is not None:
        return np.abs(decoded / np.maximum(np.abs(spread(ours.scales, decoded.shape, fmt)), 1e-38) * ours.scale_codes.offset)
    return np.zeros_like(decoded)


def at_ties(values: np.ndarray, fmt: IntFormat | CodebookFormat, ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """bool in the values' shape: within TIE of the threshold between two codes."""
    exact = encode(values, unrounded(fmt))
    zero = None if exact.zero_points is None else spread(exact.zero_points, values.shape, fmt)
    scale = spread(exact.scales, values.shape, fmt) * float(1 if exact.global_scale is None else exact.global_scale)
    offset = zero is not None and fmt.zero_point == "offset"
    shift = np.zeros(()) if zero is None or offset else zero
    position = (values.astype(np.float64) - (zero if offset else 0)) / scale + shift
    between = (level_of(ours, fmt) + level_of(theirs, fmt)) / 2
    largest = max(map(abs, fmt.code_range)) if isinstance(fmt, IntFormat) else levels(fmt.codebook).largest
    return np.abs(position - between) <= TIE * np.maximum(np.maximum(np.abs(position), np.abs(shift)), largest)


def unrounded(fmt: IntFormat | CodebookFormat) -> Format:
    """The format whose scales are those that codes follow from."""
    if isinstance(fmt, CodebookFormat):
        return replace(fmt, double=None)
    return replace(fmt, scale_dtype=fmt.working_dtype, codes_from="stored")


def level_of(codes: np.ndarray, fmt: IntFormat | CodebookFormat) -> np.ndarray:
    return codes.astype(np.float64) if isinstance(fmt, IntFormat) else levels(fmt.codebook).values[codes].astype(np.float64)


def spread(scales: np.ndarray, shape: tuple[int, ...], fmt: IntFormat | CodebookFormat) -> np.ndarray:
    """float64 in `shape`: each value's own scale."""
    pieces = reach.split(np.zeros(shape, bool), fmt.granularity)
    wide = [np.broadcast_to(s.astype(np.float64)[:, None], p.shape) for s, p in zip(reach.split_scales(scales, pieces), pieces, strict=True)]
    return reach.join(wide, shape)
