"""Fine-tuning, and the memory that it takes."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from compress.commands.shared import AsJson, app, console, errors, print_json, print_rows, resumable


@app.command()
def finetune(
    document: Annotated[Path, typer.Argument(help="A .yaml file: model, data, budget, and the methods to compare.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for checkpoints, adapters and the report; a rerun continues there.")] = Path("finetuned"),
    as_json: AsJson = False,
) -> None:
    """Fine-tune a model by one method or several, compare them and write a report.

    Example: `compresskit finetune examples/sentiment/finetune.yaml --out finetuned`
    """
    from compress.finetune.config import Finetuning
    from evaluators import finetuning
    from evaluators.report import finetuning as pages

    loaded = Finetuning.load(document)
    with resumable():
        rows = finetuning.finetune(document, out)
    written = pages.write_report(loaded, rows, out, f"compresskit finetune {document} --out {out}")
    if as_json:
        sys.stdout.write(written["json"].read_text(encoding="utf-8"))
    else:
        show(loaded, rows, written["html"])
    if any(row.status != "done" for row in rows):
        raise typer.Exit(1)


def show(loaded, rows, page: Path) -> None:
    from evaluators.report import finetuning as pages

    shown = [i for i, column in enumerate(pages.HEAD) if column in ("Run", "Learns", "Score", "Loss", "Tokens/s", "Peak memory")]
    print_rows(loaded.name, [pages.HEAD[i] for i in shown], [tuple(pages.cells(loaded, row)[i] for i in shown) for row in rows])
    for row in rows:
        console.print(escape(pages.verdict(loaded, row)))
        if row.merges:
            print_rows(f"Merging {row.name}", list(pages.MERGE_HEAD), [tuple(pages.merge_cells(loaded, *merge)) for merge in row.merges])
            console.print(escape(pages.recommendation(loaded, row)))
    console.print(f"Report: {escape(str(page))}", soft_wrap=True, highlight=False)


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
    as_json: AsJson = False,
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
        print_json(shown.facts)
        return
    print_rows(shown.title, shown.columns, shown.rows, shown.bold)
    for note in shown.notes:
        console.print(note, highlight=False)
