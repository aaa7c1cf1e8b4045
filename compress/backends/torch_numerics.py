"""The core's formats on torch tensors, without leaving their device; the same bits as the NumPy oracle."""

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch

from compress.errors import InputError
from compress.formats import CodebookFormat, FloatFormat, Format, IntFormat
from compress.numerics import Encoded, reach
from compress.numerics import encode as encode_array
from compress.numerics.codebooks import MANTISSA_BITS, Levels, levels
from compress.numerics.encoded import beyond, checked
from compress.numerics.ledger import TensorLedger
from compress.numerics.scales import E4M3_EPS, E4M3_LARGEST, E4M3_NORMAL, E4M3_SMALLEST, HQQ_RANGE, HQQ_SCALE, LEAST_MAGNITUDE, REPLACED, SMALLEST_SCALE, TINY
from compress.numerics.scaling import GRID, LARGEST, SMALLEST, ScaleCodes, check_levels, grid_codes

ARRAYS = ("codes", "scales", "zero_points", "codebook")
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, eq=False)
class TorchEncoded(Encoded):
    """An Encoded whose arrays are torch tensors on one device, in the same shapes and dtypes; `numpy()` brings it to the CPU."""

    def decode(self) -> torch.Tensor:
        """float32 values in the tensor's shape, on its device."""
        return decode(self)

    def numpy(self) -> Encoded:
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        if self.scale_codes is not None:
            parts = self.scale_codes
            found["scale_codes"] = ScaleCodes(parts.codes.cpu().numpy(), parts.factors.cpu().numpy(), np.float32(parts.offset.item()))
        if self.global_scale is not None:
            found["global_scale"] = np.float32(self.global_scale.item())
        return Encoded(**found | {name: found[name].cpu().numpy() for name in ARRAYS if found[name] is not None})

    def packed(self) -> np.ndarray:
        return self.numpy().packed()

    def save(self, path: str | Path) -> None:
        self.numpy().save(path)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.codes.shape)

    @property
    def ledger(self) -> TensorLedger:
        return self.numpy().ledger


def encode(values: torch.Tensor, fmt: Format, sensitivity: torch.Tensor | None = None) -> TorchEncoded:
    """`values` (any float dtype) in a format, on their device. On the CPU the core's own loops run, without a copy."""
    values = values.detach()
    if values.device.type != "cpu":
        return encode_on_device(values.float().contiguous(), fmt, sensitivity)
    weights = None if sensitivity is None else sensitivity.detach().float().numpy()
    return from_numpy(encode_array(values.float().numpy(), fmt, weights), "cpu")


def from_numpy(encoded: Encoded, device: torch.device | str) -> TorchEncoded:
    found = {field.name: getattr(encoded, field.name) for field in fields(encoded)}
    if encoded.scale_codes is not None:
        parts = encoded.scale_codes
        found["scale_codes"] = ScaleCodes(*(torch.as_tensor(part, device=device) for part in (parts.codes, parts.factors, parts.offset)))
    if encoded.global_scale is not None:
        found["global_scale"] = torch.as_tensor(encoded.global_scale, device=device)
    return TorchEncoded(**found | {name: torch.as_tensor(found[name], device=device) for name in ARRAYS if found[name] is not None})


def encode_on_device(values: torch.Tensor, fmt: Format, sensitivity: torch.Tensor | None = None) -> TorchEncoded:
    """float32 values. InputError for what only the CPU computes: learned codebooks and fitted ranges."""
    if not values.numel() or not torch.isfinite(values).all():
        checked(values.cpu().numpy())
    if isinstance(fmt, FloatFormat):
        half = values.to(DTYPES[fmt.dtype])
        if not torch.isfinite(half).all():
            raise InputError(f"values up to {values.abs().max().item():.3g} do not fit float16 (largest 65504); use bfloat16")
        return TorchEncoded(fmt, half if fmt.dtype == "float16" else half.view(torch.uint16))
    if sensitivity is not None or (isinstance(fmt, CodebookFormat) and fmt.learned) or (isinstance(fmt, IntFormat) and fmt.fit != "minmax"):
        raise InputError(f"{fmt} is fitted on the CPU only: encode(values.cpu(), ...)")
    if fmt.arithmetic != "float32":
        raise InputError(f"{fmt} is computed on the CPU only: encode(values.cpu(), ...)")
    reach.check(tuple(values.shape), fmt.granularity)
    return integers(values, fmt) if isinstance(fmt, IntFormat) else codebook(values, fmt)


