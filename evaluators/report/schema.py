"""The JSON Schema of results.json, from the rows that it is made of."""

from typing import Any, get_args

from pydantic import TypeAdapter

from evaluators.report.reading import Loss
from evaluators.report.rows import SCHEMA_VERSION, SIZE_UNITS
from evaluators.results import Results

ADDED = {
    "Arm": {
        "placement_bytes": {"type": "object", "additionalProperties": {"type": "integer"}, "description": "Bytes of weights by placement."},
        "simulated": {"type": "boolean", "description": "Whether some weights are float values on a grid, so that size and speed are float32's."},
        "loss": {"enum": list(get_args(Loss)), "description": "Whether it answers worse than float32 of the same runtime."},
    },
    "Memory": {"model_bytes": {"type": "integer", "description": "peak_bytes - baseline_bytes"}},
}
"""What `rows.to_json` writes beside the fields of the rows."""


def results_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of results.json: units in the names, null for a number that is not finite."""
    found = nullable(TypeAdapter(Results).json_schema(mode="serialization"))
    for name, fields in ADDED.items():
        found["$defs"][name]["properties"] |= fields
        found["$defs"][name]["required"] += list(fields)
    size = found["$defs"]["Size"]
    size["properties"] = {SIZE_UNITS.get(name, name): field for name, field in size["properties"].items()}
    size["required"] = [SIZE_UNITS.get(name, name) for name in size["required"]]
    found["properties"] = {"schema_version": {"const": SCHEMA_VERSION}} | found["properties"]
    found["required"].insert(0, "schema_version")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | found


def nullable(schema: Any) -> Any:
    """The schema with every number allowed to be null, as `rows.finite` writes what is infinite or NaN."""
    if isinstance(schema, dict):
        return {key: ["number", "null"] if (key, value) == ("type", "number") else nullable(value) for key, value in schema.items()}
    return [nullable(value) for value in schema] if isinstance(schema, list) else schema
