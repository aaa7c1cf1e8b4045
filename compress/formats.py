"""Number formats and granularity: pure data. A scheme is a format, nothing else.

`Q` below is 2^(bits-1); `amax` is the largest magnitude in one scale's reach (tensor, axis entry, group or block).
"""

from dataclasses import dataclass, field
from math import ceil, log2
from typing import Any, Literal, get_args

from compress.errors import RecipeError

STRICT = {"extra": "forbid"}  # how pydantic reads these dataclasses inside recipes

ScaleRule = Literal["narrow", "qmax", "half", "signed", "signed_first", "noclip", "asymmetric"]
"""How a scale follows from the range of values; the codes' range follows with it.

narrow          amax / (Q-1), codes [-(Q-1), Q-1]      LiteRT int8, int16
qmax            amax / (Q-1), codes [-Q, Q-1]          LiteRT int4, AWQ, GGUF Q8_0
half            amax / (Q-1/2), codes [-Q, Q-1]        compressed-tensors, torchao SYMMETRIC, GPTQ
signed          m / -Q with m the value of largest magnitude; the scale may be negative. Of both signs, m is the negative one   ONNX Runtime MatMulNBits
signed_first    the same, but of both signs m is the first                             GGUF Q4_0
noclip          max(-min / Q, max / (Q-1))             torchao SYMMETRIC_NO_CLIPPING_ERR
asymmetric      (max - min) / (2^bits-1) with a zero point
Unsigned codes, [0, 2^bits-1], know `qmax` (amax / (2^bits-1), for values without a sign) and `asymmetric`.
"""

Fit = Literal["minmax", "percentile", "mse", "entropy", "octav"]
"""Which range of values a scale is made for.

minmax      all of them
percentile  all but a share of the largest magnitudes (asymmetric: half of the share at each end)
mse         the scale with the least squared error: exact, over every breakpoint of the rounding (see compress.numerics.ranges)
entropy     the least Kullback-Leibler divergence of the histogram of magnitudes (TensorRT's method)
octav       the clip of least expected squared error by Newton's method (Sakr et al. 2022, OCTAV)
"""

ZeroPoint = Literal["integer", "float", "offset"]
"""What an asymmetric format keeps beside its scale.

integer  value = (code - zero) * scale, zero a code: the range is widened to hold 0, which stays exact
float    value = (code - zero) * scale, zero a float                       HQQ
offset   value = code * scale + offset; codes count from the lowest code's value, in the scale's dtype    GGUF Q4_1, tinygemm
"""

Rounding = Literal["half_even", "half_away", "half_up"]
Division = Literal["true", "reciprocal"]  # x / scale, or x * (1 / scale) in float32, as torchao and bitsandbytes have it
CodesFrom = Literal["stored", "exact"]  # codes follow from the scale as stored, or from the float32 one before that (GGUF)
ScaleDtype = Literal["float32", "float16", "bfloat16", "float8_e4m3", "float8_e8m0"]  # e8m0: powers of two, rounded up in integer formats

SmallScale = Literal["one", "typical", "keep", "normal", "eps", "litert", "converter", "hqq"]
"""What becomes of a scale below 2^-126, the smallest normal float32, and of the scale of zeros; or of larger ones, in the libraries named here.

one        1, with codes of 0: decoding multiplies by no subnormal number, which kernels that flush those to zero take as 0
typical    2^-12, likewise: integer kernels round a bias to steps of input scale * weight scale, coarse ones with 1, and XNNPACK refuses large ratios
keep       it stays; 1 for zeros. Where 1 / scale overflows, `reciprocal` codes saturate, as the library's own do
normal     2^-126, for zeros too; codebooks of scaling mx_* keep a scale of 2^-127 and divide by 2^-126, of mx_rceil by 1;
           E4M3 scales of nvfp4 are 2^-6 at least                                                        torchao
eps        any scale below 2^-23 is raised to that                                                       torchao int8, PyTorch's observers
           E4M3 scales of nvfp4 that round to 0 become 2^-3                                              compressed-tensors
litert     as typical, but a largest magnitude below 1e-9 counts as 1e-9, and bfloat16 scales are what float16, which stores them, has of them
converter  as typical, but a largest magnitude below 5e-7 counts as 5e-7                                 TFLiteConverter
hqq        5e-5 at least, and 1 where the range is at most 1e-4                                          HQQ
"""