def integers(values: torch.Tensor, fmt: IntFormat) -> TorchEncoded:
    shape, found = tuple(values.shape), []
    for rows in reach.split(values, fmt.granularity):
        scale, zero = fit(rows, fmt)
        found.append((quantize(rows, scale, zero, fmt), scale, zero))
    codes, scales, zeros = zip(*found, strict=True)
    of_scales = reach.scale_shape(shape, fmt.granularity)
    zero = None if fmt.symmetric else join_scales(zeros, of_scales)
    if zero is not None:
        zero = zero.to(torch.int32) if fmt.zero_point == "integer" else rounded(zero, fmt.scale_dtype)
        within(zero, fmt.scale_dtype)
    kept = join_scales(scales, of_scales)
    if fmt.codes_from == "exact":
        kept = rounded(kept, fmt.scale_dtype)
    within(kept, fmt.scale_dtype)
    return TorchEncoded(fmt, join(codes, shape), kept, zero)


def within(scales: torch.Tensor, dtype: str) -> None:
    """InputError for scales, or offsets, that their storage holds as infinity."""
    if not torch.isfinite(scales).all():
        raise beyond(dtype)


def fit(rows: torch.Tensor, fmt: IntFormat) -> tuple[torch.Tensor, torch.Tensor | None]:
    low, high = fmt.code_range
    bottom, top = rows.amin(1), rows.amax(1)
    if fmt.symmetric:
        return stored(symmetric_scale(rows, bottom, top, fmt), fmt.working_dtype, fmt.small_scale), None
    if fmt.zero_point == "integer":
        bottom, top = bottom.clamp(max=0), top.clamp(min=0)
        scale = stored((top - bottom) / (high - low), fmt.working_dtype, fmt.small_scale)
        return scale, round_to(low - bottom / scale, fmt.rounding).clamp(low, high)
    exact = (top - bottom) / (high - low)
    if fmt.small_scale == "hqq":
        exact = torch.where(top - bottom <= float(HQQ_RANGE), 1.0, exact.clamp(min=float(HQQ_SCALE)))
    scale = stored(exact, fmt.working_dtype, fmt.small_scale)
    exact = exact if fmt.small_scale in (*REPLACED, "keep") else raised(exact, fmt.small_scale)
    return scale, rounded(low - bottom / scale if fmt.zero_point == "float" else bottom - low * exact, fmt.working_dtype)


def symmetric_scale(rows: torch.Tensor, bottom: torch.Tensor, top: torch.Tensor, fmt: IntFormat) -> torch.Tensor:
    low, high = fmt.code_range
    if fmt.rule == "noclip":
        return torch.maximum(-bottom / -low, top / high)
    amax = torch.maximum(-bottom, top) if fmt.signed else top.clamp(min=0)
    if fmt.small_scale in LEAST_MAGNITUDE:
        least = float(LEAST_MAGNITUDE[fmt.small_scale])
        amax = torch.where((amax > 0) & (amax < least), least, amax)
    if fmt.rule == "half":
        return amax / (high + 0.5)
    if fmt.negative_scales:
        tie = (-bottom == top) & ((first(rows, bottom) < first(rows, top)) if fmt.rule == "signed_first" else torch.ones_like(top, dtype=torch.bool))
        return torch.where((-bottom > top) | tie, bottom, top) / low
    return amax / high


