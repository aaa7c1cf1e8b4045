"""report.md: what a pull request shows, with still charts beside it."""

import re

from evaluators.report import counts, words
from evaluators.report.charts import Chart
from evaluators.report.reading import (
    Pick,
    against_words,
    counts_as_faster,
    is_simulated,
    loss,
    metric,
    other_exporter,
    picks,
    placement_words,
    summary,
    unfinished,
)
from evaluators.report.recommending import recommended
from evaluators.results import Arm, Estimate, Results

SPECIAL = re.compile(r"([\\`*_\[\]#|~$])")


def page(results: Results, images: dict[str, Chart]) -> str:
    """The report as GitHub-flavoured Markdown; `images` maps relative file names to the charts they hold."""
    parts = [f"# {plain(results.study)}", "\n".join(f"- {plain(s)}" for s in [*recommended(results), *summary(results)]), missing(results)]
    parts += [arms_table(results), beside_table(results), runtimes_table(results)]
    parts += [f"![{plain(alternative(chart))}]({name})" for name, chart in images.items()]
    parts += [why(results), NOTE, facts("How it was measured", results.protocol), facts("Where it ran", results.environment), reproduce(results)]
    return "\n\n".join(part for part in parts if part) + "\n"


NOTE = (
    "Intervals are 95%. 1 MB is 1,000,000 bytes. Speedup and difference compare with float32 on the same runtime. "
    "*Native* weights are computed in their format, *decoded* ones are stored small and expanded to float, "
    "**simulated** ones are float values on the format's grid: no smaller, no faster, and never among the best arms here."
)


def plain(text: str) -> str:
    """Text that Markdown and HTML leave as it is, on one line."""
    line = " ".join(text.split())
    return SPECIAL.sub(r"\\\1", line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")).replace("://", "&colon;//")


def code(text: str) -> str:
    """Text as inline code; the fence is longer than any run of backticks inside."""
    line = " ".join(text.split()).replace("|", "\\|")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    return f"{fence} {line} {fence}" if "`" in line else f"`{line}`"


def table(head: list[str], rows: list[list[str]], right: set[int]) -> str:
    rule = ["---:" if i in right else "---" for i in range(len(head))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, rule, *rows])


def missing(results: Results) -> str:
    lines = [f"- **{status}**: {', '.join(code(arm.id) for arm in arms)}: {plain(cause)}" for (status, cause), arms in unfinished(results).items()]
    return "## Without a result\n\n" + "\n".join(lines) if lines else ""


def arms_table(results: Results) -> str:
    title = plain(words.capital(metric(results.arms).title))
    head = ["Model", "Target", "Recipe", "Runtime", "Size", "Ratio", "Latency", "Speedup", "Memory", title, "Against float32", "p", "Flipped", "Weights"]
    rows = [arm_cells(arm) for arm in results.arms]
    left_out = {i for i, name in enumerate(("model", "target")) if len({getattr(arm, name) for arm in results.arms}) == 1}
    head, *rows = ([cell for i, cell in enumerate(row) if i not in left_out] for row in [head, *rows])
    first = 4 - len(left_out)
    return "\n\n".join(["## Arms", table(head, rows, set(range(first, first + 9))), *map(plain, counts.reasons(results))])


def beside_table(results: Results) -> str:
    """The same arms where they ran: milliseconds on real machines, instructions on emulated ones."""
    found = counts.beside(results)
    if found is None:
        return ""
    head = ["Arm", *(plain(words.TARGET_NAMES.get(target, target)) for target in found.targets)]
    rows = [[plain(name), *(plain(counts.in_short(arm)) for arm in arms)] for name, arms in found.rows]
    return "## Side by side\n\n" + table(head, rows, set())


def arm_cells(arm: Arm) -> list[str]:
    runtime = words.runtime_name(arm.runtime) + (f" ({other_exporter(arm)})" if other_exporter(arm) else "")
    names = [plain(arm.model), plain(words.TARGET_NAMES.get(arm.target, arm.target)), plain(arm.recipe), plain(runtime)]
    if arm.status != "done":
        return [*names, f"**{arm.status}**", *[words.NOTHING] * 8, plain(words.first_line(arm.cause))]
    return [
        *names,
        *size_cells(arm),
        *latency_cells(arm),
        words.megabytes(arm.memory.model_bytes) if arm.memory else words.NOTHING,
        *accuracy_cells(arm),
        weights(arm),
    ]


def size_cells(arm: Arm) -> list[str]:
    return [words.megabytes(arm.size.file_bytes), words.times(arm.size.ratio)] if arm.size else [words.NOTHING] * 2


