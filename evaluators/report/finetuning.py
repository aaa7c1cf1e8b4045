"""The report of fine-tunings: a table, curves of the loss, what learns, and ways to merge; HTML, Markdown and JSON from the same rows."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from compress.finetune.config import Finetuning
from evaluators.finetuning import Comparison, Tuning
from evaluators.report import words
from evaluators.report.drawing import LOOKS, vega_lite_version
from evaluators.report.files import write
from evaluators.report.html import TEMPLATES, environment, policy
from evaluators.report.markdown import plain, table

POINTS = 300  # of a curve: longer ones are means over windows
SAFE = 0.01  # how much a merge may lose, by the worse end of its interval: a point of accuracy, or a hundredth nat a token


def write_report(document: Finetuning, rows: Sequence[Tuning], folder: Path, command: str) -> dict[str, Path]:
    """report.html, report.md, loss.svg and results.json in `folder`; the paths by kind."""
    curve = loss_curves(rows)
    written = {"json": write(folder / "results.json", as_json(document, rows, command)), "svg": write(folder / "loss.svg", curve)}
    written["markdown"] = write(folder / "report.md", markdown(document, rows, command))
    written["html"] = write(folder / "report.html", html(document, rows, curve, command))
    return written


HEAD = ("Run", "Learns", "Share", "Score", "Difference", "p", "Changed", "Loss", "Tokens/s", "Training", "Peak memory", "Predicted")


def cells(document: Finetuning, row: Tuning) -> list[str]:
    if row.status != "done":
        return [row.name, row.status, *[words.NOTHING] * (len(HEAD) - 2)]
    facts, found = row.facts, row.comparison
    return [
        row.name,
        f"{facts['trainable']:,}",
        words.percent(facts["trainable"] / facts["parameters"], 2),
        score(document, row),
        f"{difference(document, found)} against {found.against}" if found else words.NOTHING,
        words.p_value(found.p) if found else words.NOTHING,
        f"{found.worse} worse, {found.better} better" if found else words.NOTHING,
        words.number(row.evaluation.get("evaluation loss")),
        f"{row.tokens_per_second:,.0f}",
        words.seconds(facts["seconds"]),
        *([words.NOTHING] * 2 if isinstance(facts["memory"], str) else [words.megabytes(facts["memory"]["peak"][kind]) for kind in ("measured", "predicted")]),
    ]


def score(document: Finetuning, row: Tuning) -> str:
    if row.score is None:
        return words.NOTHING
    if document.task == "classification":
        return f"{words.percent(row.score.value)} {words.interval(row.score, words.percent)}"
    if document.task == "causal_lm":
        return f"perplexity {words.number(float(np.exp(row.evaluation['evaluation loss'])), 4)}"
    return f"{words.number(row.score.value)} {words.interval(row.score)}"


def difference(document: Finetuning, found: Comparison) -> str:
    if document.task == "classification":
        return f"{words.points(found.difference.value)} points {words.interval(found.difference, words.points)}"
    return f"{words.number(found.difference.value)} {words.interval(found.difference)}"


def verdict(document: Finetuning, row: Tuning) -> str:
    """One sentence about a run."""
    if row.status != "done":
        return f"{row.name} {row.status}: {words.first_line(row.cause)}"
    share = words.percent(row.facts["trainable"] / row.facts["parameters"], 2)
    start = f"{row.name} trains {share} of the parameters"
    if row.comparison is None:
        return f"{start}: {score(document, row)}." if row.score else f"{start}."
    found = row.comparison
    if found.p >= 0.05:
        least = f"; {smallest(document, found.smallest)} would have been seen" if found.smallest else ""
        return (
            f"{start}: {score(document, row)}, no difference from {found.against} shown ({difference(document, found)}, p = {words.p_value(found.p)}{least})."
        )
    side = "better" if found.better > found.worse else "worse"
    return f"{start}: {score(document, row)}, {side} than {found.against} ({difference(document, found)}, p = {words.p_value(found.p)})."


def smallest(document: Finetuning, value: float) -> str:
    return f"a drop of {words.points(value, signed=False)} points" if document.task == "classification" else f"a rise of {words.number(value)}"


def recommendation(document: Finetuning, row: Tuning) -> str:
    """Which merge to use, said plainly and judged by the worse end of each interval; empty where nothing was compared."""
    if not row.merges:
        return ""
    binary, unit = document.task == "classification", "points of accuracy" if document.task == "classification" else "nats"
    losses = {merge["name"]: max(0.0, -found.difference.low if binary else found.difference.high) for merge, found in row.merges if found}
    said = {name: f"up to {words.number(loss * (100 if binary else 1))} {unit}" for name, loss in losses.items()}
    if losses["stored"] <= SAFE:
        return f"Merge and store again: the file is as small as the base alone, and it may lose {said['stored']}."
    if losses["decoded"] <= SAFE:
        return f"Merge into the decoded base and keep that in float: storing the sum again may lose {said['stored']}."
    return f"Keep the adapter beside its base: merged into the decoded base it may lose {said['decoded']}, more test samples would tell."


def loss_curves(rows: Sequence[Tuning]) -> str:
    """An SVG: training loss of every run over its steps, evaluations as points."""
    import altair as alt
    import vl_convert

    done = [row for row in rows if row.facts]
    lines = [{"run": r.name, "step": s, "loss": v} for r in done for s, v in thinned([(e["step"], e["loss"]) for e in r.facts["log"] if "loss" in e])]
    dots = [{"run": r.name, "step": e["step"], "loss": e["evaluation loss"]} for r in done for e in r.facts["log"] if "evaluation loss" in e]
    colors = alt.Scale(domain=[row.name for row in done], range=[color for color, _ in LOOKS[1 : len(done) + 1]])
    where = {"x": alt.X("step:Q", title="Optimizer step"), "y": alt.Y("loss:Q", title="Loss", scale=alt.Scale(zero=False))}
    color = alt.Color("run:N", scale=colors, legend=alt.Legend(title=None, orient="bottom"))
    drawn = alt.layer(
        alt.Chart(alt.Data(values=lines)).mark_line(strokeWidth=1.6).encode(**where, color=color),
        alt.Chart(alt.Data(values=dots)).mark_point(filled=True, size=60).encode(**where, color=color),
    ).properties(width=640, height=300)
    look = {"background": "white", "padding": 14, "font": "Helvetica, Arial, sans-serif", "view": {"stroke": None}}
    return vl_convert.vegalite_to_svg(drawn.configure(**look).to_dict(), vl_version=vega_lite_version())


def thinned(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    if len(points) <= POINTS:
        return points
    parts = np.array_split(np.array(points), POINTS)
    return [(int(part[-1, 0]), float(part[:, 1].mean())) for part in parts]


def merge_cells(document: Finetuning, merge, found: Comparison | None) -> list[str]:
    value = words.percent(merge["score"]) if document.task == "classification" else words.number(merge["score"], 4)
    kl = words.NOTHING if merge["kl"] is None else words.number(merge["kl"])
    compared = [difference(document, found), words.p_value(found.p)] if found else [words.NOTHING] * 2
    return [merge["about"], value, *compared, kl]


def unexplained(row: Tuning) -> list[str]:
    """What of the measured peak the prediction does not hold, or why nothing was measured."""
    memory = row.facts["memory"]
    if isinstance(memory, str):
        return [memory]
    return [f"not predicted: {words.megabytes(size)} of {what}" for what, size in memory["not predicted"].items() if size]


MERGE_HEAD = ("Merge", "Score", "Difference", "p", "KL, nats")


def markdown(document: Finetuning, rows: Sequence[Tuning], command: str) -> str:
    parts = [f"# {plain(document.name)}", "\n".join(f"- {plain(verdict(document, row))}" for row in rows)]
    parts.append(table(list(HEAD), [[plain(cell) for cell in cells(document, row)] for row in rows], set(range(1, len(HEAD)))))
    parts.append("![Loss of every run over its steps](loss.svg)")
    for row in rows:
        if row.merges:
            body = [[plain(cell) for cell in merge_cells(document, *merge)] for merge in row.merges]
            parts += [f"## Merging {plain(row.name)}", plain(recommendation(document, row)), table(list(MERGE_HEAD), body, {1, 2, 3, 4})]
    return "\n\n".join([*parts, f"    {command}"]) + "\n"


def html(document: Finetuning, rows: Sequence[Tuning], curve: str, command: str) -> str:
    from markupsafe import Markup

    template = environment().get_template("finetuning.html.j2")
    merges = [(row.name, recommendation(document, row), [merge_cells(document, *merge) for merge in row.merges]) for row in rows if row.merges]
    return template.render(
        document=document,
        sentences=[verdict(document, row) for row in rows],
        head=HEAD,
        rows=[cells(document, row) for row in rows],
        merge_head=MERGE_HEAD,
        merges=merges,
        learns=[(row.name, row.facts.get("table", [])) for row in rows if row.facts],
        notes=[(row.name, note) for row in rows if row.facts for note in (*row.facts["notes"], *unexplained(row))],
        curve=Markup(curve),
        command=command,
        style=Markup((TEMPLATES / "style.css").read_text(encoding="utf-8")),
        policy=policy([]),
    )


def as_json(document: Finetuning, rows: Sequence[Tuning], command: str) -> str:
    plain_rows = [asdict(replace(row, scores=None)) for row in rows]
    return json.dumps({"name": document.name, "command": command, "document": document.model_dump(mode="json"), "runs": plain_rows}, indent=1)