def first(rows: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """int64 [n]: where each row first has its value; argmin and argmax promise no order among equals."""
    places = torch.arange(rows.shape[1], device=rows.device)
    return torch.where(rows == value[:, None], places, rows.shape[1]).amin(1)


def quantize(rows: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None, fmt: IntFormat) -> torch.Tensor:
    low, high = fmt.code_range
    dtype = getattr(torch, f"{'' if fmt.signed else 'u'}int{16 if fmt.bits == 16 else 8}")
    if zero is not None and fmt.zero_point == "offset":
        lowest = rounded(zero + low * scale, fmt.working_dtype)  # the product is exact: low is 0 or a power of two
        steps = divided(rows - lowest[:, None], scale, fmt.division)
        return (round_to(steps, fmt.rounding).clamp(0, high - low) + low).to(dtype)
    scaled = divided(rows, scale, fmt.division)
    scaled = scaled if zero is None else scaled + zero[:, None]
    return round_to(scaled, fmt.rounding).clamp(low, high).to(dtype)


def divided(rows: torch.Tensor, scale: torch.Tensor, division: str) -> torch.Tensor:
    if division == "true":
        return rows / scale[:, None]
    return (rows * (1 / scale)[:, None]).nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf)  # 0 times an infinite reciprocal


def round_to(values: torch.Tensor, rounding: str) -> torch.Tensor:
    if rounding == "half_even":
        return values.round()
    if rounding == "half_up":
        return (values + 0.5).floor()
    whole = values.trunc()
    return whole + torch.copysign(((values - whole).abs() >= 0.5).float(), values)


def codebook(values: torch.Tensor, fmt: CodebookFormat) -> TorchEncoded:
    table, shape = check_levels(fmt), tuple(values.shape)
    if fmt.scaling == "none":
        return TorchEncoded(fmt, nearest(values, table))
    pieces, whole = reach.split(values, fmt.granularity), None
    if fmt.scaling == "nvfp4":
        largest = values.abs().max()
        whole = largest / float(np.float32(E4M3_LARGEST * float(table.largest)))
        whole = torch.where(whole < float(TINY) if fmt.small_scale != "normal" else whole == 0, torch.ones_like(whole), whole)
    scales = [codebook_scale(rows, fmt, table, whole) for rows in pieces]
    codes = [nearest(in_levels(rows, s, whole, fmt), table) for rows, s in zip(pieces, scales, strict=True)]
    if fmt.double:
        scales = [torch.where(rows.any(1), s, 0.0) for rows, s in zip(pieces, scales, strict=True)]  # zeros had 1, so that nothing was divided by 0
        if fmt.double.kind == "linear":
            codes = [torch.where(s[:, None] == 0, torch.zeros_like(found), found) for found, s in zip(codes, scales, strict=True)]
    joined, double = join_scales(scales, reach.scale_shape(shape, fmt.granularity)), None
    within(joined, fmt.scale_dtype)
    if fmt.double:
        within(joined.mean(), "float32")
        double = double_quantized(joined.ravel(), fmt)
        joined = decoded_scales(double, fmt).reshape(joined.shape)
    return TorchEncoded(fmt, join(codes, shape), joined, scale_codes=double, global_scale=whole)


def nearest(x: torch.Tensor, table: Levels) -> torch.Tensor:
    thresholds = torch.as_tensor(table.thresholds, device=x.device)
    return torch.as_tensor(table.order.astype(np.uint8), device=x.device)[torch.bucketize(x, thresholds)]


