"""Recipe steps. Adding one is a new file, a frozen pydantic document with `kind`, `unfit`, `clash`, `apply` and `holds`, and its name in `Step`."""

from typing import Annotated

from pydantic import Field

from compress.steps.cluster import Cluster
from compress.steps.prune import Prune
from compress.steps.quantize import Quantize

Step = Annotated[Prune | Cluster | Quantize, Field(discriminator="step")]

__all__ = ["Cluster", "Prune", "Quantize", "Step"]
