"""What every command needs: the application, the two consoles, common arguments, tables."""

import json
import os
import sys
from collections.abc import Callable, Iterator
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
WIDE = 160  # columns where nobody looks on: a file or a pipe has no width, and nothing finds a name that is broken in two
console = Console(emoji=False, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else WIDE)
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


@contextmanager
def telling(what: str) -> Iterator[Callable[[str], None]]:
    """Says what is being done, and whatever is told next: in one line that changes on a terminal, in a line for each elsewhere."""
    if errors.is_terminal:
        with errors.status(escape(what)) as status:
            yield lambda text: status.update(escape(text))
    else:
        errors.print(what, markup=False, highlight=False, soft_wrap=True)
        yield lambda text: errors.print(text, markup=False, highlight=False, soft_wrap=True)


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
