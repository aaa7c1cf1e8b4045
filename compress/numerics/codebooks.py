"""Tables of levels by name, and the thresholds between them.

The code of a value is the number of thresholds below it: `x > t` takes the upper level. Ties are settled by moving a threshold to the neighbouring
float, so that every rule (down, to even codes, toward zero) is the same comparison.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np

from compress.errors import UnknownName
from compress.numerics.fast import fast
from compress.registry import suggest

F32 = np.float32


@dataclass(frozen=True, eq=False)
class Levels:
    """values float32 [n] by code; order int [n]: codes by ascending level; thresholds float32 [n-1] between levels in that order."""

    values: np.ndarray
    order: np.ndarray
    thresholds: np.ndarray

    def nearest(self, x: np.ndarray) -> np.ndarray:
        """uint8 codes of float32 values of any shape."""
        kernels = fast(x)
        if kernels:
            return kernels.nearest(x, self)
        return self.order.astype(np.uint8)[np.searchsorted(self.thresholds, x, side="left")]

    @property
    def largest(self) -> np.float32:
        return np.nanmax(np.abs(self.values))


def with_thresholds(values: np.ndarray, ties: Callable[[int, int, float, float], bool] | None = None, thresholds: np.ndarray | None = None) -> Levels:
    """Levels whose thresholds are midpoints; `ties(lower code, upper code, lower, upper)` says whether a tie goes up."""
    values = np.asarray(values, F32)
    order = np.lexsort((~np.signbit(values), values))  # -0 before +0
    lower, upper = values[order[:-1]], values[order[1:]]
    middle = ((lower.astype(np.float64) + upper) / 2).astype(F32) if thresholds is None else np.asarray(thresholds, F32)
    up = np.zeros(len(middle), bool)
    if ties is not None:
        up = np.array([ties(int(a), int(b), float(x), float(y)) for a, b, x, y in zip(order, order[1:], lower, upper, strict=False)])
    return Levels(values, order, np.where(up, np.nextafter(middle, F32(-np.inf)), middle))


def down(lower_code: int, upper_code: int, lower: float, upper: float) -> bool:
    return lower == upper  # between -0 and +0, 0 itself is +0


def toward_zero(lower_code: int, upper_code: int, lower: float, upper: float) -> bool:
    return abs(upper) < abs(lower) or lower == upper


def to_even(lower_code: int, upper_code: int, lower: float, upper: float) -> bool:
    return upper_code % 2 == 0 if lower != upper else True


def normal_float(bits: int) -> Levels:
    """NF levels (Dettmers et al. 2023, appendix E): quantiles of the normal distribution, with an exact zero, one more level above it than below."""
    from scipy.stats import norm

    side, offset = 1 << (bits - 1), 0.9677083
    positive = norm.ppf(np.linspace(offset, 0.5, side + 1)[:-1])
    negative = -norm.ppf(np.linspace(offset, 0.5, side)[:-1])
    values = np.sort(np.concatenate([negative, [0], positive]))
    return with_thresholds((values / values.max()).astype(F32))


NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
NF4_THRESHOLDS = (
    -0.8480964004993439, -0.6106329262256622, -0.4599952697753906, -0.33967943489551544, -0.23460740596055984, -0.13791173323988914, -0.045525018125772476,
    0.03979014977812767, 0.1202552504837513, 0.2035212516784668, 0.2920137718319893, 0.3893125355243683, 0.5016634166240692, 0.6427869200706482,
    0.8614784181118011,
)  # fmt: skip


def nf4() -> Levels:
    """bitsandbytes' table and thresholds (csrc/kernels.cu, dQuantizeNF4), which scipy's quantiles meet but for the last digit."""
    return with_thresholds(np.array(NF4), thresholds=np.array(NF4_THRESHOLDS))


def nf4_torchao() -> Levels:
    """torchao's NF4 levels (nf4_tensor.py), of four digits each."""
    return with_thresholds(np.round(np.array(NF4), 4))


def fp4_bnb() -> Levels:
    """bitsandbytes' FP4, codes sign << 3 | magnitude; magnitudes in twelfths: 0, 1/16, 8, 12, 4, 6, 2, 3.

    Ties go down, as its PyTorch code has it (backends/default/ops.py); its CUDA kernel and ONNX Runtime send them toward zero.
    """
    magnitudes = np.array([0, 0.0625, 8, 12, 4, 6, 2, 3]) / 12
    return with_thresholds(np.concatenate([magnitudes, -magnitudes]), down)


