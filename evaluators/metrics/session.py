"""An arm's session inside a measuring process."""

from pathlib import Path
from typing import Any

from compress.artifact import Artifact
from evaluators.artifact_facts import from_facts
from evaluators.runtimes import RUNTIMES, Session


def load(facts: dict[str, Any], folder: str, runtime: str, threads: int) -> tuple[Artifact, Session]:
    artifact = from_facts(facts, Path(folder))
    return artifact, RUNTIMES.load(runtime).load(artifact, threads)
