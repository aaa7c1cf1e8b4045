"""What will happen to every tensor, decided before anything is done."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from compress.errors import InputError, RecipeError
from compress.formats import Activations, FloatFormat, Format
from compress.network import COMPRESSIBLE, Weight
from compress.numerics import predicted_bytes, reach
from compress.recipe import Recipe

Placement = Literal["native", "decoded", "simulated", "float"]
"""How a runtime computes with a stored weight.

native      a kernel computes in that format
decoded     stored small, expanded to float at load or run time
simulated   float values on the format's grid: no smaller, no faster
float       untouched
"""


@dataclass(frozen=True)
class Decision:
    """One tensor's fate: the format it gets, or the reason why it is left in float."""

    name: str
    kind: str
    shape: tuple[int, ...]
    format: Format | None
    activations: Activations | None
    step: int | None  # index of the recipe step that took it
    reason: str  # why it is left alone; empty where it has a format
    wanted: bool  # a step's selector matched it: staying in float is then an error unless the recipe allows it
    size_bytes: int  # predicted: payload, scales and zero points

    @property
    def float_bytes(self) -> int:
        size = 4
        for n in self.shape:
            size *= n
        return size


@dataclass(frozen=True)
class Plan:
    recipe: str
    recipe_id: str
    decisions: tuple[Decision, ...]

    @property
    def compressed(self) -> dict[str, Decision]:
        return {d.name: d for d in self.decisions if d.format is not None}

    @property
    def size_bytes(self) -> int:
        return sum(d.size_bytes for d in self.decisions)

    @property
    def static(self) -> bool:
        return any(d.activations is not None and d.activations.type == "static" for d in self.decisions)


def unfit(weight: Weight, fmt: Format) -> str | None:
    """Why this tensor cannot take this format, or None."""
    if isinstance(fmt, FloatFormat):
        return None
    try:
        reach.check(weight.value.shape, fmt.granularity)
    except InputError as error:
        return str(error)
    return None


def decide(weight: Weight, recipe: Recipe) -> Decision:
    rest = {"name": weight.name, "kind": weight.kind, "shape": weight.value.shape}
    left = {"format": None, "activations": None, "step": None, "size_bytes": weight.value.nbytes}
    if weight.kind not in COMPRESSIBLE:
        return Decision(**rest, **left, wanted=False, reason=f"a {weight.kind} stays in float: recipes compress layer weights")
    for index, step in enumerate(recipe.steps):
        if step.select.matches(weight.name, weight.kind, weight.tied):
            reason = unfit(weight, step.weights)
            if reason:
                return Decision(**rest, **left, wanted=True, reason=reason)
            size = predicted_bytes(weight.value.shape, step.weights)
            return Decision(**rest, format=step.weights, activations=step.activations, step=index, reason="", wanted=True, size_bytes=size)
    return Decision(**rest, **left, wanted=False, reason="no step of the recipe selects it" if recipe.steps else "the recipe has no steps")


def plan(weights: Mapping[str, Weight], recipe: Recipe) -> Plan:
    """A Decision for every tensor. RecipeError where a selector matches nothing or a wanted tensor cannot take its format."""
    recipe.check_selectors(weights)
    found = Plan(recipe.name, recipe.id, tuple(decide(weight, recipe) for weight in weights.values()))
    stuck = [d for d in found.decisions if d.wanted and d.format is None]
    if stuck and not recipe.allow_float:
        listed = "\n".join(f"  {d.name} {list(d.shape)}: {d.reason}" for d in stuck)
        raise RecipeError(
            f"recipe {recipe.name!r} selects {len(stuck)} tensor(s) that cannot take its format:\n{listed}\n"
            "Exclude them with a selector, choose another group size, or set allow_float: true to leave them in float."
        )
    return found
