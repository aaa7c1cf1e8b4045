"""Published schemas say what is read and written: whatever the project itself writes and ships is valid by them, and what it refuses is not."""

import json
from functools import cache
from pathlib import Path

import pytest
import yaml

pytest.importorskip("altair", reason="the report needs altair, vl-convert, jinja2 and rich")
from jsonschema import Draft202012Validator
from results_fixture import results

from compress.commands.schemas import Document, json_schema
from compress.recipe import Recipe, built_in
from evaluators.report import rows

ROOT = Path(__file__).parents[1]
EXAMPLES = [(path, yaml.safe_load(path.read_text(encoding="utf-8"))) for path in sorted(ROOT.glob("examples/*/*.yaml"))]


def closed(schema):
    """The schema with every object that names its fields closed to others."""
    if isinstance(schema, dict):
        found = {key: closed(value) for key, value in schema.items()}
        return found | ({"additionalProperties": False} if "properties" in schema and "additionalProperties" not in schema else {})
    return [closed(value) for value in schema] if isinstance(schema, list) else schema


@cache
def validator(name: str) -> Draft202012Validator:
    return Draft202012Validator(closed(json_schema(name)))


def wrong(name: str, document) -> list[str]:
    return [f"{error.json_path}: {error.message[:200]}" for error in validator(name).iter_errors(document)]


@pytest.mark.parametrize("name", Document)
def test_it_is_a_schema(name):
    Draft202012Validator.check_schema(json_schema(name))


def test_results_have_the_fields_of_their_schema_and_no_others():
    document = json.loads(rows.to_json(results()))
    assert wrong("results", document) == []
    assert wrong("results", document | {"schema_version": 0}) and wrong("results", {key: value for key, value in document.items() if key != "arms"})
    assert wrong("results", document | {"surprise": 1})


@pytest.mark.parametrize("name", built_in())
def test_built_in_recipes(name):
    assert wrong("recipe", yaml.safe_load((ROOT / f"compress/recipes/{name}.yaml").read_text(encoding="utf-8"))) == []
    assert wrong("recipe", yaml.safe_load(Recipe.load(name).to_yaml())) == []


@pytest.mark.parametrize(("path", "document"), EXAMPLES, ids=[str(path.relative_to(ROOT)) for path, _ in EXAMPLES])
def test_examples(path, document):
    kind = "finetune" if "runs" in document else "study" if "models" in document else "recipe"
    assert wrong(kind, document) == []


@pytest.mark.parametrize(
    ("name", "document"),
    [
        ("recipe", {"name": "a", "steps": [{"step": "quantise"}]}),
        ("recipe", {"name": "a", "steps": [{"step": "quantize", "weights": "bnb.nf5"}]}),
        ("study", {"name": "a", "models": {"m": "model.py:load"}, "recipes": ["float32"], "runtimes": ["litert"], "sample": 3}),
        ("targets", {"pi": {"kind": "ssh", "hosts": "pi"}}),
        ("targets", {"pi": {"host": "pi"}}),
    ],
)
def test_what_is_refused_is_not_valid(name, document):
    assert wrong(name, document)


def test_targets():
    document = {"four": {"kind": "cpu", "threads": 4}, "phone": {"kind": "arm64", "profile": "cortex-a76", "samples": 64}, "pi": {"kind": "ssh", "host": "pi"}}
    assert wrong("targets", document) == []
