"""The command line `compresskit`; the only file that imports all three packages."""

import json
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from compress.errors import CompressError, ExportError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="One compression recipe for every framework and every device, with one honest report.\n\nExit codes: 0 done, 1 some arm failed, 2 bad input.",
)
console = Console(emoji=False)
errors = Console(stderr=True, emoji=False)

Model = Annotated[str, typer.Argument(help="A .keras, .h5 or SavedModel, or `file.py:function` that returns a model.")]
RecipeName = Annotated[str, typer.Option("--recipe", "-r", help="A built-in recipe's name (see `compresskit recipes`) or a .yaml file.")]
Calibration = Annotated[
    str | None,
    typer.Option("--calibration", "-c", help="Typical inputs: `file.py:function` or an .npy/.npz file; for static recipes and PyTorch models."),
]


@app.command()
def init(
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="The study; its data.py is written beside it.")] = Path("study.yaml"),
) -> None:
    """Write a commented study for a model, and the functions that its data has to come from.

    Example: `compresskit init model.keras -o study.yaml`
    """
    from evaluators.starting import start_study

    with console.status("opening the model"):
        written = start_study(model, output)
    console.print(f"Wrote {', '.join(map(str, written))}. Fill in data.py, then: compresskit compare {output} --out report", soft_wrap=True, highlight=False)


@app.command()
def compare(
    study: Annotated[Path, typer.Argument(help="The study: models x recipes x runtimes x targets.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for artifacts, results and reports; a rerun continues there.")] = Path("report"),
    targets: Annotated[str, typer.Option("--targets", help="Where to run instead of the study's own, with commas between: see `compresskit targets`.")] = "",
) -> None:
    """Run a study and write its report.

    Example: `compresskit compare examples/digits/study.yaml --out digits`

    On emulated arm64 cores too: `compresskit compare examples/digits/study.yaml --targets cpu,arm64:cortex-a76 --out mobile`
    """
    import evaluators

    results = evaluators.compare(study, out, targets=[name.strip() for name in targets.split(",") if name.strip()])
    show_report(results, out)
    failed = [arm.id for arm in results.arms if arm.status == "failed"]
    if failed:
        errors.print(f"{len(failed)} arm(s) failed: {', '.join(failed)}; their causes are in the report. Run the same command again to retry them.")
        raise typer.Exit(1)


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="A folder that `compare` wrote.")]) -> None:
    """Rebuild report.html, report.md, results.json and results.csv from a study's samples.

    Example: `compresskit report digits`
    """
    import evaluators

    show_report(evaluators.load_results(folder), folder)


