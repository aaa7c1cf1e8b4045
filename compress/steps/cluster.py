"""The step that lets weights share a few values."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from compress.formats import CodebookFormat, Learned, PerAxis, PerTensor
from compress.network import Weight
from compress.steps.selector import Selector
from compress.training import Budget

if TYPE_CHECKING:
    from compress.steps import Step
    from compress.work import Work


class Dkm(BaseModel):
    """Differentiable k-means (DKM: Cho et al. 2022): while the step trains, every weight is a mean of the centroids near to it, and may go over to another.

    temperature  how far a weight looks, in units of the mean squared distance to the nearest centroid: towards 0 assignments stay as they are

    Training takes memory for some ten times `clusters` numbers for every weight.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    temperature: float = Field(1.0, gt=0)


class Cluster(BaseModel):
    """Selected weights take at most `clusters` different values, in each tensor or output channel; zero is one of them where the weight was pruned.

    initialization  optimal (one-dimensional k-means, exact), or linear, density, kmeans++ as in tensorflow-model-optimization
    train           centroids learn: all weights of a cluster together
    dkm             weights learn instead, and choose their clusters anew; null: members of clusters stay. PyTorch models only
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    step: Literal["cluster"] = "cluster"
    select: Selector = Selector()
    clusters: int = Field(ge=2, le=256)
    per: Literal["tensor", "axis"] = "tensor"
    initialization: Literal["optimal", "linear", "density", "kmeans++"] = "optimal"
    train: Budget | None = None
    dkm: Dkm | None = None

    @model_validator(mode="after")
    def trained(self) -> "Cluster":
        if self.dkm and not self.train:
            raise ValueError("dkm: differentiable k-means trains: give `train`")
        return self

    def format(self, zero: bool) -> CodebookFormat:
        """How clustered weights are stored where no later step says it: codes and a codebook."""
        return CodebookFormat(Learned(self.clusters, exact_zero=zero), PerTensor() if self.per == "tensor" else PerAxis(), "none")

    @property
    def kind(self) -> str:
        return self.step

    def apply(self, work: "Work", index: int) -> "Work":
        """The network whose weights share values, trained where the step has a budget."""
        from compress.numerics.clustering import cluster, codes_of, values_of

        names, values, codes = work.taken(index), {}, {}
        for name, value in work.values(names).items():
            codes[name], centroids = cluster(value, self.clusters, self.per, self.initialization, work.masks.get(name))
            values[name] = values_of(codes[name], centroids)
        work = work.with_codes(codes)
        if not self.dkm:
            work = work.with_values(values)
            return work.learned(index, self.train) if self.train else work
        work = work.learned(index, self.train)
        return work.with_codes({name: codes_of(value, self.per, work.masks.get(name)) for name, value in work.values(names).items()})

    def holds(self, value: np.ndarray, mask: np.ndarray | None) -> Iterator[tuple[str, str, str | None]]:
        """(claim, what was measured, why it does not hold or None) for a tensor after this step."""
        from compress.numerics.clustering import distinct

        found = distinct(value, self.per)
        yield f"at most {self}", f"{found} values", f"{found} different values" if found > self.clusters else None

    def unfit(self, weight: Weight) -> str | None:
        """Every tensor can be clustered."""
        return None

    def untrainable(self, framework: str) -> str | None:
        """Why a framework cannot train this, or None."""
        other = self.dkm and framework != "pytorch"
        return f"dkm trains PyTorch models, not {framework} ones: without it, centroids learn by the gradients of their weights" if other else None

    def clash(self, earlier: "list[Step]") -> str | None:
        """Why clustering would undo earlier steps, or None."""
        quantized = any(step.step == "quantize" for step in earlier)
        return "a quantized weight has its codes: cluster first, then quantize" if quantized else None

    def __str__(self) -> str:
        return f"{self.clusters} clusters per {'tensor' if self.per == 'tensor' else 'channel'}"
