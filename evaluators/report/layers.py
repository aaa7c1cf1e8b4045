"""How errors grow through a model's layers, as rows of a plot."""

from dataclasses import dataclass

from evaluators.results import Arm, Layer, first_break

SHOWN = (("weight_db", "weight"), ("output_db", "output"), ("alone_db", "alone"))


@dataclass(frozen=True)
class LayerRow:
    layer: Layer
    marks: tuple[tuple[str, float], ...]  # what is measured, and its place in percent of the plot's width
    breaks: bool


def layer_rows(arm: Arm, most: int) -> list[LayerRow]:
    """An arm's layers in the order of computation; the `most` with the worst outputs where there are more."""
    worst = {id(layer) for layer in sorted(arm.layers, key=error)[:most]}
    broken = first_break(arm.layers)
    highest = max((value for layer in arm.layers for key, _ in SHOWN if (value := getattr(layer, key)) is not None), default=1.0)
    shown = [layer for layer in arm.layers if id(layer) in worst or layer is broken]
    return [LayerRow(layer, marks(layer, highest), layer is broken) for layer in shown]


def error(layer: Layer) -> float:
    return min((value for key, _ in SHOWN if (value := getattr(layer, key)) is not None), default=float("inf"))


def marks(layer: Layer, highest: float) -> tuple[tuple[str, float], ...]:
    found = [(name, getattr(layer, key)) for key, name in SHOWN]
    return tuple((name, round(100 * min(1.0, max(0.0, value / max(highest, 1.0))), 1)) for name, value in found if value is not None)