@app.command()
def check(
    folder: Annotated[Path, typer.Argument(help="A folder that `compare` wrote.")],
    baseline: Annotated[Path | None, typer.Option(help="An earlier study's folder: accuracy is compared with its arms, answer by answer.")] = None,
    accuracy_drop: Annotated[float | None, typer.Option("--max-accuracy-drop", help="Points; against float32, or against --baseline.", min=0)] = None,
    speedup: Annotated[float | None, typer.Option("--min-speedup", help="Times as fast as float32.", min=0)] = None,
    size: Annotated[str | None, typer.Option("--max-size", help="Of the file, as 6MB, 500kB or 4MiB.")] = None,
    arm: Annotated[list[str] | None, typer.Option(help="Only arms of this name, as '*/int8-static/litert/*'; may be repeated.")] = None,
    junit: Annotated[Path | None, typer.Option(help="Also write JUnit XML.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Judge a study's arms by the ends of their confidence intervals; exit code 1 where one fails.

    Example: `compresskit check report --baseline last-week --max-accuracy-drop 1.0 --min-speedup 1.5 --max-size 6MB --arm '*/int8-static/*'`
    """
    from dataclasses import asdict

    from compress.units import parse_bytes
    from evaluators import gate

    limits = gate.Limits(accuracy_drop, speedup, None if size is None else parse_bytes(size))
    findings = gate.check(folder, limits, baseline, arm or ())
    if junit:
        gate.write_junit(findings, junit)
    if as_json:
        sys.stdout.write(json.dumps([asdict(finding) for finding in findings], indent=2) + "\n")
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
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say why an arm is as fast, as large and as exact as it is: its operators timed beside float32's, and what its file holds.

    Example: `compresskit explain report int8-dynamic/litert`
    """
    from dataclasses import asdict

    from evaluators.explaining import explain as explained
    from evaluators.report import explanation

    with errors.status("reading the study") as status:
        found = explained(folder, arm, status.update)
    if as_json:
        sys.stdout.write(json.dumps(asdict(found), indent=2) + "\n")
        return
    console.print(escape(found.verdict), highlight=False)
    for number, cause in enumerate(found.why, 1):
        console.print(f"{number}. {escape(cause.said)}", highlight=False)
    for title, columns, rows in explanation.tables(found):
        print_rows(title, columns, rows)
    for line in explanation.lines(found):
        console.print(escape(line), highlight=False)


@app.command()
def finetune(
    document: Annotated[Path, typer.Argument(help="A .yaml file: model, data, budget, and the methods to compare.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for checkpoints, adapters and the report; a rerun continues there.")] = Path("finetuned"),
) -> None:
    """Fine-tune a model by one method or several, compare them and write a report.

    Example: `compresskit finetune examples/sentiment/finetune.yaml --out finetuned`
    """
    from compress.finetune.config import Finetuning
    from evaluators import finetuning
    from evaluators.report import finetuning as pages

    loaded = Finetuning.load(document)
    rows = finetuning.finetune(document, out)
    written = pages.write_report(loaded, rows, out, f"compresskit finetune {document} --out {out}")
    shown = [i for i, column in enumerate(pages.HEAD) if column in ("Run", "Learns", "Score", "Loss", "Tokens/s", "Peak memory")]
    print_rows(loaded.name, [pages.HEAD[i] for i in shown], [tuple(pages.cells(loaded, row)[i] for i in shown) for row in rows])
    for row in rows:
        console.print(escape(pages.verdict(loaded, row)))
        if row.merges:
            print_rows(f"Merging {row.name}", list(pages.MERGE_HEAD), [tuple(pages.merge_cells(loaded, *merge)) for merge in row.merges])
            console.print(escape(pages.recommendation(loaded, row)))
    console.print(f"Report: {escape(str(written['html']))}", soft_wrap=True, highlight=False)
    if any(row.status != "done" for row in rows):
        raise typer.Exit(1)


def show_report(results, folder: Path) -> None:
    from evaluators.report import write_reports
    from evaluators.report.terminal import print_table

    written = write_reports(results, folder)
    print_table(results, console)
    console.print(f"Report: {escape(str(written['html']))}", soft_wrap=True, highlight=False)


@app.command()
def compress(
    model: Model,
    recipe: RecipeName,
    output: Annotated[Path, typer.Option("--output", "-o", help="The artifact: .tflite, .onnx, .pt2, .pte, .gguf, or DIR/model.safetensors.")],
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            help="Exporter: litert (tflite), litert-converter, onnx, torch, executorch, safetensors (bitsandbytes, compressed-tensors), gguf. "
            "Default: by the suffix.",
        ),
    ] = None,
    calibration: Calibration = None,
    training: Annotated[str | None, typer.Option("--training", "-t", help="`file.py:function` that returns (inputs, labels), for recipes that train.")] = None,
    learning_rate: Annotated[float, typer.Option(help="The peak learning rate that suits the model, where the recipe says none.", min=0)] = 1e-3,
    checkpoints: Annotated[Path | None, typer.Option(help="A folder where trainings are kept: the same command goes on from there.")] = None,
    labels: Annotated[Path | None, typer.Option(help="A text file with a class on each line, for the artifact.", exists=True, dir_okay=False)] = None,
    mean: Annotated[list[float] | None, typer.Option(help="Of the normalisation (pixel - mean) / std, for the artifact; once, or for each channel.")] = None,
    std: Annotated[list[float] | None, typer.Option(help="As --mean.")] = None,
) -> None:
    """Compress one model into one artifact.

    Example: `compresskit compress model.keras --recipe int8-static --to litert --calibration data.npz -o model.tflite`

    With training: `compresskit compress model.keras --recipe pqat -c data.py:calibration -t data.py:train --checkpoints trained -o model.tflite`
    """
    import exporters
    from compress.card import Card
    from compress.pipeline import compress as run
    from compress.references import load_training

    card = Card.of(labels.read_text(encoding="utf-8") if labels else "", mean or (), std or ())
    with console.status("opening the model") as status:
        network, data = open_network(model, calibration)
        status.update(f"fitting {recipe}")
        taught = load_training(training, learning_rate) if training else None
        small = run(network, recipe, calibration=data, training=taught, checkpoints=checkpoints, progress=training_status(status))
        status.update(f"writing and checking {output.name}")
        artifact = exporters.export(small, output, to, card)
    show_artifact(artifact)


def training_status(status):
    """A progress callback that says how far a step's training is, and about how long it will take."""
    began: dict[str, tuple[float, int]] = {}

    def progress(step: str, done: int, steps: int, loss: float) -> None:
        start, first = began.setdefault(step, (time.perf_counter(), done))
        left = f", about {(time.perf_counter() - start) / (done - first) * (steps - done):,.0f} s left" if done > first else ""
        status.update(f"{step}: step {done:,} of {steps:,}, loss {loss:.3f}{left}")

    return progress


def open_network(model: str, calibration: str | None):
    from compress.backends import open_model
    from compress.references import load_data, load_model

    data = load_data(calibration)[0] if calibration else None
    return open_model(load_model(model), inputs=data), data


@app.command()
def plan(
    model: Model,
    recipe: RecipeName,
    to: Annotated[str | None, typer.Option("--to", help="Also say how this exporter will store each tensor, or why it cannot.")] = None,
    calibration: Calibration = None,
) -> None:
    """Show what a recipe will do to every tensor and the predicted bytes, before any work.

    Example: `compresskit plan model.keras --recipe int4-group32 --to onnx`
    """
    import exporters
    from compress.plan import plan as decide
    from compress.recipe import Recipe

    loaded = Recipe.load(recipe)
    with console.status("opening the model"):
        network, _ = open_network(model, calibration)
        decided = decide(network.weights(), loaded)
        placed = exporters.placements(decided, to, network.framework, loaded.allow_float) if to else {}
    rows = [
        (d.name, d.kind, "x".join(map(str, d.shape)), plan_words(d), *([stored_words(placed.get(d.name))] if to else []), f"{d.size_bytes:,}")
        for d in decided.decisions
        if d.format is not None or d.wanted or len(d.shape) > 1
    ]
    print_rows(f"{loaded.name} ({loaded.id})", ["tensor", "kind", "shape", "plan", *([f"stored by {to}"] if to else []), "bytes"], rows)
    small = sum(d.float_bytes for d in decided.decisions if len(d.shape) < 2 and d.format is None)
    total = sum(d.float_bytes for d in decided.decisions)
    console.print(f"Biases and norms stay in float32: {small:,} bytes. Predicted weights: {decided.size_bytes:,} of {total:,} bytes.")
    predicted = exporters.predicted_bytes(decided, to, placed) if to else None
    if predicted is not None:
        console.print(f"Predicted file: {predicted:,} bytes with what {to} adds for each weight, without the model's own graph.")
    for note in network.notes:
        console.print(f"Note: {escape(note)}")
    if to and hasattr(exporters.EXPORTERS.load(to), "delegates"):
        with console.status("converting to float32, to see what delegates take"):
            print_delegates(exporters.EXPORTERS.load(to).delegates(network))


def print_delegates(found: dict[str, str]) -> None:
    for name, said in found.items():
        console.print(f"{name}: {escape(said)}")


def plan_words(decision) -> str:
    if decision.format is None:
        return f"float32: {decision.reason}"
    return str(decision.format) + (f", {decision.activations}" if decision.activations else "")


def stored_words(placed) -> str:
    return "" if placed is None else placed.placement + (f": {placed.reason}" if placed.reason else "")


def print_rows(title: str, columns: list[str], rows: list[tuple[str, ...]], bold: str | None = None) -> None:
    from rich.table import Table

    table = Table(title=escape(title), title_justify="left")
    for column in columns:
        style = "bold" if bold and column.startswith(bold) else None
        table.add_column(column, justify="right" if column.startswith(("bytes", "bits")) else "left", overflow="fold", style=style, header_style=style)
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)


