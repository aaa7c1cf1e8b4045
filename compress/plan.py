"""What will happen to every tensor, decided before anything is done."""

from collections.abc import Mapping
from dataclasses import dataclass

from compress.errors import RecipeError
from compress.formats import Activations, Format
from compress.network import COMPRESSIBLE, Weight
from compress.numerics import predicted_bytes
from compress.recipe import Recipe
from compress.steps import Cluster, Prune


@dataclass(frozen=True)
class Decision:
    """One tensor's fate: the format it gets, or the reason why it is left in float, and the zeros and clusters it gets before."""

    name: str
    kind: str
    shape: tuple[int, ...]
    format: Format | None
    activations: Activations | None
    steps: tuple[int, ...]  # indices of the recipe steps that take it
    reason: str  # why it is left in float, or lacks a step that selects it
    wanted: bool  # a step's selector matched it in vain: that is an error unless the recipe allows it
    size_bytes: int  # predicted: payload, scales and zero points
    prune: Prune | None = None
    cluster: Cluster | None = None

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


def takes(weight: Weight, recipe: Recipe) -> tuple[dict[str, int], list[str]]:
    """Kinds of steps that take a tensor, with their index, in order, and the reasons of those that cannot.

    Of each kind the first step whose selector matches counts. RecipeError where a step would undo an earlier one.
    """
    taken: dict[str, int] = {}
    stuck: list[str] = []
    seen: set[str] = set()
    for index, step in enumerate(recipe.steps):
        if step.kind in seen or not step.select.matches(weight.name, weight.kind, weight.tied):
            continue
        seen.add(step.kind)
        clash = step.clash([recipe.steps[i] for i in taken.values()])
        if clash:
            raise RecipeError(f"recipe {recipe.name!r}, steps.{index}: {clash} ({weight.name})")
        reason = step.unfit(weight)
        if reason:
            stuck.append(reason)
        else:
            taken[step.kind] = index
    return taken, stuck


def decide(weight: Weight, recipe: Recipe) -> Decision:
    rest = {"name": weight.name, "kind": weight.kind, "shape": weight.value.shape}
    left = {"format": None, "activations": None, "size_bytes": weight.value.nbytes}
    if weight.kind not in COMPRESSIBLE:
        return Decision(**rest, **left, steps=(), wanted=False, reason=f"a {weight.kind} stays in float: recipes compress layer weights")
    taken, stuck = takes(weight, recipe)
    prune, cluster, quantize = (recipe.steps[taken[kind]] if kind in taken else None for kind in ("prune", "cluster", "quantize"))
    done = {"steps": tuple(taken.values()), "prune": prune, "cluster": cluster, "wanted": bool(stuck)}
    fmt = quantize.weights if quantize else cluster.format(zero=prune is not None) if cluster else None
    if fmt is not None:
        activations, size = quantize.activations if quantize else None, predicted_bytes(weight.value.shape, fmt)
        return Decision(**rest, **done, format=fmt, activations=activations, reason="; ".join(stuck), size_bytes=size)
    nothing = "no step of the recipe selects it" if recipe.steps else "the recipe has no steps"
    if "channels" in taken:
        nothing = f"{recipe.steps[taken['channels']]}: the shapes here are those before channels are taken out of layers; what stays is float"
    return Decision(**rest, **left, **done, reason="; ".join(stuck) or (f"{prune}: what is not 0 stays float" if prune else nothing))


def plan(weights: Mapping[str, Weight], recipe: Recipe) -> Plan:
    """A Decision for every tensor. RecipeError where a selector matches nothing, steps undo each other, or a wanted tensor cannot take a step."""
    recipe.check_selectors(weights)
    found = Plan(recipe.name, recipe.id, tuple(decide(weight, recipe) for weight in weights.values()))
    stuck = [d for d in found.decisions if d.wanted]
    if stuck and not recipe.allow_float:
        listed = "\n".join(f"  {d.name} {list(d.shape)}: {d.reason}" for d in stuck)
        raise RecipeError(
            f"recipe {recipe.name!r} selects {len(stuck)} tensor(s) that cannot take its steps:\n{listed}\n"
            "Exclude them with a selector, choose another group size, or set allow_float: true to leave them as they are."
        )
    return found