Arithmetic = Literal["float32", "float16", "bfloat16"]
"""What encoding computes in: scale, its reciprocal, quotient and shift are each rounded to it. A library that gets half-precision weights computes so.

Quotients by scales of another half-precision dtype, or E4M3 ones, are float32: PyTorch promotes them.
Decoding is in float32 all the same: products of codes and half-precision scales are exact there.
"""


@dataclass(frozen=True)
class PerTensor:
    __pydantic_config__ = STRICT
    type: Literal["tensor"] = "tensor"

    def __str__(self) -> str:
        return "per-tensor"


@dataclass(frozen=True)
class PerAxis:
    """One scale for each output channel: axis 0 of the canonical layout."""

    __pydantic_config__ = STRICT
    type: Literal["axis"] = "axis"

    def __str__(self) -> str:
        return "per-channel"


@dataclass(frozen=True)
class PerGroup:
    """One scale for each `size` consecutive inputs of an output channel; kernel positions count as inputs.

    ragged  where the size does not divide the inputs: `refuse` it, or let the last group of each channel be `short`
    """

    __pydantic_config__ = STRICT
    size: int
    ragged: Literal["refuse", "short"] = "refuse"
    type: Literal["group"] = "group"

    def __post_init__(self):
        if self.size < 2:
            raise RecipeError(f"granularity.size: a group holds at least 2 values, not {self.size}")

    def __str__(self) -> str:
        return f"group-{self.size}"


@dataclass(frozen=True)
class PerBlock:
    """One scale for each `size` consecutive values of the whole tensor, row-major; the last block may be shorter (bitsandbytes)."""

    __pydantic_config__ = STRICT
    size: int
    type: Literal["block"] = "block"

    def __post_init__(self):
        if self.size < 2:
            raise RecipeError(f"granularity.size: a block holds at least 2 values, not {self.size}")

    def __str__(self) -> str:
        return f"block-{self.size}"


Granularity = PerTensor | PerAxis | PerGroup | PerBlock


