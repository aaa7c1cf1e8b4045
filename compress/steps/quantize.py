"""The step that stores weights, and optionally computes activations, in fewer bits."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from compress.errors import InputError
from compress.formats import DynamicActivations, FloatFormat, Format, IntFormat, PerAxis, PerTensor, StaticActivations
from compress.network import Weight
from compress.numerics import reach
from compress.presets import PRESETS, preset
from compress.steps.selector import Selector
from compress.training import Budget

if TYPE_CHECKING:
    from compress.steps import Step
    from compress.work import Work


def named(value: Any) -> Any:
    """A preset's format, where its name is given."""
    return preset(value).format if isinstance(value, str) else value


class Quantize(BaseModel):
    """Selected weights get the format `weights`, a document or a preset's name; `activations` says what their layers compute with (null: float).

    train   quantization-aware training: the forward pass computes with the rounded numbers, what earlier steps made is kept
    scales  fitted: by the format's rule, to the values of every moment; learned: from there by their own gradient while the step trains
            (LSQ: Esser et al. 2020), for symmetric integers
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    step: Literal["quantize"] = "quantize"
    select: Selector = Selector()
    weights: Annotated[Format, Field(discriminator="type"), BeforeValidator(named, json_schema_input_type=Format | Literal[*PRESETS])]
    activations: Annotated[DynamicActivations | StaticActivations, Field(discriminator="type")] | None = None
    train: Budget | None = None
    scales: Literal["fitted", "learned"] = "fitted"

    @model_validator(mode="after")
    def learnable(self) -> "Quantize":
        if self.scales == "fitted":
            return self
        from compress.numerics.given_scales import unlearnable

        if self.train is None:
            raise ValueError("scales: they are learned by training: give `train`")
        if reason := unlearnable(self.weights):
            raise ValueError(f"scales: those of {self.weights} cannot learn: {reason}")
        return self

    @property
    def kind(self) -> str:
        return self.step

    def apply(self, work: "Work", index: int) -> "Work":
        """The network trained to be rounded, where the step has a budget; codes follow when all steps are done."""
        return work.learned(index, self.train) if self.train else work

    def holds(self, value: np.ndarray, mask: np.ndarray | None) -> Iterator[tuple[str, str, str | None]]:
        """Codes are proven where a file is read back; a format promises nothing about values."""
        yield from ()

    def unfit(self, weight: Weight) -> str | None:
        """Why this tensor cannot take the format, or None."""
        if isinstance(self.weights, FloatFormat):
            return None
        try:
            reach.check(weight.value.shape, self.weights.granularity)
        except InputError as error:
            return str(error)
        return None

    def clash(self, earlier: "list[Step]") -> str | None:
        """Why the format cannot keep what earlier steps made, or None."""
        for step in earlier:
            if step.step == "prune" and not exact_zero(self.weights):
                return f"{self.weights} has no exact zero, so a pruned weight would not stay 0: take a format with an exact zero"
            if step.step == "cluster" and not keeps_clusters(self.weights, step.per):
                advice = "take one scale per tensor, or cluster per axis" if step.per == "tensor" else "take one scale per tensor or channel"
                return f"{self.weights} rounds equal weights of one {step.per} by different scales, so {step.clusters} clusters would not stay: {advice}"
        return None


def exact_zero(fmt: Format) -> bool:
    """Whether 0 is one of the values of every scale, that of zeros too."""
    if isinstance(fmt, FloatFormat):
        return True
    if isinstance(fmt, IntFormat):
        return fmt.symmetric or fmt.zero_point == "integer"
    if fmt.learned:
        return fmt.codebook.exact_zero
    from compress.numerics.codebooks import levels

    lost = fmt.double is not None and fmt.double.kind == "linear"
    return not lost and bool((levels(fmt.codebook).values == 0).any())


def keeps_clusters(fmt: Format, per: str) -> bool:
    """Whether equal values of a tensor, or of an output channel, stay equal."""
    return isinstance(fmt, FloatFormat) or isinstance(fmt.granularity, PerTensor | PerAxis if per == "axis" else PerTensor)
