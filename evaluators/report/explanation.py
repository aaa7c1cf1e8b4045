"""An explanation as a person reads it in a terminal: rows of tables and lines of text."""

from collections.abc import Iterable, Iterator, Sequence
from math import inf

from evaluators import kinds
from evaluators.explaining import Explanation
from evaluators.operators import OperatorTime
from evaluators.report import words
from evaluators.results import Layer, first_break

LARGEST = 5  # single operators of each arm
MOST_LAYERS = 24  # that a terminal shows
HEAD = ("operators", "float32", "", "", "this arm", "", "")
Row = tuple[str, ...]


def total(operators: Iterable[OperatorTime]) -> float:
    return sum(operator.seconds for operator in operators)


def by_kind(found: Explanation) -> list[Row]:
    """Groups, the one that takes most time first, and under each the kinds of both arms: count, milliseconds, share of the arm."""
    sides = {"float32": found.float32, "own": found.own}
    groups: dict[str, dict[str, list[OperatorTime]]] = {}
    for side, operators in sides.items():
        for operator in operators:
            groups.setdefault(kinds.group(operator.kind), {}).setdefault(side, []).append(operator)
    rows = []
    for group, parts in sorted(groups.items(), key=lambda item: -max(total(operators) for operators in item[1].values())):
        rows.append((group, *cells(found, parts.get("float32", ()), parts.get("own", ()))))
        names = dict.fromkeys((o.kind, o.library) for operators in parts.values() for o in sorted(operators, key=lambda o: -o.seconds))
        for name in names:
            own = [[o for o in parts.get(side, ()) if (o.kind, o.library) == name] for side in sides]
            rows.append((f"  {name[0]}{f', {name[1]}' if name[1] else ''}", *cells(found, *own)))
    return [*rows, ("all", *cells(found, found.float32, found.own))]


def cells(found: Explanation, float32: Sequence[OperatorTime], own: Sequence[OperatorTime]) -> Row:
    return (*side(float32, found.float32), *side(own, found.own))


def side(some: Sequence[OperatorTime], every: Sequence[OperatorTime]) -> Row:
    return (str(len(some)), words.milliseconds(1000 * total(some)), words.percent(total(some) / total(every), 0)) if some else (words.NOTHING, "", "")


def largest(operators: Sequence[OperatorTime]) -> list[Row]:
    """The single operators that take most time: name, kind, milliseconds, share."""
    found = sorted(operators, key=lambda o: -o.seconds)[:LARGEST]
    return [(o.name, o.kind, words.milliseconds(1000 * o.seconds), words.percent(o.seconds / total(operators), 0)) for o in found]


def tables(found: Explanation) -> Iterator[tuple[str, list[str], list[Row]]]:
    """Title, columns and rows."""
    if found.own:
        columns = ["operators", "float32", "ms", "share", "this arm", "ms ", "share "]
        yield "Time by operator", columns, by_kind(found)
        for title, operators in (("float32", found.float32), ("this arm", found.own)):
            yield f"Largest single operators of {title}", ["name", "kind", "ms", "share"], largest(operators)
    if found.layers:
        kept = worst(found.layers)
        title = "Layers in the order of computation" + (f", the {len(kept)} worst of {len(found.layers)}" if len(kept) < len(found.layers) else "")
        yield title, ["layer", "its weight", "its output", "the model's output, it alone compressed"], [layer_row(layer) for layer in kept]


def worst(layers: Sequence[Layer]) -> list[Layer]:
    """All of a few layers; of many those whose numbers are lowest, and the first that breaks, in their order."""
    named = {layer.name for layer in sorted(layers, key=lowest)[:MOST_LAYERS]} | {layer.name for layer in [first_break(layers)] if layer}
    return [layer for layer in layers if layer.name in named]


def lowest(layer: Layer) -> float:
    return min(db for db in (layer.weight_db, layer.output_db, layer.alone_db, inf) if db is not None)


def layer_row(layer: Layer) -> Row:
    return layer.name, *(words.NOTHING if db is None else f"{db:.1f} dB" for db in (layer.weight_db, layer.output_db, layer.alone_db))


def lines(found: Explanation) -> Iterator[str]:
    """What belongs under the tables: how the profile fits the study's times, this machine's rates, and what is not known."""
    if found.layers:
        yield "dB of signal to noise, 20 for noise of a tenth of the amplitude; outputs as the file computes them, beside those of float32's file."
    if found.alone:
        yield ALONE[found.alone]
    for what, why in found.unmeasured.items():
        yield f"{MISSING.get(what, what)}: not measured: {why}."
    if found.own:
        yield from time_lines(found)


MISSING = {"operators": "Times by operator", "layers": "Errors by layer", "alone": "One layer alone"}
ALONE = {
    "network": "One layer alone: the framework's network in float32 with that layer's weight as its format gives it back.",
    "file": "One layer alone: a file in which that layer alone has its format and activations, run by the same runtime.",
}


def time_lines(found: Explanation) -> Iterator[str]:
    sums = [words.milliseconds(1000 * total(operators)) for operators in (found.float32, found.own)]
    before, now = map(words.milliseconds, found.measured_ms)
    yield f"Operators add up to {sums[0]} in float32 and {sums[1]} in this arm; without a profiler the study measured {before} and {now}."
    peak, copied = found.machine["peak"] / 1e9, found.machine["copied_bytes"] / 1e9
    yield f"This machine at best: {peak:.1f} billion float32 multiply-adds and {copied:.1f} GB copied a second."
    if found.multiply_adds:
        yield f"A run has {found.multiply_adds / 1e6:,.1f} million multiply-adds."
    else:
        yield f"Multiply-adds are not known: {found.uncounted}."