@app.command()
def inspect(file: Annotated[Path, typer.Argument(help="A .tflite, .onnx, .pt2, .pte, .safetensors or .gguf file, whoever wrote it.")]) -> None:
    """Show what a file holds: tensors, number formats, operators and where its bytes go.

    Example: `compresskit inspect model.tflite`
    """
    import exporters

    show_artifact(exporters.inspect(file))


def show_artifact(artifact) -> None:
    from compress.artifact import deflated_bytes, in_memory

    contents, ledger = artifact.contents, artifact.ledger
    rows = [
        (t.name, "x".join(map(str, t.shape)) or "scalar", t.dtype, *values_words(t), t.placement + (f": {t.reason}" if t.reason else ""), f"{t.size_bytes:,}")
        for t in sorted(contents.tensors, key=lambda t: -t.size_bytes)
        if t.placement != "float" or t.size_bytes >= 1024
    ]
    print_rows(artifact.path.name, ["tensor", "shape", "stored as", "zeros", "values", "placement", "bytes"], rows)
    hidden = len(contents.tensors) - len(rows)
    if hidden:
        console.print(f"and {hidden} float tensors under 1 KiB")
    console.print("Operators: " + ", ".join(f"{count} {name}" for name, count in sorted(contents.operators.items(), key=lambda o: -o[1])))
    print_delegates(contents.delegates)
    for noun, specs in (("Inputs", contents.inputs), ("Outputs", contents.outputs)):
        console.print(f"{noun}: " + escape(", ".join(f"{s.name} {list(s.shape)} {s.dtype}" for s in specs)))
    made = f"recipe {artifact.recipe} ({artifact.recipe_id}), exporter {artifact.exporter}" if artifact.recipe else "not made by compresskit"
    console.print(f"{ledger.file_bytes:,} bytes ({deflated_bytes(artifact.path):,} deflated); {made}")
    parts = ("payload", "scales", "zero_points", "float_bytes", "graph")
    console.print("Ledger: " + ", ".join(f"{part.replace('_', ' ')} {getattr(ledger, part):,}" for part in parts))
    sizes = [f"{size:,} {how}" for how, size in in_memory(contents.tensors).items() if size]
    if sizes:
        console.print(f"Compressed weights in memory, bytes: {', '.join(sizes)}")
    for name, claims in contents.metadata.get("kept", {}).items():
        console.print(f"Kept: {escape(name)}: {escape('; '.join(claims))}")
    for name, value in contents.metadata.get("card", {}).items():
        console.print(f"Card: {name} {escape(', '.join(map(str, value)) if isinstance(value, list) else value)}")
    for note in artifact.notes:
        console.print(f"Note: {escape(note)}")


