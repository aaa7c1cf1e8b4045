"""Studies: written, run, reported and judged."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from compress.commands.shared import AsJson, Model, app, console, errors, print_json, print_rows, resumable


@app.command()
def init(
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="The study; its data.py is written beside it.")] = Path("study.yaml"),
    as_json: AsJson = False,
) -> None:
    """Write a commented study for a model, and the functions that its data has to come from.

    Example: `compresskit init model.keras -o study.yaml`
    """
    from evaluators.starting import start_study

    with errors.status("opening the model"):
        written = start_study(model, output)
    if as_json:
        print_json({"written": [str(path) for path in written]})
        return
    console.print(f"Wrote {', '.join(map(str, written))}. Fill in data.py, then: compresskit compare {output} --out report", soft_wrap=True, highlight=False)


@app.command()
def compare(
    study: Annotated[Path, typer.Argument(help="The study: models x recipes x runtimes x targets.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for artifacts, results and reports; a rerun continues there.")] = Path("report"),
    targets: Annotated[str, typer.Option("--targets", help="Where to run instead of the study's own, with commas between: see `compresskit targets`.")] = "",
    arm: Annotated[
        list[str] | None,
        typer.Option(help="Only these arms and their float32: a part of a name, as int8-static/litert, or a glob."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say which arms there are, their predicted sizes and about how long it takes.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run a study and write its report.

    Example: `compresskit compare examples/digits/study.yaml --out digits`

    On emulated arm64 cores too: `compresskit compare examples/digits/study.yaml --targets cpu,arm64:cortex-a76 --out mobile`
    """
    import evaluators
    from compress.commands import foreseen

    wanted = [name.strip() for name in targets.split(",") if name.strip()]
    if dry_run and arm:
        raise typer.BadParameter("--dry-run looks at the whole study: leave --arm out")
    if dry_run:
        return foreseen.show(evaluators.Study.load(study, wanted), as_json)
    with resumable():
        results = evaluators.compare(study, out, targets=wanted, arms=arm or ())
    show_report(results, out, as_json)
    failed = [arm.id for arm in results.arms if arm.status == "failed"]
    if failed:
        errors.print(f"{len(failed)} arm(s) failed: {', '.join(failed)}; their causes are in the report. Run the same command again to retry them.")
        raise typer.Exit(1)


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="A folder that `compare` wrote.")], as_json: AsJson = False) -> None:
    """Rebuild report.html, report.md, results.json and results.csv from a study's samples.

    Example: `compresskit report digits`
    """
    import evaluators

    show_report(evaluators.load_results(folder), folder, as_json)


@app.command()
def check(
    folder: Annotated[Path, typer.Argument(help="A folder that `compare` wrote.")],
    baseline: Annotated[Path | None, typer.Option(help="An earlier study's folder: accuracy is compared with its arms, answer by answer.")] = None,
    accuracy_drop: Annotated[float | None, typer.Option("--max-accuracy-drop", help="Points; against float32, or against --baseline.", min=0)] = None,
    drop: Annotated[
        float | None, typer.Option("--max-drop", help="How much worse any task's score may be: points of shares, percent of perplexity, else its unit.", min=0)
    ] = None,
    score: Annotated[float | None, typer.Option("--worst-score", help="The worst that a score may be: percent of shares, else its unit, as dB.")] = None,
    speedup: Annotated[float | None, typer.Option("--min-speedup", help="Times as fast as float32.", min=0)] = None,
    size: Annotated[str | None, typer.Option("--max-size", help="Of the file, as 6MB, 500kB or 4MiB.")] = None,
    arm: Annotated[list[str] | None, typer.Option(help="Only these arms: a part of a name, as int8-static/litert, or a glob; may be repeated.")] = None,
    junit: Annotated[Path | None, typer.Option(help="Also write JUnit XML.")] = None,
    as_json: AsJson = False,
) -> None:
    """Judge a study's arms by the ends of their confidence intervals; exit code 1 where one fails.

    Example: `compresskit check report --baseline last-week --max-accuracy-drop 1.0 --min-speedup 1.5 --max-size 6MB --arm '*/int8-static/*'`
    """
    from dataclasses import asdict

    from compress.units import parse_bytes
    from evaluators import gate

    limits = gate.Limits(accuracy_drop, drop, score, speedup, None if size is None else parse_bytes(size))
    findings = gate.check(folder, limits, baseline, arm or ())
    if junit:
        gate.write_junit(findings, junit)
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        print_rows(f"{folder}", ["arm", "asked", "outcome", "found"], [(f.arm, f.asked, f.outcome, f.said) for f in findings])
    failed = sum(finding.outcome == "failed" for finding in findings)
    if failed:
        errors.print(f"{failed} of {len(findings)} checks failed")
        raise typer.Exit(1)


@app.command()
def explain(
    folder: Annotated[Path, typer.Argument(help="A folder that `compare` wrote.")],
    arm: Annotated[str, typer.Argument(help="An arm's name, or a part of it that no other arm has.")],
    seconds: Annotated[float, typer.Option(help="For compressing one layer at a time; a later call goes on.", min=0)] = 60,
    as_json: AsJson = False,
) -> None:
    """Say why an arm is as fast, as large and as exact as it is: its operators timed beside float32's, its layers' errors, and what its file holds.

    Example: `compresskit explain report int8-dynamic/litert`
    """
    from dataclasses import asdict

    from evaluators.explaining import explain as explained
    from evaluators.report import explanation

    with errors.status("reading the study") as status:
        found = explained(folder, arm, status.update, seconds)
    if as_json:
        print_json(asdict(found))
        return
    console.print(escape(found.verdict), highlight=False)
    for number, cause in enumerate(found.why, 1):
        console.print(f"{number}. {escape(cause)}", highlight=False)
    for title, columns, rows in explanation.tables(found):
        print_rows(title, columns, rows)
    for line in explanation.lines(found):
        console.print(escape(line), highlight=False)


def show_report(results, folder: Path, as_json: bool) -> None:
    from evaluators.report import rows, write_reports
    from evaluators.report.terminal import print_table

    with errors.status("writing the report") as status:
        written = write_reports(results, folder, status.update)
    if as_json:
        sys.stdout.write(rows.to_json(results))
        return
    print_table(results, console)
    console.print(f"Report: {escape(str(written['html']))}", soft_wrap=True, highlight=False)