@dataclass(frozen=True)
class IntFormat:
    """Integers of `bits` bits with a scale, and a zero point where the rule is asymmetric."""

    __pydantic_config__ = STRICT
    bits: int
    granularity: Granularity = field(default_factory=PerTensor)
    rule: ScaleRule = "qmax"
    rounding: Rounding = "half_even"
    scale_dtype: ScaleDtype = "float32"
    signed: bool = True
    zero_point: ZeroPoint = "integer"
    fit: Fit = "minmax"
    percentile: float = 99.9  # the share of values that stay in range; fit "percentile" only
    division: Division = "true"
    codes_from: CodesFrom = "stored"
    small_scale: SmallScale = "typical"
    arithmetic: Arithmetic = "float32"
    type: Literal["int"] = "int"

    def __post_init__(self):
        if self.bits not in (*range(1, 9), 16):
            raise RecipeError(f"bits: integers have 1 to 8 or 16 bits, not {self.bits}")
        choices = {"rule": ScaleRule, "rounding": Rounding, "scale_dtype": ScaleDtype, "zero_point": ZeroPoint, "fit": Fit, "division": Division}
        check_choices(self, choices | {"codes_from": CodesFrom, "small_scale": SmallScale, "arithmetic": Arithmetic})
        if not 50 < self.percentile <= 100:
            raise RecipeError(f"percentile: above 50 and at most 100, not {self.percentile}")
        for wrong, reason in self.contradictions():
            if wrong:
                raise RecipeError(reason)

    def contradictions(self):
        """Combinations that mean nothing, each with the rule that it breaks."""
        divides = self.signed and self.symmetric and not self.negative_scales
        yield self.bits == 1 and divides, f"rule: {self.rule} divides by the largest code, 0 for 1 bit"
        yield not self.signed and self.rule not in ("qmax", "asymmetric"), f"rule: {self.rule} needs codes of both signs, and signed is false"
        yield self.symmetric and self.zero_point != "integer", f"zero_point: {self.zero_point} needs rule asymmetric, not {self.rule}"
        yield self.negative_scales and self.scale_dtype == "float8_e8m0", f"scale_dtype: float8_e8m0 has no sign, and rule {self.rule} makes negative scales"
        float8 = self.scale_dtype.startswith("float8")
        yield (
            float8 and self.zero_point != "integer",
            f"scale_dtype: {self.scale_dtype} cannot store {self.zero_point} zero points, which are kept in the same dtype",
        )
        narrow = self.small_scale in ("keep", "normal") and self.working_dtype not in ("float32", "bfloat16")
        yield narrow, f"small_scale: {self.small_scale} has no meaning below the range of {self.scale_dtype} scales"
        ranged = self.small_scale in ("litert", "converter")
        yield ranged and self.rule not in ("narrow", "qmax", "half"), f"small_scale: {self.small_scale} needs rule narrow, qmax or half, not {self.rule}"
        yield ranged and self.fit == "mse", f"small_scale: {self.small_scale} is of ranges, and fit mse finds none"
        yield self.small_scale == "hqq" and self.zero_point != "float", "small_scale: hqq is of float zero points"
        yield self.fit == "mse" and self.zero_point != "integer", f"fit: mse knows integer zero points, not {self.zero_point} ones"
        yield not self.symmetric and self.fit in ("octav", "entropy"), f"fit: {self.fit} finds one threshold for both signs, and rule asymmetric has two ends"

    @property
    def symmetric(self) -> bool:
        return self.rule != "asymmetric"

    @property
    def negative_scales(self) -> bool:
        return self.rule in ("signed", "signed_first")

    @property
    def code_range(self) -> tuple[int, int]:
        """Smallest and largest code, both included."""
        if not self.signed:
            return 0, (1 << self.bits) - 1
        q = 1 << (self.bits - 1)
        return (-(q - 1) if self.rule == "narrow" else -q), q - 1

    @property
    def working_dtype(self) -> ScaleDtype:
        """What scales are rounded to before codes follow from them."""
        return self.scale_dtype if self.codes_from == "stored" else "float32"

    @property
    def plain(self) -> bool:
        """Signed codes, and an integer zero point if any, with scales that runtimes know: what every exporter can ask about."""
        return self.signed and self.zero_point == "integer" and not self.scale_dtype.startswith("float8") and not isinstance(self.granularity, PerBlock)

    def __str__(self) -> str:
        extras = [
            "" if self.fit == "minmax" else f"{self.fit} range",
            "" if self.symmetric or self.zero_point == "integer" else f"{self.zero_point} zero points",
            "" if self.scale_dtype == "float32" else f"{self.scale_dtype} scales",
            "" if self.arithmetic == "float32" else f"computed in {self.arithmetic}",
        ]
        return ", ".join([f"{'' if self.signed else 'u'}int{self.bits} {self.granularity} {self.rule}", *filter(None, extras)])


@dataclass(frozen=True)
class Learned:
    """A codebook fitted to the values: the optimal one-dimensional k-means of each scale's reach.

    exact_zero   one entry is exactly 0
    entry_dtype  how entries are stored; int8 ones share a float32 scale for each codebook (largest magnitude / 127)
    """

    __pydantic_config__ = STRICT
    entries: int
    exact_zero: bool = False
    entry_dtype: Literal["float32", "float16", "int8"] = "float32"
    type: Literal["learned"] = "learned"

    def __post_init__(self):
        if not 2 <= self.entries <= 256:
            raise RecipeError(f"codebook.entries: 2 to 256, not {self.entries}")


