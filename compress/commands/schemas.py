"""JSON Schemas of the documents that people write, by which editors complete them, and of the results that a study writes."""

from enum import StrEnum
from typing import Annotated, Any

import typer

from compress.commands.shared import app, print_json


class Document(StrEnum):
    recipe = "recipe"
    study = "study"
    targets = "targets"
    finetune = "finetune"
    results = "results"


@app.command()
def schema(document: Annotated[Document, typer.Argument(help="Whose fields.")]) -> None:
    """Print the JSON Schema of a document: editors complete YAML by it, programs check results.json with it.

    Example: `compresskit schema study > study.schema.json`
    """
    print_json(json_schema(document))


def json_schema(document: str) -> dict[str, Any]:
    """The JSON Schema of one of `Document`."""
    if document == Document.recipe:
        from compress.recipe import Recipe

        return Recipe.model_json_schema()
    if document == Document.study:
        from evaluators.study import Study

        return Study.model_json_schema()
    if document == Document.finetune:
        from compress.finetune.config import Finetuning

        return Finetuning.model_json_schema()
    if document == Document.targets:
        return targets_schema()
    from evaluators.report.schema import results_schema

    return results_schema()


def targets_schema() -> dict[str, Any]:
    """Of targets.yaml: every name has a kind, and the settings of that kind."""
    from evaluators.targets import TARGETS

    kinds = []
    for kind in TARGETS:
        settings = TARGETS.load(kind).TARGET
        found = settings.model_json_schema()
        found["properties"] = {"kind": {"const": kind}} | found["properties"]
        found["required"] = ["kind", *found.get("required", [])]
        kinds.append(found)
    return {"title": "Targets", "type": "object", "additionalProperties": {"oneOf": kinds}}
