"""The step that stores weights, and optionally computes activations, in fewer bits."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from compress.formats import CodebookFormat, DynamicActivations, FloatFormat, IntFormat, StaticActivations
from compress.presets import preset
from compress.steps.selector import Selector


def named(value: Any) -> Any:
    """A preset's format, where its name is given."""
    return preset(value).format if isinstance(value, str) else value


class Quantize(BaseModel):
    """Selected weights get the format `weights`, a document or a preset's name; `activations` says what their layers compute with (null: float)."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    step: Literal["quantize"] = "quantize"
    select: Selector = Selector()
    weights: Annotated[IntFormat | FloatFormat | CodebookFormat, Field(discriminator="type"), BeforeValidator(named)]
    activations: Annotated[DynamicActivations | StaticActivations, Field(discriminator="type")] | None = None