def minifloat(exponent_bits: int, mantissa_bits: int, bias: int, largest: float) -> Levels:
    """Levels of a small float by bit pattern, finite ones only, ties to even patterns."""
    patterns = np.arange(1 << (exponent_bits + mantissa_bits))
    exponent, mantissa = patterns >> mantissa_bits, (patterns & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    magnitudes = np.where(exponent == 0, mantissa * 2.0 ** (1 - bias), (1 + mantissa) * 2.0 ** (exponent - bias))
    signs = np.concatenate([magnitudes, -magnitudes])
    kept = signs[np.abs(signs) <= largest]
    if len(kept) < len(signs):  # NaN patterns lie at the end of each half: they keep their codes, and no value meets them
        return without(signs, np.abs(signs) <= largest)
    return with_thresholds(signs, to_even)


def without(values: np.ndarray, kept: np.ndarray) -> Levels:
    """Levels of a table whose other codes are never used (they decode to NaN)."""
    codes = np.flatnonzero(kept)
    found = with_thresholds(values[kept], lambda a, b, x, y: to_even(int(codes[a]), int(codes[b]), x, y))
    return Levels(np.where(kept, values, np.nan).astype(F32), codes[found.order], found.thresholds)


def logarithmic(bits: int) -> Levels:
    """0 and +-2^-e: 2^(bits-1) - 1 powers of two below and including 1 on each side, one more on the positive one (Miyashita et al. 2016)."""
    side = 1 << (bits - 1)
    return with_thresholds(np.sort(np.concatenate([[0.0], 2.0 ** -np.arange(side), -(2.0 ** -np.arange(side - 1))])), toward_zero)


def additive_powers(bits: int) -> Levels:
    """Additive powers of two (Li et al. 2020, APoT, equation 5 with k = 2), scaled to 1: sums of bits // 2 terms, one sign bit, 0 once."""
    terms, odd = divmod(bits - 1, 2)
    sets = [[0.0] + [2.0 ** -(i + j * terms) for j in range(3)] for i in range(terms)] + ([[0.0, 2.0**-terms]] if odd else [])
    sums = np.unique([sum(choice) for choice in product(*sets)])
    return with_thresholds(np.unique(np.concatenate([-sums, sums])) / sums.max(), toward_zero)


def torch_linspace(steps: int) -> np.ndarray:
    """float32 [steps + 1] from 0.1 to 1 as torch.linspace gives them on CPUs with AVX2: from both ends, with one step in float32."""
    step, k = float((F32(1) - F32(0.1)) / F32(steps)), np.arange(steps + 1)
    return np.where(k < (steps + 1) // 2, float(F32(0.1)) + step * k, 1.0 - step * (steps - k)).astype(F32)


def dynamic_map() -> Levels:
    """bitsandbytes' signed dynamic map of 256 levels (functional.create_dynamic_map: 7 exponent bits, 8 in all)."""
    found = [0.0, 1.0]
    for i in range(7):
        edges = torch_linspace(1 << i)
        means = (edges[:-1] + edges[1:]) / F32(2)
        scaled = (F32(10.0 ** (i - 6)) * means).tolist()
        found += [*scaled, *(-x for x in scaled)]
    return with_thresholds(np.sort(np.array(found, F32)))


TABLES: dict[str, Callable[[], Levels]] = {
    "nf4": nf4,
    **{f"nf{bits}": lambda bits=bits: normal_float(bits) for bits in (2, 3, 5, 6, 7, 8)},
    "nf4_torchao": nf4_torchao,
    "fp4_bnb": fp4_bnb,
    "e2m1": lambda: minifloat(2, 1, 1, 6.0),
    "e2m3": lambda: minifloat(2, 3, 1, 7.5),
    "e3m2": lambda: minifloat(3, 2, 3, 28.0),
    "e4m3": lambda: minifloat(4, 3, 7, 448.0),
    "e5m2": lambda: minifloat(5, 2, 15, 57344.0),
    **{f"log{bits}": lambda bits=bits: logarithmic(bits) for bits in range(2, 9)},
    **{f"apot{bits}": lambda bits=bits: additive_powers(bits) for bits in range(3, 9)},
    "dynamic8": dynamic_map,
}
MANTISSA_BITS = {"e2m1": 1, "e2m3": 3, "e3m2": 2, "e4m3": 3, "e5m2": 2}
"""Of the small floats, which the MX scale rules need."""


def known(name: str) -> Callable[[], Levels]:
    """What makes a table. UnknownName suggests the nearest name."""
    if name not in TABLES:
        raise UnknownName(f"no codebook {name!r}: {suggest(name, TABLES)}known: {', '.join(TABLES)}")
    return TABLES[name]


@cache
def levels(codebook: str | tuple[float, ...]) -> Levels:
    """A table by name, or one of a user's levels in their order (ties go down). UnknownName suggests the nearest name."""
    if not isinstance(codebook, str):
        return with_thresholds(np.array(codebook))
    return known(codebook)()