def values_words(tensor) -> tuple[str, str]:
    """Share of zeros, and how many different values or codes."""
    zeros = "" if tensor.zeros is None else f"{tensor.zeros:.0%}"
    return zeros, str(tensor.distinct) if tensor.distinct is not None else ">256" if tensor.zeros is not None else ""


@app.command()
def recipes(name: Annotated[str | None, typer.Argument(help="A recipe to print as YAML.")] = None) -> None:
    """List the built-in recipes, or print one as YAML to start your own from.

    Example: `compresskit recipes int8-static > mine.yaml`
    """
    from compress.recipe import Recipe, built_in

    if name:
        sys.stdout.write(Recipe.load(name).to_yaml())
        return
    print_rows("Built-in recipes", ["name", "id", "what it does"], [(n, (r := Recipe.load(n)).id, r.about) for n in built_in()])


@app.command()
def formats(name: Annotated[str | None, typer.Argument(help="A format to print as YAML, for a recipe's `weights`.")] = None) -> None:
    """List the number formats that have a name: bits, rule and who uses them.

    Example: `compresskit formats bnb.nf4.dq`
    """
    from compress.presets import PRESETS, as_yaml, bits_per_weight

    if name:
        sys.stdout.write(as_yaml(name))
        return
    columns = ["name", "format", "bits per weight", "used by"]
    print_rows("Number formats", columns, [(n, str(p.format), f"{bits_per_weight(p.format):.3f}", p.users) for n, p in PRESETS.items()])


@app.command()
def conformance(
    libraries: Annotated[list[str] | None, typer.Argument(help="Some of the libraries; default: all.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Also write the whole matrix as Markdown.")] = None,
) -> None:
    """Send golden vectors through this project and through each live library that owns a preset, and show how far the codes are apart.

    Example: `compresskit conformance bitsandbytes gguf`
    """
    from compress.conformance import conformance as ask_all
    from compress.conformance.page import markdown, summary

    answers = []
    with console.status("asking the libraries") as status:
        for answer in ask_all(libraries or ()):
            answers.append(answer)
            rows = [(row.preset, row.how, row.tally, summary(row)) for row in answer.rows]
            title = f"{answer.peer} {answer.version}"
            print_rows(title, ["preset", "its function", "vectors", "where"], rows or [("", "", "NOT INSTALLED", answer.missing)])
            status.update(f"asking the libraries; {answer.peer} has answered")
    if output:
        output.write_text(markdown(answers), encoding="utf-8")
        console.print(f"Matrix: {escape(str(output))}", soft_wrap=True, highlight=False)


