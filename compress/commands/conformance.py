"""The live libraries beside this project."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from compress.commands.shared import AsJson, app, errors, print_json, print_rows


@app.command()
def conformance(
    libraries: Annotated[list[str] | None, typer.Argument(help="Some of the libraries; default: all.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Also write the whole matrix as Markdown.")] = None,
    as_json: AsJson = False,
) -> None:
    """Send golden vectors through this project and through each live library that owns a preset, and show how far the codes are apart.

    Example: `compresskit conformance bitsandbytes gguf`
    """
    from compress.conformance import conformance as ask_all
    from compress.conformance.page import markdown, summary

    answers = []
    with errors.status("asking the libraries") as status:
        for answer in ask_all(libraries or ()):
            answers.append(answer)
            status.update(f"asking the libraries; {answer.peer} has answered")
            if as_json:
                continue
            rows = [(row.preset, row.how, row.tally, summary(row)) for row in answer.rows]
            title = f"{answer.peer} {answer.version}"
            print_rows(title, ["preset", "its function", "vectors", "where"], rows or [("", "", "NOT INSTALLED", answer.missing)])
    if as_json:
        print_json([asdict(answer) for answer in answers])
    if output:
        output.write_text(markdown(answers), encoding="utf-8")
        errors.print(f"Matrix: {escape(str(output))}", soft_wrap=True, highlight=False)
