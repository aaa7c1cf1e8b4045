"""The results as a table in a terminal, made for 100 columns and more, with every failure and its cause below."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from evaluators.report import counts, words
from evaluators.report.reading import (
    counts_as_faster,
    counts_as_leaner,
    counts_as_smaller,
    grouped,
    is_simulated,
    loss,
    main_placement,
    metric,
    other_exporter,
    summary,
    unfinished,
)
from evaluators.report.recommending import recommended
from evaluators.results import Arm, Estimate, Results

COLUMNS = ("Recipe", "Size", "Ratio", "Latency", "Speedup", "Memory", "Accuracy", "Against float32", "Weights")
UNTIMED = {"Latency": "Instructions", "Speedup": "Against float32's"}  # on emulated machines
FIRST_TO_GO = ("Memory", "Ratio")  # in a narrow terminal


def print_table(results: Results, console: Console) -> None:
    """Prints a table for each model, target and runtime, then what did not finish, then the summary."""
    for (model, target, runtime), arms in grouped(results.arms, lambda arm: (arm.model, arm.target, arm.runtime)).items():
        console.print(heading(model, target, runtime, arms))
        console.print(fitting(arms, console))
    for (status, cause), arms in unfinished(results).items():
        console.print(failure(status, cause, arms))
    console.print()
    for sentence in [*recommended(results), *summary(results)]:
        console.print(Text(sentence))


def heading(model: str, target: str, runtime: str, arms: list[Arm]) -> Text:
    noise = next((arm.latency.noise for arm in arms if arm.latency and arm.latency.noise), None)
    text = Text(f"\n{model} · {words.runtime_name(runtime)} · {words.TARGET_NAMES.get(target, target)}", style="bold")
    if all(arm.untimed for arm in arms):
        return text.append("   emulated: instructions instead of milliseconds", style="not bold dim")
    return text.append(f"   noise floor: float32 against itself {words.reach(noise)}" if noise else "   no A/A run", style="not bold dim")


def fitting(arms: list[Arm], console: Console) -> Table:
    """The table with as many columns as the terminal has room for; in a very narrow one cells break, nothing is cut off."""
    for gone in range(len(FIRST_TO_GO)):
        drawn = table(arms, FIRST_TO_GO[:gone])
        if console.measure(drawn, options=console.options.update(width=1000)).maximum <= console.width:
            return drawn
    return table(arms, FIRST_TO_GO)


def table(arms: list[Arm], without: tuple[str, ...]) -> Table:
    drawn = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    names = [UNTIMED.get(name, name) if all(arm.untimed for arm in arms) else name for name in COLUMNS]
    names[COLUMNS.index("Accuracy")] = words.capital(metric(arms).title)
    shown = [i for i, name in enumerate(COLUMNS) if name not in without]
    for i in shown:
        drawn.add_column(names[i], justify="left" if COLUMNS[i] in ("Recipe", "Weights") else "right", overflow="fold")
    for arm in arms:
        row = cells(arm)
        drawn.add_row(*[row[i] for i in shown])
    return drawn


def cells(arm: Arm) -> list[Text]:
    name = Text(arm.recipe + (f" ({other_exporter(arm)})" if other_exporter(arm) else ""))
    if arm.status != "done":
        return [name, Text(arm.status, style="bold red" if arm.status == "failed" else "yellow"), *[Text(words.NOTHING, style="dim")] * (len(COLUMNS) - 2)]
    return [
        name,
        Text(words.megabytes(arm.size.file_bytes) if arm.size else words.NOTHING),
        Text(words.times(arm.size.ratio) if arm.size else words.NOTHING, style="" if counts_as_smaller(arm) else "dim"),
        Text(counts.cost(arm).removesuffix(" instructions")),
        speedup(arm),
        Text(words.megabytes(arm.memory.model_bytes) if arm.memory else words.NOTHING),
        Text(words.in_unit(arm.accuracy.value.value, arm.accuracy.metric) if arm.accuracy else words.NOTHING),
        difference(arm),
        Text(main_placement(arm), style="bold magenta" if is_simulated(arm) else ""),
    ]


def speedup(arm: Arm) -> Text:
    if arm.instructions:
        return Text(counts.gain(arm), style="green" if counts_as_leaner(arm) else "dim")
    if arm.latency is None or arm.latency.speedup is None or arm.latency.verdict == "baseline":
        return Text(arm.latency.verdict if arm.latency else words.NOTHING, style="dim")
    sign, style = {"faster": ("▲ ", "green"), "slower": ("▼ ", "red")}.get(arm.latency.verdict, ("≈ ", "dim"))
    if arm.latency.verdict == "faster" and not counts_as_faster(arm):
        sign, style = "≈ ", "dim"
    return Text(sign + estimate(arm.latency.speedup, words.times), style=style)


def difference(arm: Arm) -> Text:
    score = arm.accuracy
    if score is None or score.worse is None:
        return Text(loss(arm) if score else words.NOTHING, style="dim")
    sign, style = {"loss": ("▼ ", "red"), "gain": ("▲ ", "green")}.get(loss(arm), ("≈ ", "dim"))
    if score.difference is None:
        return Text(f"{sign}{words.percent(score.flipped)} differ", style=style)
    told = words.change(score.difference.value, score.metric, unit=False), words.change_interval(score.difference, score.metric)
    return Text(sign + " ".join(told), style=style)


def estimate(value: Estimate, form) -> str:
    return f"{form(value.value)} {words.interval(value, form)}"


def failure(status: str, cause: str, arms: list[Arm]) -> Text:
    text = Text(f"\n{status}: ", style="bold red" if status == "failed" else "yellow")
    return text.append(", ".join(arm.id for arm in arms), style="bold default").append(f"\n{cause}", style="not bold default")
