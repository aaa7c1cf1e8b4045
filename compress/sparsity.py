"""Patterns of zeros, what ranks weights, and schedules: pure data, all the words of a pruning step."""

from dataclasses import dataclass
from typing import Literal

from compress.errors import RecipeError
from compress.formats import STRICT

Saliency = Literal["magnitude", "wanda", "sparsegpt"]
"""What says how little a weight matters.

magnitude  |w|                                                             Han et al. 2015
wanda      |w| times the root mean square of its input                     Sun et al. 2023; needs calibration data
sparsegpt  w^2 over the inverse Hessian's diagonal; kept weights make up for removed ones    Frantar & Alistarh 2023; needs calibration data
"""


@dataclass(frozen=True)
class Unstructured:
    """Single weights, the least salient ones of each `scope`: a layer, or all selected layers together."""

    __pydantic_config__ = STRICT
    scope: Literal["layer", "global"] = "layer"
    type: Literal["unstructured"] = "unstructured"

    def __str__(self) -> str:
        return "unstructured" if self.scope == "layer" else "unstructured, global"


@dataclass(frozen=True)
class NofM:
    """At most `n` of every `m` consecutive inputs of an output channel are not zero (kernel positions count as inputs)."""

    __pydantic_config__ = STRICT
    n: int = 2
    m: int = 4
    type: Literal["n:m"] = "n:m"

    def __post_init__(self):
        if not 1 <= self.n < self.m:
            raise RecipeError(f"pattern: n:m keeps n of m weights, at least 1 and fewer than m, not {self.n}:{self.m}")

    @property
    def sparsity(self) -> float:
        return 1 - self.n / self.m

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"


@dataclass(frozen=True)
class Blocks:
    """Whole tiles of `rows` output channels by `columns` inputs."""

    __pydantic_config__ = STRICT
    rows: int = 1
    columns: int = 4
    type: Literal["blocks"] = "blocks"

    def __post_init__(self):
        if self.rows < 1 or self.columns < 1 or self.rows * self.columns < 2:
            raise RecipeError(f"pattern: a block holds at least 2 weights, not {self.rows} x {self.columns}")

    def __str__(self) -> str:
        return f"blocks {self.rows}x{self.columns}"


@dataclass(frozen=True)
class Channels:
    """Whole output channels, which are taken out: shapes shrink, in the layers that read them too.

    multiple  what stays of a layer is rounded to a multiple of this many channels: kernels that work on blocks are slow on others
    """

    __pydantic_config__ = STRICT
    multiple: int = 8
    type: Literal["channels"] = "channels"

    def __post_init__(self):
        if self.multiple < 1:
            raise RecipeError(f"pattern.multiple: at least 1, not {self.multiple}")

    def __str__(self) -> str:
        return "channels"


Pattern = Unstructured | NofM | Blocks | Channels


@dataclass(frozen=True)
class Schedule:
    """How sparsity grows during a step's training; `start` and `end` are shares of it.

    constant    the final sparsity from `start` on
    polynomial  final * (1 - (1 - t)^power) for t from 0 at `start` to 1 at `end` (Zhu & Gupta 2017)
    """

    __pydantic_config__ = STRICT
    type: Literal["constant", "polynomial"] = "polynomial"
    start: float = 0.0
    end: float = 0.5
    power: float = 3.0

    def __post_init__(self):
        if not 0 <= self.start <= 1 or not 0 <= self.end <= 1:
            raise RecipeError(f"schedule: start and end are shares of the training, 0 to 1, not {self.start} and {self.end}")
        if self.type == "polynomial" and self.end <= self.start:
            raise RecipeError(f"schedule: it ends at {self.end}, not after its start at {self.start}")
        if self.power <= 0:
            raise RecipeError(f"schedule.power: above 0, not {self.power}")

    def at(self, share: float) -> float:
        """The share of the final sparsity, 0 to 1, at this share of the training."""
        if share < self.start:
            return 0.0
        if self.type == "constant" or share >= self.end:
            return 1.0
        return 1 - (1 - (share - self.start) / (self.end - self.start)) ** self.power