def codebook_scale(rows: torch.Tensor, fmt: CodebookFormat, table: Levels, whole: torch.Tensor | None) -> torch.Tensor:
    amax = rows.abs().amax(1)
    if fmt.scaling == "amax":
        return stored(amax / float(table.largest), fmt.scale_dtype, fmt.small_scale)
    if fmt.scaling == "nvfp4":
        local = to_e4m3(amax / float(table.largest) / whole)
        if fmt.small_scale == "normal":
            return local.clamp(min=float(E4M3_NORMAL))
        return torch.where(local == 0, E4M3_EPS if fmt.small_scale == "eps" else E4M3_SMALLEST, local)
    return mx_scale(amax.clamp(min=float(TINY)), fmt, table)


def in_levels(rows: torch.Tensor, scale: torch.Tensor, whole: torch.Tensor | None, fmt: CodebookFormat) -> torch.Tensor:
    if whole is None or fmt.division == "true":
        return divided(rows, divisor(scale, fmt) if whole is None else scale * whole, fmt.division)
    return (rows * (1 / whole / scale)[:, None]).nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf)


def divisor(scale: torch.Tensor, fmt: CodebookFormat) -> torch.Tensor:
    if fmt.small_scale != "normal":
        return scale
    return torch.where(scale < float(TINY), 1.0 if fmt.scaling == "mx_rceil" else float(TINY), scale)


def mx_scale(amax: torch.Tensor, fmt: CodebookFormat, table: Levels) -> torch.Tensor:
    emax = int(np.floor(np.log2(table.largest)))
    one = torch.ones_like(amax)
    exponent = exponent_of(amax)
    if fmt.scaling == "mx_ceil":
        exponent = exponent + (amax > torch.ldexp(one, exponent)).int()
    elif fmt.scaling == "mx_even":
        half = 1 << (23 - MANTISSA_BITS[str(fmt.codebook)] - 1)
        exponent = exponent_of((amax.view(torch.int32) + half).view(torch.float32))
    elif fmt.scaling == "mx_rceil":
        ratio = amax / float(table.largest)
        exponent = exponent_of(ratio)
        exponent = exponent + (ratio > torch.ldexp(one, exponent)).int() + emax
    return torch.ldexp(one, (exponent - emax).clamp(-127, 127))


def exponent_of(values: torch.Tensor) -> torch.Tensor:
    return torch.frexp(values).exponent - 1


def double_quantized(scales: torch.Tensor, fmt: CodebookFormat) -> ScaleCodes:
    """The mean is torch's, which may differ from NumPy's in the last digit."""
    block = fmt.double.block
    offset = scales.mean()
    rows = torch.nn.functional.pad(scales - offset, (0, -scales.numel() % block)).reshape(-1, block)
    amax = rows.abs().amax(1)
    if fmt.double.dynamic:
        shares, factor = rows * (1 / amax.clamp(min=float(SMALLEST)))[:, None], amax
        codes = on_grid(shares, amax) if fmt.double.kind == "dynamic_grid" else nearest(shares, levels("dynamic8"))
    else:
        factor = torch.where(amax == 0, 1.0, 2 * amax / 256)
        codes = divided(rows, factor, "reciprocal").round().clamp(-128, 127).to(torch.int8)
        factor = torch.where(factor * float(LARGEST) < 1, 0.0, factor)
    return ScaleCodes(codes.ravel()[: scales.numel()], factor, offset)


def on_grid(shares: torch.Tensor, amax: torch.Tensor) -> torch.Tensor:
    codes = torch.as_tensor(grid_codes(), device=shares.device)[((shares + 1) * (GRID / 2) + 0.5).int()]
    return torch.where(amax[:, None] == 0, torch.zeros_like(codes), codes)


def decoded_scales(double: ScaleCodes, fmt: CodebookFormat) -> torch.Tensor:
    factors = double.factors.repeat_interleave(fmt.double.block)[: double.codes.numel()]
    table = torch.as_tensor(levels("dynamic8").values, device=factors.device)
    values = table.index_select(0, double.codes.int()) if fmt.double.dynamic else double.codes.float()
    return values.mul_(factors).add_(double.offset)


def to_e4m3(values: torch.Tensor) -> torch.Tensor:
    return values.clamp(max=E4M3_LARGEST).to(torch.float8_e4m3fn).float()