def latency_cells(arm: Arm) -> list[str]:
    if arm.latency is None:
        return [words.NOTHING, f"{words.instructions(arm.instructions.total)}, {counts.fewer(arm)}" if arm.instructions else words.NOTHING]
    return [f"{words.milliseconds(arm.latency.median_ms.value)} {words.interval(arm.latency.median_ms)}", speedup(arm)]


def speedup(arm: Arm) -> str:
    """Only a shown gain is printed as one; everything else carries its verdict first."""
    latency = arm.latency
    if latency.speedup is None or latency.verdict == "baseline":
        return latency.verdict
    text = estimate(latency.speedup, words.times)
    if counts_as_faster(arm):
        return f"**{words.times(latency.speedup.value)}** {words.interval(latency.speedup, words.times)} faster"
    return f"simulated, no speed result: {text}" if is_simulated(arm) else f"{latency.verdict}: {text}"


def accuracy_cells(arm: Arm) -> list[str]:
    score = arm.accuracy
    if score is None:
        return [words.NOTHING] * 4
    value = f"{plain(words.in_unit(score.value.value, score.metric))} {words.score_interval(score.value, score.metric)}"
    if score.worse is None:
        return [value, loss(arm), words.NOTHING, words.NOTHING]
    verdict = {"loss": "**loss**", "gain": "gain"}.get(loss(arm), "no loss shown")
    return [value, f"{difference(arm)}, {verdict}", words.p_value(score.p), words.percent(score.flipped)]


def difference(arm: Arm) -> str:
    score = arm.accuracy
    if score.difference is None:
        return against_words(arm)
    return f"{plain(words.change(score.difference.value, score.metric))} {words.change_interval(score.difference, score.metric)}"


def estimate(value: Estimate, form) -> str:
    return f"{form(value.value)} {words.interval(value, form)}"


def weights(arm: Arm) -> str:
    return placement_words(arm).replace("simulated", "**simulated**") or words.NOTHING


def runtimes_table(results: Results) -> str:
    head = ["Runtime", "float32", "Noise floor (A/A)", "Smallest with no measurable loss", "Fastest with no measurable loss, or fewest instructions"]
    found = [(one, own) for one in picks(results) for own in one.runtimes]
    several = len({(one.model, one.target) for one, _ in found}) > 1
    rows = [
        [
            (f"{plain(one.model)}, {plain(one.target)}: " if several else "") + plain(words.runtime_name(own.runtime)),
            counts.cost(own.baseline),
            words.reach(own.noise) if own.noise else "not timed" if one.untimed else "no A/A run",
            smallest(own.smallest),
            fastest(own.fastest),
        ]
        for one, own in found
    ]
    return "## By runtime\n\n" + table(head, rows, {1, 2})


def smallest(pick: Pick | None) -> str:
    if pick is None:
        return "none"
    gained = f"{words.megabytes(pick.arm.size.file_bytes)}, {words.times(pick.arm.size.ratio)} smaller"
    return f"{plain(pick.arm.recipe)}: {gained}; {difference(pick.arm)}"


def fastest(pick: Pick | None) -> str:
    if pick is None:
        return "none"
    latency = pick.arm.latency
    gained = f"{counts.cost(pick.arm)}, {estimate(latency.speedup, words.times) if latency else counts.fewer(pick.arm)}"
    return f"{plain(pick.arm.recipe)}: {gained}; {difference(pick.arm)}"


def why(results: Results) -> str:
    """The causes of arms that are not as they should be, or that somebody asked about."""
    found = [f"{code(arm.id)}\n\n" + "\n".join(f"{number}. {plain(said)}" for number, said in enumerate(arm.causes, 1)) for arm in results.arms if arm.causes]
    return "\n\n".join(["## Why", *found]) if found else ""


def alternative(chart: Chart) -> str:
    model, target = chart.group
    return f"{model} on {words.TARGET_NAMES.get(target, target)}: {chart.metric.title} against {chart.axis.key}, one panel per runtime"


def image_names(charts: list[Chart]) -> list[str]:
    """Relative file names, unique: charts/accuracy-size.svg, with a number in front where several models are shown."""
    several = len({chart.group for chart in charts}) > 1
    order = list(dict.fromkeys(chart.group for chart in charts))
    return [f"charts/{f'{order.index(chart.group) + 1}-' if several else ''}{chart.slug}.svg" for chart in charts]


def facts(title: str, lines: dict[str, str]) -> str:
    return f"## {title}\n\n" + "\n".join(f"- **{plain(name)}**: {plain(text)}" for name, text in lines.items()) if lines else ""


def reproduce(results: Results) -> str:
    took = f"Measured {results.created[:16].replace('T', ' ')} UTC in {words.seconds(results.wall_seconds)}."
    return f"## Again\n\n{code(results.command)}\n\n{took} Everything, block medians included: [results.json](results.json), [results.csv](results.csv)."
