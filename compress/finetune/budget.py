"""How long and how a fine-tuning learns, as a document."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Budget(BaseModel):
    """`epochs` over the data, or a number of optimizer `steps`, each over `batch` samples.

    accumulate     batches whose gradients one optimizer step sums up; less memory for the same step
    learning_rate  the peak, after a linear warm-up over the first `warmup` of the steps
    clip           largest norm of the gradient; null: not clipped
    precision      what is computed in: float32, or bfloat16 with float32 parameters that learn (autocast)
    optimizer      adamw, or adamw8bit (bitsandbytes; paged on a GPU): moments in 8 bits for tensors of 4,096 values or more
    recompute      activations of a block are computed again in the backward pass (gradient checkpointing); less memory, a third more work
    compile        blocks that repeat (or the whole model) go through torch.compile: a minute or more at the start, faster steps; needs a C++ compiler
    bucket         samples of about the same length share a batch, and a batch is as long as its longest
    evaluate_every steps between evaluations; null: at the end only
    patience       evaluations without a better loss after which training stops; null: never
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    epochs: float | None = Field(None, gt=0)
    steps: int | None = Field(None, gt=0)
    batch: int = Field(16, gt=0)
    accumulate: int = Field(1, gt=0)
    learning_rate: float = Field(1e-3, gt=0)
    warmup: float = Field(0.06, ge=0, lt=1)
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    weight_decay: float = Field(0.0, ge=0)
    clip: float | None = Field(1.0, gt=0)
    seed: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    recompute: bool = False
    compile: bool = False
    bucket: bool = True
    evaluate_every: int | None = Field(None, gt=0)
    patience: int | None = Field(None, gt=0)

    @model_validator(mode="after")
    def whole(self) -> "Budget":
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("budget: give epochs or steps, one of them")
        if self.batch % self.accumulate:
            raise ValueError(f"budget: a batch of {self.batch} cannot be summed up from {self.accumulate} equal parts")
        if self.patience and not self.evaluate_every:
            raise ValueError("budget: patience counts evaluations, so it needs evaluate_every")
        return self

    def total(self, samples: int) -> int:
        """Optimizer steps; a last batch that is not full is left out of each epoch."""
        return self.steps if self.steps is not None else max(1, round(self.epochs * max(1, samples // self.batch)))

    def factor(self, step: int, total: int) -> float:
        """The learning rate's, at a step of so many."""
        warm = self.warmup * total
        if step < warm:
            return (step + 1) / (warm + 1)
        done = (step - warm) / max(1, total - warm)
        return {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[self.schedule]

    def enough(self, log: Sequence[Mapping[str, Any]]) -> bool:
        """Whether the evaluations in a log no longer improve."""
        losses = [entry["evaluation loss"] for entry in log if "evaluation loss" in entry]
        return bool(self.patience and losses and len(losses) - 1 - losses.index(min(losses)) >= self.patience)
