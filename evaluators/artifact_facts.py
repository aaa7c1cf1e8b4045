"""Artifacts between processes and runs: written in one, described as JSON in study.sqlite, loaded in others."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from compress.artifact import Artifact, Contents, Ledger, StoredTensor
from compress.network import InputSpec


def to_facts(artifact: Artifact, name: str) -> dict[str, Any]:
    """JSON of an artifact, without arrays and without the folder that it lies in."""
    plain = asdict(replace(artifact.without_codes(), path=Path(name)))
    for tensor in plain["contents"]["tensors"]:
        for arrays in ("codes", "scales", "zero_points", "values"):
            del tensor[arrays]
    return plain | {"path": name}


def from_facts(facts: dict[str, Any], folder: Path) -> Artifact:
    """The artifact again, in `folder`."""
    given = facts["contents"]
    specs = {side: tuple(InputSpec(**(s | {"shape": tuple(s["shape"])})) for s in given[side]) for side in ("inputs", "outputs")}
    tensors = tuple(StoredTensor(**(t | {"shape": tuple(t["shape"])})) for t in given["tensors"])
    contents = Contents(**(given | specs | {"tensors": tensors}))
    rest = {"path": folder / facts["path"], "contents": contents, "ledger": Ledger(**facts["ledger"]), "notes": tuple(facts["notes"])}
    return Artifact(**(facts | rest))
