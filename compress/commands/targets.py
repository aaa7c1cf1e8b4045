"""Where a study can run."""

import time
from pathlib import Path
from typing import Annotated

import typer

from compress.commands.shared import AsJson, app, console, print_json, print_rows, resumable

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


@where.command()
def calibrate(
    counted: Annotated[str, typer.Argument(help="The emulated target, as arm64:cortex-a76.")],
    device: Annotated[str, typer.Argument(help="A real device with that core: any target that is timed.")],
    studies: Annotated[list[Path], typer.Argument(help="Studies with two models or more between them; they run on both.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the studies; a rerun continues there.")] = Path("calibration"),
    as_json: AsJson = False,
) -> None:
    """Learn from one real device how long instructions take, so that emulated arms get an estimate in milliseconds, with its error.

    Example: `compresskit targets calibrate arm64:cortex-a76 ssh:pi@board examples/digits/study.yaml examples/sentiment/study.yaml`
    """
    from dataclasses import asdict

    from evaluators.estimating import calibrate as fit

    with resumable():
        fitted, path = fit(counted, device, studies, out)
    if as_json:
        print_json(asdict(fitted))
        return
    rows = [(name, f"{cost:.3g}") for name, cost in fitted.nanoseconds.items() if cost]
    print_rows(f"{fitted.device} explained by {fitted.counted_on}", ["for each", "ns"], rows)
    console.print(f"{fitted.arms} arms of {fitted.models} models; models that the fit had not seen are off by {fitted.error:.0%} (root mean square).")
    console.print(f"Kept in {path}; `compresskit compare` with {fitted.counted_on} shows estimates from now on.", soft_wrap=True, highlight=False)
