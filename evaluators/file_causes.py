"""Causes that a file itself tells: what it holds besides codes of weights, what stayed in float, and where its numbers lose what float32's have."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from evaluators import kinds
from evaluators.report import words
from evaluators.results import BREAKS_DB, Arm, Layer, Size, first_break

SMALL = 0.03  # of float32's time or of the file's bytes: what is less is not named
BEYOND_PLAN = 1.03  # of the plan's bytes: what takes more is larger than expected
SENSITIVE, STANDS_OUT = 3, 6.0  # layers that are named, and how many dB below the middle one they lie: noise of twice the amplitude


@dataclass(frozen=True)
class Cause:
    about: Literal["speed", "size", "accuracy"]
    effect: float  # seconds of a run, bytes of the file, share of answers: what those about the same are sorted by
    said: str


# size


def planned_bytes(size: Size) -> int:
    """What a plan predicts of a file: all but the graph."""
    return size.file_bytes - size.graph


def by_plan(arm: Arm, predicted: Mapping[str, Any] | None) -> Iterator[Cause]:
    """A file whose tensors take more than the plan says."""
    if arm.size is None or predicted is None or planned_bytes(arm.size) <= BEYOND_PLAN * predicted["bytes"]:
        return
    more = planned_bytes(arm.size) - predicted["bytes"]
    strangers = [f"{name} {words.megabytes(size)}" for name, size in predicted["strangers"] if size > SMALL * more]
    known = f"; the plan does not know {words.listed(strangers)}" if strangers else ""
    said = f"Its tensors take {words.megabytes(planned_bytes(arm.size))}, where the plan expects {words.megabytes(predicted['bytes'])}{known}."
    yield Cause("size", more, said)


def by_size(arm: Arm) -> Iterator[Cause]:
    """What the file holds besides the codes of weights."""
    size: Size | None = arm.size
    if size is None:
        return
    parts = {"float32 tensors": size.float_bytes, "graph, names and metadata": size.graph, "scales": size.scales, "zero points": size.zero_points}
    rest = sum(parts.values())
    if rest >= SMALL * size.file_bytes:
        named = [f"{name} {words.megabytes(part)}" for name, part in sorted(parts.items(), key=lambda item: -item[1]) if part]
        said = f"{words.percent(rest / size.file_bytes, 0)} of its {words.megabytes(size.file_bytes)} are not codes of weights: {words.listed(named)}."
        yield Cause("size", rest, said)


def still_float(arm: Arm) -> Iterator[Cause]:
    """Planned weights that the file holds in float32, and how many of its operators round anything."""
    planned = [tensor for tensor in arm.tensors if tensor.planned]
    floats = [tensor for tensor in planned if tensor.placement == "float"]
    if not floats:
        return
    size = sum(tensor.size_bytes for tensor in floats)
    rounding = sum(count for name, count in arm.operators.items() if kinds.group(name) in ("quantizing", "dequantizing"))
    share = f"{len(floats)} of the {words.count(len(planned), 'weight')} that the plan compresses are float32 in the file"
    said = f"{share}, {words.megabytes(size)}; {rounding or 'none'} of its {sum(arm.operators.values())} operators quantize or dequantize."
    yield Cause("speed", size, said)


def left_in_float(arm: Arm) -> Iterator[Cause]:
    """Weights that a step wanted and that stayed in float."""
    told = dict(note.split(" stayed in float: ", 1) for note in arm.notes if " stayed in float: " in note)
    for reason, names in grouped_notes(told).items():
        size = sum(t.size_bytes for t in arm.tensors if t.name in names)
        yield Cause("size", size, f"{words.count(len(names), 'weight')} ({words.megabytes(size)}) stayed in float: {reason}.")


def grouped_notes(told: Mapping[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, reason in told.items():
        found.setdefault(reason, []).append(name)
    return found


# accuracy


def by_accuracy(arm: Arm, errors: Mapping[str, float]) -> Iterator[Cause]:
    """Answers that changed for the worse, and the weights that lost most."""
    if arm.accuracy is None or not arm.accuracy.worse:
        return
    worst = sorted(errors.items(), key=lambda item: item[1])[:1]
    where = f"; the least exact weight is {worst[0][0]}, {worst[0][1]:.1f} dB above its rounding error" if worst else ""
    score = arm.accuracy
    said = f"{score.worse} of {words.count(score.count, score.metric.noun)} changed for the worse and {score.better} for the better{where}."
    yield Cause("accuracy", score.worse / score.count, said)


def by_layer(layers: Sequence[Layer]) -> Iterator[Cause]:
    """The first layer that breaks, with what was left before it."""
    broken = first_break(layers)
    if broken is None:
        return
    before = [layer.output_db for layer in layers[: layers.index(broken)] if layer.output_db is not None]
    least = f", the outputs before it at least {min(before):.1f}" if before else ", and it is the first layer"
    weight = f"; its weight alone is {broken.weight_db:.1f} dB above its rounding error" if broken.weight_db is not None else ""
    said = f"{broken.name} is the first layer whose output has less than {BREAKS_DB:g} dB: it has {broken.output_db:.1f}{least}{weight}."
    yield Cause("accuracy", 1.0, said)


def by_one_layer(layers: Sequence[Layer]) -> Iterator[Cause]:
    """The layers that cost the model's output most by themselves, where they stand out from the others."""
    known = sorted((layer.alone_db, layer.name) for layer in layers if layer.alone_db is not None)
    middle = median(db for db, _ in known) if known else 0.0
    worst = [(db, name) for db, name in known[:SENSITIVE] if db < middle - STANDS_OUT]
    if worst:
        named = words.listed([f"{name} {db:.1f} dB" for db, name in worst])
        said = f"Compressed alone, these cost the model's output most, where the middle one of {len(known)} layers leaves it {middle:.1f} dB: {named}."
        yield Cause("accuracy", 0.5, f"{said} They are the first to keep in float.")
