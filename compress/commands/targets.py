"""Where a study can run."""

import time
from pathlib import Path
from typing import Annotated

import typer

from compress.commands.shared import AsJson, app, console, print_json, print_rows

where = typer.Typer(invoke_without_command=True)
app.add_typer(where, name="targets")


@where.callback()
def targets(
    context: typer.Context,
    folder: Annotated[Path, typer.Option("--folder", help="Where a targets.yaml lies, beside the study.")] = Path("."),
    as_json: AsJson = False,
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
        print_json([asdict(one) for one in found])
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
