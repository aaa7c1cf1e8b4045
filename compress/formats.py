"""Number formats and granularity: pure data. A scheme is a format, nothing else.

`Q` below is 2^(bits-1); `amax` is the largest magnitude in one scale's reach (tensor, axis entry or group).
"""

from dataclasses import dataclass, field
from typing import Literal, get_args

from compress.errors import RecipeError

STRICT = {"extra": "forbid"}  # how pydantic reads these dataclasses inside recipes

ScaleRule = Literal["narrow", "qmax", "half", "signed", "noclip", "mse", "asymmetric", "asymmetric_mse"]
"""How a scale follows from values; the codes' range follows with it.

narrow          amax / (Q-1), codes [-(Q-1), Q-1]      LiteRT int8, int16
qmax            amax / (Q-1), codes [-Q, Q-1]          LiteRT int4, AWQ, GGUF Q8_0
half            amax / (Q-1/2), codes [-Q, Q-1]        compressed-tensors, torchao SYMMETRIC, GPTQ
signed          m / -Q with m the value of largest magnitude; the scale may be negative   ONNX Runtime MatMulNBits, GGUF Q4_0
noclip          max(-min / Q, max / (Q-1))             torchao SYMMETRIC_NO_CLIPPING_ERR
mse             c * amax / (Q-1), c of a grid in [0.2, 1] with the least squared error
asymmetric      (max(x,0) - min(x,0)) / (2Q-1) with an integer zero point
asymmetric_mse  the same range shrunk by the c with the least squared error
"""

Rounding = Literal["half_even", "half_away"]
ScaleDtype = Literal["float32", "float16", "bfloat16"]


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
    """One scale for each `size` consecutive inputs of an output channel; kernel positions count as inputs."""

    __pydantic_config__ = STRICT
    size: int
    type: Literal["group"] = "group"

    def __post_init__(self):
        if self.size < 2:
            raise RecipeError(f"granularity.size: a group holds at least 2 values, not {self.size}")

    def __str__(self) -> str:
        return f"group-{self.size}"


Granularity = PerTensor | PerAxis | PerGroup


@dataclass(frozen=True)
class IntFormat:
    """Integers of `bits` bits with a scale, and a zero point where the rule is asymmetric: value = (code - zero_point) * scale."""

    __pydantic_config__ = STRICT
    bits: int
    granularity: Granularity = field(default_factory=PerTensor)
    rule: ScaleRule = "qmax"
    rounding: Rounding = "half_even"
    scale_dtype: ScaleDtype = "float32"
    type: Literal["int"] = "int"

    def __post_init__(self):
        if self.bits not in (*range(2, 9), 16):
            raise RecipeError(f"bits: integers have 2 to 8 or 16 bits, not {self.bits}")
        for name, allowed in (("rule", ScaleRule), ("rounding", Rounding), ("scale_dtype", ScaleDtype)):
            if getattr(self, name) not in get_args(allowed):
                raise RecipeError(f"{name}: one of {', '.join(get_args(allowed))}, not {getattr(self, name)!r}")

    @property
    def symmetric(self) -> bool:
        return not self.rule.startswith("asymmetric")

    @property
    def code_range(self) -> tuple[int, int]:
        """Smallest and largest code, both included."""
        q = 1 << (self.bits - 1)
        return (-(q - 1) if self.rule == "narrow" else -q), q - 1

    def __str__(self) -> str:
        extra = "" if self.scale_dtype == "float32" else f", {self.scale_dtype} scales"
        return f"int{self.bits} {self.granularity} {self.rule}{extra}"


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


Format = IntFormat | FloatFormat


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