@dataclass(frozen=True)
class DoubleQuantized:
    """Scales that are themselves codes of 8 bits, after their mean over the tensor is taken off.

    dynamic       bitsandbytes' signed dynamic map of 256 levels by the nearest level, one float32 scale for each `block` scales: its PyTorch and CUDA code
    dynamic_grid  the same map as its native CPU kernel has it: the level nearest to the nearest of 65536 even steps from -1 to 1; code 0 for `block`s of zeros
    linear        torchao's int8: round(256 r / (2 max |r|)) with one factor for each `block` scales; of zeros, code 0 of the codebook, which is not 0
    """

    __pydantic_config__ = STRICT
    kind: Literal["dynamic", "dynamic_grid", "linear"] = "dynamic"
    block: int = 256

    @property
    def dynamic(self) -> bool:
        """Whether codes are decoded by the dynamic map."""
        return self.kind != "linear"

    def __str__(self) -> str:
        return f"double-quantized ({self.kind}, {self.block})"


Scaling = Literal["amax", "none", "mx_floor", "mx_ceil", "mx_rceil", "mx_even", "nvfp4"]
"""How a codebook is scaled to values.

amax      the largest magnitude meets the codebook's largest level
none      not at all: learned and user's codebooks in the values' own units
mx_*      a power of two (E8M0) from amax and the largest exponent of the levels (OCP MX 1.0, section 6.3):
          floor   2^(floor(log2 amax) - emax); values above the largest level saturate
          ceil    2^(ceil(log2 amax) - emax)
          rceil   2^ceil(log2(amax / largest level))
          even    amax is first rounded to the levels' mantissa, then floor
nvfp4     an E4M3 scale for each block under one float32 scale for the tensor: amax(tensor) / (448 * 6)
"""


