"""An arm's session inside a measuring process."""

import os
from pathlib import Path
from typing import Any

from compress.artifact import Artifact
from evaluators.artifact_facts import from_facts
from evaluators.runtimes import DEVICE, RUNTIMES, Session


def load(facts: dict[str, Any], folder: str, runtime: str, threads: int) -> tuple[Artifact, Session]:
    """On the CPU, or on the device that this process's target names."""
    artifact, module, device = from_facts(facts, Path(folder)), RUNTIMES.load(runtime), os.environ.get(DEVICE)
    return artifact, module.load_on(artifact, threads, device) if device else module.load(artifact, threads)
