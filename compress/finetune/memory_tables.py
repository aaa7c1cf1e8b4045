"""Predictions as tables: methods side by side for one model, and the models that fit in a memory."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from compress.finetune.architectures import load_config
from compress.finetune.memory import SIDE_BY_SIDE, Memory, Shape, fitting, side_by_side
from compress.finetune.tracking import LINES
from compress.units import parse_bytes

GB = 10**9
CHANGED = ("gradients", "activations", "logits", "workspace")  # by recomputing


@dataclass(frozen=True)
class Shown:
    """A table, and the same as plain facts in bytes."""

    title: str
    columns: list[str]
    rows: list[tuple[str, ...]]
    facts: dict[str, Any]
    bold: str | None = None
    notes: list[str] = field(default_factory=list)


def memory_table(model: str, method: str, rank: int, shape: Shape, say: Callable[[str], None]) -> Shown:
    found: dict[bool, dict[str, Memory]] = {False: {}, True: {}}
    for name, again, memory in side_by_side(load_config(model), method, rank, shape):
        found[again][name] = memory
        say(f"a training step without data: {name}{', recomputed' if again else ''}")
    rows = [*section("", LINES, found[False]), *section("recomputed: ", CHANGED, found[True])]
    facts = {name: {"kept": found[False][name].facts(), "recomputed": found[True][name].facts()} for name in found[False]}
    title = f"{model}, GB at the peak of a training step: batch {shape.batch}, {shape.seq} tokens, {shape.dtype}, {shape.optimizer}, rank {rank}"
    notes = ["In brackets: a line's largest, where that is at another moment. Recomputed: activations of a block are computed again in the backward pass."]
    return Shown(title, ["line", *found[False]], rows, {"model": model, "rank": rank, **words(shape), "methods": facts}, method, notes)


def section(prefix: str, lines: Iterable[str], found: dict[str, Memory]) -> list[tuple[str, ...]]:
    peak = (f"{prefix}peak", *(f"{memory.total / GB:,.2f} in the {memory.when}" for memory in found.values()))
    return [(f"{prefix}{line}", *(cell(memory, line) for memory in found.values())) for line in lines] + [peak]


def cell(memory: Memory, line: str) -> str:
    now, most = memory.lines[line] / GB, memory.largest[line] / GB
    return f"{now:,.2f}" if most - now < 0.005 else f"{now:,.2f} ({most:,.2f})"


def fits_table(fits: str, method: str, rank: int, shape: Shape, say: Callable[[str], None]) -> Shown:
    limit, rows, facts = parse_bytes(fits), [], {}
    for name in dict.fromkeys((method, *SIDE_BY_SIDE)):
        say(f"what fits in {fits}: {name}")
        found = sorted(fitting(limit, name, rank, shape), key=lambda one: -one[2].total)
        facts[name] = [{"model": model, "recompute": again, "total": memory.total, "left": limit - memory.total} for model, again, memory in found]
        rows += [(name, model, "yes" if again else "no", f"{m.total / GB:,.2f}", f"{(limit - m.total) / GB:,.2f}") for model, again, m in found]
        rows += [] if found else [(name, "none of the built-in configs", "", "", "")]
    title = f"Fits in {fits}: batch {shape.batch}, {shape.seq} tokens, {shape.dtype}, {shape.optimizer}, rank {rank}; largest first, GB"
    return Shown(title, ["method", "model", "recomputed", "peak", "left"], rows, {"fits": limit, "rank": rank, **words(shape), "methods": facts})


def words(shape: Shape) -> dict[str, Any]:
    return {"batch": shape.batch, "seq": shape.seq, "dtype": shape.dtype, "optimizer": shape.optimizer}
