"""The step that sets the least salient weights to zero, or takes whole channels out."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from compress.network import Weight
from compress.sparsity import Blocks, Channels, NofM, Saliency, Schedule, Unstructured
from compress.steps.selector import Selector
from compress.training import Budget, Remask

if TYPE_CHECKING:
    from compress.steps import Step
    from compress.work import Work


class Prune(BaseModel):
    """Selected weights become sparse: `sparsity` is the share of zeros (n:m says it itself), `pattern` where they lie, `saliency` what ranks weights.

    train     recovers accuracy afterwards, or while the sparsity grows where there is a `schedule`
    schedule  how the sparsity grows during the training; null: all at once before it
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    step: Literal["prune"] = "prune"
    select: Selector = Selector()
    sparsity: float | None = Field(None, gt=0, lt=1)
    pattern: Annotated[Unstructured | NofM | Blocks | Channels, Field(discriminator="type")] = Unstructured()
    saliency: Saliency = "magnitude"
    schedule: Schedule | None = None
    train: Budget | None = None

    @model_validator(mode="after")
    def consistent(self) -> "Prune":
        counted = isinstance(self.pattern, NofM)
        if counted == (self.sparsity is not None):
            raise ValueError("sparsity: n:m patterns say it themselves, leave it out" if counted else f"sparsity: {self.pattern} needs a share of zeros")
        if self.schedule and (not self.train or isinstance(self.pattern, Channels) or self.saliency != "magnitude"):
            raise ValueError("schedule: a sparsity that grows needs `train`, saliency magnitude, and a pattern of zeros")
        if isinstance(self.pattern, Channels) and self.saliency != "magnitude":
            raise ValueError("saliency: channels are ranked by magnitude (the norm of their weights)")
        if self.schedule and isinstance(self.pattern, NofM) and self.schedule.type != "constant":
            raise ValueError(f"schedule: {self.pattern} holds or it does not: type constant")
        if self.saliency != "magnitude" and isinstance(self.pattern, Unstructured) and self.pattern.scope == "global":
            raise ValueError(f"saliency: {self.saliency} compares weights within a layer only; scope global needs magnitude")
        if self.saliency == "sparsegpt" and isinstance(self.pattern, Blocks):
            raise ValueError("saliency: sparsegpt knows unstructured and n:m patterns, not blocks")
        return self

    @property
    def share(self) -> float:
        return self.pattern.sparsity if isinstance(self.pattern, NofM) else self.sparsity

    @property
    def needs_moments(self) -> bool:
        """Whether the saliency looks at the layers' inputs."""
        return self.saliency != "magnitude"

    @property
    def kind(self) -> str:
        return "channels" if isinstance(self.pattern, Channels) else "prune"

    def unfit(self, weight: Weight) -> str | None:
        """Why this tensor cannot take the pattern, or None."""
        per_channel = weight.value[0].size
        if isinstance(self.pattern, NofM) and per_channel < self.pattern.m:
            return f"{per_channel} weights per output channel are fewer than the {self.pattern.m} of {self.pattern}"
        if self.needs_moments and weight.kind not in ("linear", "conv1d", "conv2d", "conv3d"):
            return f"{self.saliency} needs the inputs of a linear layer or a convolution, this is a {weight.kind}"
        return None

    def clash(self, earlier: "list[Step]") -> str | None:
        """Why pruning would undo earlier steps, or None."""
        for step in earlier:
            if self.kind == "channels":
                return "channels are taken out of the model as it is: put this step first"
            if step.step == "cluster":
                return f"zeros would be one more value than the {step.clusters} clusters: prune first, then cluster"
            if step.step == "quantize":
                return "a quantized weight has its codes: prune first, then quantize"
        return None

    def apply(self, work: "Work", index: int) -> "Work":
        """The network with its zeros, trained where the step has a budget."""
        names = work.taken(index)
        if isinstance(self.pattern, Channels):
            work = work.without_channels(names, self.sparsity, self.pattern.multiple)
            return work.learned(index, self.train) if self.train else work
        values = work.values(names)
        if self.schedule:
            work = work.with_masks(self.masks(values, {}, self.share * self.schedule.at(0)))
            work = work.learned(index, self.train, remask=self.growing(frozenset(names)))
            return work.with_masks({name: value != 0 for name, value in work.values(names).items()})
        moments = work.moments(names) if self.needs_moments else {}
        if self.saliency == "sparsegpt":
            from compress.numerics.pruning import sparsegpt

            found = {name: sparsegpt(value, moments[name], self.pattern, self.share) for name, value in values.items()}
            work = work.with_values({name: value for name, (value, _) in found.items()}).with_masks({name: mask for name, (_, mask) in found.items()})
        else:
            masks = self.masks(values, moments, self.share)
            work = work.with_values({name: value * masks[name] for name, value in values.items()}).with_masks(masks)
        return work.learned(index, self.train) if self.train else work

    def masks(self, values: Mapping[str, np.ndarray], moments: Mapping[str, np.ndarray], share: float) -> dict[str, np.ndarray]:
        """bool by tensor name, True where a weight is kept."""
        from compress.numerics.pruning import global_masks, mask, saliency

        if share == 0:
            return {name: np.ones(value.shape, bool) for name, value in values.items()}
        scores = {name: saliency(value, self.saliency, moments.get(name)) for name, value in values.items()}
        if isinstance(self.pattern, Unstructured) and self.pattern.scope == "global":
            return global_masks(scores, share)
        return {name: mask(score, self.pattern, share) for name, score in scores.items()}

    def growing(self, names: frozenset[str]) -> Remask:
        """Masks of these tensors at a share of the training; those of the schedule's end stay."""
        final: dict[str, np.ndarray] = {}

        def remask(share: float, values: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
            reached = self.schedule.at(share)
            if final:
                return final
            masks = self.masks({name: value for name, value in values.items() if name in names}, {}, self.share * reached)
            if reached == 1:
                final.update(masks)
            return masks

        return remask

    def holds(self, value: np.ndarray, mask: np.ndarray | None) -> Iterator[tuple[str, str, str | None]]:
        """(claim, what was measured, why it does not hold or None) for a tensor after this step."""
        from compress.numerics.pruning import holds

        if isinstance(self.pattern, Channels):
            return
        zeros = float((value == 0).mean())
        if mask is not None:
            revived = int((value[~mask] != 0).sum())
            yield "pruned weights are 0", f"{zeros:.1%} zeros", f"{revived} pruned weights are not 0" if revived else None
        if not (isinstance(self.pattern, Unstructured) and self.pattern.scope == "global"):
            yield str(self), f"{zeros:.1%} zeros", holds(value, self.pattern, self.share)

    def __str__(self) -> str:
        return f"{self.share:.0%} {self.pattern}"