@dataclass(frozen=True)
class CodebookFormat:
    """Codes that index a table of levels, times a scale.

    codebook  a name (see compress.numerics.codebooks), the levels themselves, or Learned
    """

    __pydantic_config__ = STRICT
    codebook: str | tuple[float, ...] | Learned
    granularity: Granularity = field(default_factory=PerTensor)
    scaling: Scaling = "amax"
    scale_dtype: ScaleDtype = "float32"
    double: DoubleQuantized | None = None
    division: Division = "true"
    small_scale: SmallScale = "one"
    arithmetic: Arithmetic = "float32"
    type: Literal["codebook"] = "codebook"

    def __post_init__(self):
        check_choices(self, {"scaling": Scaling, "scale_dtype": ScaleDtype, "division": Division, "small_scale": SmallScale, "arithmetic": Arithmetic})
        if isinstance(self.codebook, tuple) and not (2 <= len(set(self.codebook)) <= 256 and len(set(self.codebook)) == len(self.codebook)):
            raise RecipeError(f"codebook: 2 to 256 different levels, not {len(set(self.codebook))} of {len(self.codebook)}")
        if isinstance(self.codebook, str):
            from compress.numerics.codebooks import known

            known(self.codebook)
        for wrong, reason in self.contradictions():
            if wrong:
                raise RecipeError(reason)

    def contradictions(self):
        e8m0 = self.scale_dtype == "float8_e8m0"
        yield self.learned and self.scaling != "none", f"scaling: a learned codebook is in the values' own units: none, not {self.scaling}"
        yield self.scaling.startswith("mx") != e8m0, f"scale_dtype: scaling {self.scaling} and {self.scale_dtype} scales do not go together"
        yield (self.scaling == "nvfp4") != (self.scale_dtype == "float8_e4m3"), f"scale_dtype: {self.scale_dtype} does not go with scaling {self.scaling}"
        known = {"amax": ("keep", "normal", "eps"), "nvfp4": ("normal", "eps"), "none": ()}.get(self.scaling, ("normal",))
        small = self.small_scale != "one" and (self.small_scale not in known or self.double is not None)
        yield small, f"small_scale: {self.small_scale} does not go with scaling {self.scaling}{' of double-quantized scales' if self.double else ''}"
        yield self.arithmetic != "float32" and self.scaling not in ("amax", "nvfp4"), "arithmetic: only scaling amax and nvfp4 compute in half precision"
        yield self.double is not None and (self.scaling != "amax" or self.scale_dtype != "float32"), "double: only float32 scales of scaling amax are quantized"
        yield self.double is not None and isinstance(self.granularity, PerTensor), "double: one scale per tensor cannot be quantized further"

    @property
    def learned(self) -> bool:
        return isinstance(self.codebook, Learned)

    @property
    def entries(self) -> int:
        if isinstance(self.codebook, str):
            from compress.numerics.codebooks import levels

            return len(levels(self.codebook).values)
        return self.codebook.entries if isinstance(self.codebook, Learned) else len(self.codebook)

    @property
    def bits(self) -> int:
        return max(1, ceil(log2(self.entries)))

    def __str__(self) -> str:
        if isinstance(self.codebook, Learned):
            name = f"kmeans-{self.codebook.entries}" + (f" {self.codebook.entry_dtype} entries" if self.codebook.entry_dtype != "float32" else "")
        else:
            name = self.codebook if isinstance(self.codebook, str) else f"{len(self.codebook)} levels"
        computed = "" if self.arithmetic == "float32" else f", computed in {self.arithmetic}"
        scaling = "" if self.scaling in ("amax", "none") else f" {self.scaling}"
        return f"{name} {self.granularity}{scaling}{f', {self.double} scales' if self.double else ''}{computed}"


@dataclass(frozen=True)
class FloatFormat:
    """IEEE half precision or bfloat16, rounded half to even."""

    __pydantic_config__ = STRICT
    dtype: Literal["float16", "bfloat16"]
    type: Literal["float"] = "float"

    def __post_init__(self):
        if self.dtype not in ("float16", "bfloat16"):
            raise RecipeError(f"dtype: float16 or bfloat16, not {self.dtype!r}")

    @property
    def bits(self) -> int:
        return 16

    def __str__(self) -> str:
        return self.dtype


Format = IntFormat | FloatFormat | CodebookFormat


def check_choices(document: Any, choices: dict[str, Any]) -> None:
    for name, allowed in choices.items():
        if getattr(document, name) not in get_args(allowed):
            raise RecipeError(f"{name}: one of {', '.join(get_args(allowed))}, not {getattr(document, name)!r}")


@dataclass(frozen=True)
class DynamicActivations:
    """Activations are quantized at run time with ranges of the moment; the runtime's own kernel decides how."""

    __pydantic_config__ = STRICT
    bits: Literal[8] = 8
    type: Literal["dynamic"] = "dynamic"

    def __str__(self) -> str:
        return f"int{self.bits} dynamic activations"


@dataclass(frozen=True)
class StaticActivations:
    """Activations are quantized per tensor with ranges from calibration: asymmetric int8, or symmetric int16."""

    __pydantic_config__ = STRICT
    bits: Literal[8, 16] = 8
    method: Literal["minmax", "percentile", "mse", "entropy"] = "minmax"
    percentile: float = 99.99  # the share of values that stay in range; method "percentile" only
    type: Literal["static"] = "static"

    def __post_init__(self):
        if not 50 < self.percentile <= 100:
            raise RecipeError(f"percentile: above 50 and at most 100, not {self.percentile}")

    def __str__(self) -> str:
        return f"int{self.bits} static activations ({self.method})"


Activations = DynamicActivations | StaticActivations
