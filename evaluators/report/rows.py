"""The machine-readable forms: results.json (everything) and results.csv (one flat row an arm)."""

import csv
import io
import json
from dataclasses import asdict, fields
from math import isfinite
from typing import Any

from evaluators.report.counts import CLASSES
from evaluators.report.reading import is_simulated, loss
from evaluators.results import Arm, Estimate, Gpu, Results

SCHEMA_VERSION = 2  # since scores of other tasks than classification
SIZE_UNITS = {"payload": "payload_bytes", "scales": "scales_bytes", "zero_points": "zero_points_bytes", "graph": "graph_bytes"}


def to_json(results: Results) -> str:
    """results.json: every statistic and the raw block medians. Numbers that are not finite become null."""
    document = {"schema_version": SCHEMA_VERSION, **asdict(results), "arms": [arm_document(arm) for arm in results.arms]}
    return json.dumps(finite(document), indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def arm_document(arm: Arm) -> dict[str, Any]:
    document = asdict(arm)
    if arm.size:
        document["size"] = {SIZE_UNITS.get(name, name): value for name, value in document["size"].items()}
    if arm.memory:
        document["memory"]["model_bytes"] = arm.memory.model_bytes
    document["seconds"] = dict(arm.seconds)
    return document | {"placement_bytes": arm.placements, "simulated": is_simulated(arm), "loss": loss(arm)}


def finite(value: Any) -> Any:
    if isinstance(value, float) and not isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): finite(inner) for key, inner in value.items()}
    return [finite(inner) for inner in value] if isinstance(value, list | tuple) else value


def flat(arm: Arm) -> dict[str, Any]:
    """One arm as one row, units in the names, None where there is no number. The table of report.html sorts by these."""
    head = {name: getattr(arm, name) for name in ("id", "model", "recipe", "recipe_id", "exporter", "runtime", "target", "status", "cause")}
    placed = {f"{name}_weights_bytes": arm.placements.get(name, 0) if arm.tensors else None for name in ("native", "decoded", "simulated", "float")}
    spent = {f"{name}_seconds": arm.seconds.get(name) for name in ("export", "latency", "memory", "accuracy", "gpu", "outputs", "emulated", "android")}
    facts = {"simulated": is_simulated(arm), "loss": loss(arm), "artifact": arm.artifact, "sha256": arm.sha256}
    return head | size_row(arm) | latency_row(arm) | instructions_row(arm) | memory_row(arm) | gpu_row(arm) | accuracy_row(arm) | placed | facts | spent


def size_row(arm: Arm) -> dict[str, Any]:
    names = ("file_bytes", "deflated_bytes", "payload", "scales", "zero_points", "float_bytes", "graph")
    row = {SIZE_UNITS.get(name, name): getattr(arm.size, name, None) for name in names}
    return row | {"size_ratio": getattr(arm.size, "ratio", None)}


def latency_row(arm: Arm) -> dict[str, Any]:
    read = arm.latency
    plain = {name: getattr(read, name, None) for name in ("load_ms", "first_ms", "warmup_runs", "threads", "verdict")}
    return {
        **spread("latency_median", getattr(read, "median_ms", None), "_ms"),
        **spread("speedup", getattr(read, "speedup", None)),
        **spread("noise", getattr(read, "noise", None)),
        **plain,
        "timed_runs": getattr(read, "count", None),
    }


def instructions_row(arm: Arm) -> dict[str, Any]:
    names = ("total", *CLASSES, "spread", "fewer", "kernels")
    counted = {f"instructions_{name}": getattr(arm.instructions, name, None) for name in names}
    seen = {f"agreement_{name}": getattr(arm.agreement, name, None) for name in ("samples", "elements", "max_error", "bit_equal")}
    fitted = {f"estimated_{name}": getattr(arm.estimated, name, None) for name in ("ms", "error_ms", "device")}
    return counted | seen | fitted | {"untimed": arm.untimed}


def memory_row(arm: Arm) -> dict[str, Any]:
    return {f"memory_{name}": getattr(arm.memory, name, None) for name in ("peak_bytes", "baseline_bytes", "model_bytes")}


def gpu_row(arm: Arm) -> dict[str, Any]:
    return {f"gpu_{field.name}": getattr(arm.gpu, field.name, None) for field in fields(Gpu)}


def accuracy_row(arm: Arm) -> dict[str, Any]:
    read = arm.accuracy
    plain = {name: getattr(read, name, None) for name in ("before", "p", "test", "holm_p", "correct", "worse", "better", "flipped", "smallest", "worst")}
    about = {f"accuracy_{name}": getattr(read.metric, name) if read else None for name in ("title", "unit", "higher_is_better")}
    return {
        **about,
        **spread("accuracy", getattr(read, "value", None)),
        **spread("accuracy_difference", getattr(read, "difference", None)),
        **plain,
        "samples": getattr(read, "count", None),
    }


def spread(name: str, estimate: Estimate | None, unit: str = "") -> dict[str, float | None]:
    parts = {"": "value", "_low": "low", "_high": "high"}
    return {f"{name}{end}{unit}": getattr(estimate, part, None) for end, part in parts.items()}


def to_csv(results: Results) -> str:
    """results.csv: one row an arm, failed and refused ones too, empty where there is no number."""
    rows = [finite(flat(arm)) for arm in results.arms]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else ["id"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
