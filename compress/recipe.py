"""The recipe: a frozen, named, ordered list of steps. YAML in, YAML out, content hash as its id."""

import hashlib
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from compress.errors import RecipeError
from compress.network import COMPRESSIBLE, Weight
from compress.registry import suggest
from compress.steps import Step

BUILT_IN = files("compress") / "recipes"
KINDS = ("prune", "cluster", "quantize")


class Recipe(BaseModel):
    """What happens to a model. The first step whose selector matches a tensor takes it.

    allow_float  a selected tensor that cannot be compressed stays in float and is named; otherwise that is an error
    interface    type of the float inputs and outputs of the file; int8 and uint8 are the codes of the activations there
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    about: str = ""
    allow_float: bool = False
    interface: Literal["float32", "float16", "int8", "uint8"] = "float32"
    steps: tuple[Step, ...] = ()

    @field_validator("name")
    @classmethod
    def plain(cls, value: str) -> str:
        return one_word(value, "a recipe's name")

    @property
    def id(self) -> str:
        """12 hex digits of the SHA-256 of what the recipe does; its name and description do not count."""
        content = self.model_dump(mode="json", exclude={"name", "about", *(("interface",) if self.interface == "float32" else ())})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def trains(self) -> bool:
        return any(step.train for step in self.steps)

    @classmethod
    def load(cls, recipe: "str | Path | Recipe") -> "Recipe":
        """A recipe from a built-in name, a YAML file, or itself. RecipeError names the field that is wrong."""
        if isinstance(recipe, Recipe):
            return recipe
        path = Path(recipe)
        if path.suffix in (".yaml", ".yml"):
            try:
                text = path.read_text(encoding="utf-8")
            except OSError as error:
                raise RecipeError(f"recipe {str(recipe)!r} cannot be read: {error.strerror}") from error
            return cls.parse(text, str(recipe))
        if str(recipe) not in built_in():
            raise RecipeError(f"no recipe {str(recipe)!r}: {suggest(str(recipe), built_in())}built-in: {', '.join(built_in())}; a file's name ends in .yaml")
        return cls.parse((BUILT_IN / f"{recipe}.yaml").read_text(encoding="utf-8"), str(recipe))

    @classmethod
    def parse(cls, text: str, source: str = "recipe") -> "Recipe":
        """A recipe from YAML text."""
        return parse_document(cls, text, source)

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json", exclude_none=True), sort_keys=False)

    def check_selectors(self, weights: Mapping[str, Weight]) -> None:
        """RecipeError where a name or regex matches no tensor, or the whole recipe matches none."""
        layers = [w for w in weights.values() if w.kind in COMPRESSIBLE]
        hits = [any(step.select.matches(w.name, w.kind, w.tied) for w in layers) for step in self.steps]
        for index, (step, hit) in enumerate(zip(self.steps, hits, strict=True)):
            if step.select.by_name and not hit:
                wanted = step.select.name or step.select.regex
                close = suggest(str(wanted), [w.name for w in layers])
                some = ", ".join(w.name for w in layers[:4])
                raise RecipeError(f"recipe {self.name!r}, steps.{index}.select: {wanted!r} matches no tensor; {close}the model has {some}, ...")
        if self.steps and not any(hits):
            kinds = ", ".join(sorted({w.kind for w in layers})) or "none. A file that is quantized already stays as it is: measure it with recipe float32"
            raise RecipeError(f"recipe {self.name!r} selects no tensor of this model; its layer kinds: {kinds}")


FIRST = ("float32", "float16", "int8-weight-only", "int8-dynamic", "int8-static", "int16x8", "int4-group32", "int4-signed-group32", "nf4", "nf4-double")
TRAINED = (
    *("prune50", "prune80", "prune-2of4", "prune-channels30", "cluster16", "prune50-int8", "prune80-cluster16-int8"),
    *("qat-int8", "qat-int4", "pqat", "cqat", "pcqat"),
)


def built_in() -> tuple[str, ...]:
    """Names of the built-in recipes, from least to most compressed; those that train come last."""
    found = {entry.name.removesuffix(".yaml") for entry in BUILT_IN.iterdir() if entry.name.endswith(".yaml")}
    return (*FIRST, *sorted(found - {*FIRST, *TRAINED}), *TRAINED)


def one_word(name: str, noun: str) -> str:
    """The name, which becomes part of file names. ValueError for one that cannot."""
    if not name or any(c in name for c in "/\\ \n"):
        raise ValueError(f"{name!r}: {noun} is one word without spaces or slashes")
    return name


def parse_document(kind: type[BaseModel], text: str, source: str):
    """A pydantic document from YAML text; RecipeError lists every wrong field with its path."""
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{source} is not YAML: {error}") from error
    if not isinstance(data, dict):
        raise RecipeError(f"{source} holds {type(data).__name__}, expected fields such as `name:`")
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise RecipeError(f"{source} is not a valid {kind.__name__.lower()}:\n" + "\n".join(field_errors(error))) from error


def field_errors(error: ValidationError) -> list[str]:
    return [f"  {'.'.join(place(e['loc'])) or 'document'}: {e['msg']}{given(e)}" for e in error.errors()]


def place(path: tuple) -> list[str]:
    """A field's path as it stands in YAML: pydantic puts the kind of a step between its index and its fields."""
    return [str(key) for before, key in zip((None, *path), path, strict=False) if not isinstance(before, int) or key not in KINDS]


def given(error: dict) -> str:
    return f" (given {error['input']!r})" if error["type"] != "missing" and not isinstance(error["input"], dict | list) else ""
