"""The step that stores weights, and optionally computes activations, in fewer bits."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from compress.formats import CodebookFormat, DynamicActivations, FloatFormat, IntFormat, StaticActivations
from compress.steps.selector import Selector


class Quantize(BaseModel):
    """Selected weights get the format `weights`; `activations` says what their layers compute with (null: float)."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    step: Literal["quantize"] = "quantize"
    select: Selector = Selector()
    weights: Annotated[IntFormat | FloatFormat | CodebookFormat, Field(discriminator="type")]
    activations: Annotated[DynamicActivations | StaticActivations, Field(discriminator="type")] | None = None