def rounded(values: torch.Tensor, dtype: str) -> torch.Tensor:
    if dtype == "float8_e4m3":
        return torch.copysign(to_e4m3(values.abs()), values)
    if dtype == "float8_e8m0":
        mantissa, exponent = torch.frexp(values)
        return torch.ldexp(torch.ones_like(values), (exponent - (mantissa == 0.5).int()).clamp(-126, 127))
    return values if dtype == "float32" else values.to(DTYPES[dtype]).float()


def raised(scale: torch.Tensor, small: str) -> torch.Tensor:
    if small in ("keep", "hqq"):
        return torch.where(scale == 0, 1.0, scale)
    smallest = float(SMALLEST_SCALE[small])
    return torch.where(scale < 0, scale.clamp(max=-smallest), scale.clamp(min=smallest))


def stored(scale: torch.Tensor, dtype: str, small: str = "one") -> torch.Tensor:
    if small not in REPLACED:
        return rounded(raised(scale, small), dtype)
    smallest = {"float16": float(np.finfo(np.float16).smallest_normal), "float8_e4m3": E4M3_SMALLEST}.get(dtype, float(TINY))
    kept = rounded(scale, dtype)
    if small == "litert" and dtype == "bfloat16":
        kept = rounded(kept, "float16")
        return torch.where(kept == 0, REPLACED[small], kept)
    return torch.where(scale.abs() < float(TINY), max(REPLACED[small], smallest), torch.where(kept.abs() < smallest, smallest, kept))


def join(pieces: tuple, shape: tuple[int, ...]) -> torch.Tensor:
    if len(pieces) == 1:
        return pieces[0].reshape(shape)
    return torch.cat([pieces[0].reshape(len(pieces[1]), -1), pieces[1]], 1).reshape(shape)


def join_scales(pieces: tuple, shape: tuple[int, ...]) -> torch.Tensor:
    if len(pieces) == 1:
        return pieces[0].reshape(shape)
    return torch.cat([pieces[0].reshape(len(pieces[1]), -1), pieces[1][:, None]], 1).reshape(shape)


def decode(encoded: TorchEncoded) -> torch.Tensor:
    fmt, codes = encoded.format, encoded.codes
    if codes.device.type == "cpu":
        return torch.from_numpy(encoded.numpy().decode())
    return decode_on_device(encoded) if not isinstance(fmt, FloatFormat) else (codes.view(DTYPES[fmt.dtype]).float())


def decode_on_device(encoded: TorchEncoded) -> torch.Tensor:
    fmt, shape = encoded.format, encoded.shape
    if encoded.codebook is not None:
        pieces = reach.split(encoded.codes, fmt.granularity)
        books = reach.split_scales(encoded.codebook, pieces, further=1)
        return join([torch.gather(book, 1, rows.long()) for rows, book in zip(pieces, books, strict=True)], shape)
    if isinstance(fmt, CodebookFormat):
        values = torch.as_tensor(levels(fmt.codebook).values, device=encoded.codes.device)[encoded.codes.long()]
        if encoded.scales is None:
            return values
        scales = encoded.scales if encoded.global_scale is None else encoded.scales * encoded.global_scale
    else:
        values, scales = encoded.codes.float(), encoded.scales
    pieces = reach.split(values, fmt.granularity)
    zeros = [None] * len(pieces) if encoded.zero_points is None else reach.split_scales(encoded.zero_points, pieces)
    return join([scaled(*part, fmt) for part in zip(pieces, reach.split_scales(scales, pieces), zeros, strict=True)], shape)


def scaled(rows: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None, fmt: Format) -> torch.Tensor:
    if zero is None:
        return rows * scale[:, None]
    if fmt.zero_point == "offset":
        return rows * scale[:, None] + zero[:, None]
    return (rows - zero[:, None].float()) * scale[:, None]
