"""What there is: recipes, number formats, and what is installed."""

import sys
from typing import Annotated

import typer

from compress.commands.shared import AsJson, app, print_json, print_rows


@app.command()
def recipes(name: Annotated[str | None, typer.Argument(help="A recipe to print as YAML.")] = None, as_json: AsJson = False) -> None:
    """List the built-in recipes, or print one as YAML to start your own from.

    Example: `compresskit recipes int8-static > mine.yaml`
    """
    from compress.recipe import Recipe, built_in

    if name and not as_json:
        sys.stdout.write(Recipe.load(name).to_yaml())
        return
    found = [Recipe.load(n) for n in ([name] if name else built_in())]
    if as_json:
        print_json([{"id": recipe.id, **recipe.model_dump(mode="json", exclude_defaults=True)} for recipe in found])
        return
    print_rows("Built-in recipes", ["name", "id", "what it does"], [(recipe.name, recipe.id, recipe.about) for recipe in found])


@app.command()
def formats(name: Annotated[str | None, typer.Argument(help="A format to print as YAML, for a recipe's `weights`.")] = None, as_json: AsJson = False) -> None:
    """List the number formats that have a name: bits, rule and who uses them.

    Example: `compresskit formats bnb.nf4.dq`
    """
    from compress.presets import PRESETS, as_yaml, bits_per_weight, preset

    if name and not as_json:
        sys.stdout.write(as_yaml(name))
        return
    found = {n: preset(n) for n in ([name] if name else PRESETS)}
    if as_json:
        print_json([{"name": n, "format": str(p.format), "bits_per_weight": bits_per_weight(p.format), "used_by": p.users} for n, p in found.items()])
        return
    columns = ["name", "format", "bits per weight", "used by"]
    print_rows("Number formats", columns, [(n, str(p.format), f"{bits_per_weight(p.format):.3f}", p.users) for n, p in found.items()])


@app.command()
def tasks(as_json: AsJson = False) -> None:
    """List what a study can score outputs by; a function of your own, as `file.py:function`, is a task too.

    Example: `compresskit tasks`
    """
    from evaluators.tasks import TASKS

    found = [(name, entry.about) for name, entry in TASKS.entries.items()]
    if as_json:
        print_json([{"name": name, "about": about} for name, about in found])
        return
    print_rows("Tasks", ["name", "score"], found)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say what is installed, which kernels and CPU features are live, and what each missing extra would add.

    Example: `compresskit doctor`
    """
    from evaluators.doctor import examine

    if as_json:
        print_json({title: [dict(zip(columns, row, strict=True)) for row in rows] for title, columns, rows in examine()})
        return
    for title, columns, rows in examine():
        print_rows(title, columns, rows)