@app.command()
def memory(
    model: Annotated[str | None, typer.Argument(help="A folder with a config.json, a .json file, or a built-in config: llama-7b, llama-65b, ...")] = None,
    method: Annotated[str, typer.Option("--method", "-m", help="A method's name or .yaml file; full, lora and qlora are always shown.")] = "qlora",
    rank: Annotated[int, typer.Option(help="Of LoRA's matrices.", min=1)] = 16,
    batch: Annotated[int, typer.Option(help="Samples that pass through the model at once.")] = 1,
    seq: Annotated[int, typer.Option(help="Tokens of a sample.")] = 512,
    dtype: Annotated[str, typer.Option(help="What the base and the activations are in: bfloat16, float16, float32. Adapters are float32.")] = "bfloat16",
    optimizer: Annotated[str, typer.Option(help="adamw, or adamw8bit.")] = "adamw",
    fits: Annotated[str | None, typer.Option("--fits", help="List the built-in configs that fit in this memory, as 24GB or 16GiB.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, bytes.")] = False,
) -> None:
    """Predict what a training step takes, by line, before any weight is loaded; or which models fit.

    Example: `compresskit memory llama-65b --method qlora --rank 16 --batch 4 --seq 512`

    Example: `compresskit memory --fits 24GB`
    """
    from compress.errors import InputError
    from compress.finetune.memory import Shape
    from compress.finetune.memory_tables import fits_table, memory_table

    if (model is None) == (fits is None):
        raise InputError("give a model, or --fits with an amount of memory")
    shape = Shape(batch, seq, dtype, optimizer)
    with errors.status("a training step without data") as status:
        shown = memory_table(model, method, rank, shape, status.update) if model else fits_table(fits, method, rank, shape, status.update)
    if as_json:
        sys.stdout.write(json.dumps(shown.facts, indent=2) + "\n")
        return
    print_rows(shown.title, shown.columns, shown.rows, shown.bold)
    for note in shown.notes:
        console.print(note, highlight=False)


where = typer.Typer(invoke_without_command=True)
app.add_typer(where, name="targets")


@where.callback()
def targets(
    context: typer.Context,
    folder: Annotated[Path, typer.Option("--folder", help="Where a targets.yaml lies, beside the study.")] = Path("."),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List where a study can run, what is reachable now and what each could run; or set one up.

    Example: `compresskit targets`

    Example: `compresskit targets setup arm64`
    """
    from dataclasses import asdict

    from evaluators.targets import listed

    if context.invoked_subcommand:
        return
    found = list(listed(folder))
    if as_json:
        sys.stdout.write(json.dumps([asdict(one) for one in found], indent=2) + "\n")
        return
    rows = [(one.name, "yes" if one.reachable else "no", ", ".join(one.runtimes), one.state) for one in found]
    print_rows("Targets", ["name", "reachable", "runs", "state"], rows)


@where.command()
def setup(kind: Annotated[str, typer.Argument(help="A kind of target, as arm64.")]) -> None:
    """Prepare a kind of target in the user's cache folder, or in $COMPRESSKIT_CACHE. The machine itself is left as it is.

    Example: `compresskit targets setup arm64`
    """
    from evaluators.targets import set_up

    started = time.monotonic()
    set_up(kind, lambda text: console.print(f"[{time.monotonic() - started:5.1f} s] {text}", markup=False, highlight=False))
    console.print(f"[{time.monotonic() - started:5.1f} s] {kind} is ready", markup=False, highlight=False)


@app.command()
def doctor() -> None:
    """Say what is installed, which kernels and CPU features are live, and what each missing extra would add.

    Example: `compresskit doctor`
    """
    from evaluators.doctor import examine

    for title, columns, rows in examine():
        print_rows(title, columns, rows)


def main() -> None:
    """Runs the command line; errors that we raise on purpose become one message and exit code 2 (1 for a failed export)."""
    try:
        app()
    except (CompressError, OSError) as error:
        errors.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        raise SystemExit(1 if isinstance(error, ExportError) else 2) from error


if __name__ == "__main__":
    main()
