"""Size: the bytes of the file and where they go, as its exporter read them back."""

from collections.abc import Mapping, Sequence
from typing import Any

from evaluators.results import Size, TensorRow


def derive(facts: dict[str, Any], float32_bytes: int | None) -> Size:
    """`float32_bytes` is the float32 file of the same runtime, None where there is none."""
    ledger = facts["artifact"]["ledger"]
    return Size(**ledger, deflated_bytes=facts["deflated_bytes"], ratio=float32_bytes / ledger["file_bytes"] if float32_bytes else None)


def tensor_rows(facts: dict[str, Any], computed: Mapping[str, Sequence[str]]) -> tuple[TensorRow, ...]:
    """`computed` holds placement and reason of tensors that the arm's device computes otherwise than the file says."""
    planned = facts["planned"]
    return tuple(
        TensorRow(
            t["name"],
            tuple(t["shape"]),
            t["dtype"],
            *computed.get(t["name"], (t["placement"], t["reason"])),
            t["payload_bytes"] + t["scale_bytes"] + t["zero_point_bytes"],
            planned.get(t["name"], ""),
        )
        for t in facts["artifact"]["contents"]["tensors"]
    )
