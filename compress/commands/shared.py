"""What every command needs: the application, the two consoles, common arguments, tables."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="One compression recipe for every framework and every device, with one honest report.\n\n"
    "Exit codes: 0 done, 1 some arm failed, 2 bad input. With `--debug` an error shows where it was raised.",
)
console = Console(emoji=False)
errors = Console(stderr=True, emoji=False)

Model = Annotated[str, typer.Argument(help="A .keras, .h5 or SavedModel, or `file.py:function` that returns a model.")]
RecipeName = Annotated[str, typer.Option("--recipe", "-r", help="A built-in recipe's name (see `compresskit recipes`) or a .yaml file.")]
Calibration = Annotated[
    str | None,
    typer.Option("--calibration", "-c", help="Typical inputs: `file.py:function` or an .npy/.npz file; for static recipes and PyTorch models."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead.")]


@contextmanager
def resumable() -> Iterator[None]:
    """Says on Ctrl-C that nothing is lost."""
    try:
        yield
    except KeyboardInterrupt:
        errors.print("Interrupted. What is finished is kept: the same command goes on from there.")
        raise


def print_json(document: Any) -> None:
    sys.stdout.write(json.dumps(document, indent=2) + "\n")


def print_rows(title: str, columns: list[str], rows: list[tuple[str, ...]], bold: str | None = None) -> None:
    from rich.table import Table

    table = Table(title=escape(title), title_justify="left")
    for column in columns:
        style = "bold" if bold and column.startswith(bold) else None
        table.add_column(column, justify="right" if column.startswith(("bytes", "bits")) else "left", overflow="fold", style=style, header_style=style)
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)
