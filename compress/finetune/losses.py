"""What a fine-tuning makes smaller, as sums over what counts, so that parts of a batch add up to the whole."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from compress.errors import InputError
from compress.finetune.tasks import Task

IGNORED = -100
ROWS = 32  # of logits at a time, so that what is computed on the way stays small


def outputs(result: Any) -> torch.Tensor:
    """The logits, or the first output, of what a model returned."""
    if hasattr(result, "logits"):
        return result.logits
    return result[0] if isinstance(result, tuple | list) else next(iter(result.values())) if isinstance(result, dict) else result


@dataclass(frozen=True)
class Objective:
    """A task's loss.

    classification  labels [batch]
    causal_lm       labels [batch, tokens], each predicted from the tokens before it; -100 is left out
    regression      labels like the outputs; mean squared error
    """

    task: Task

    def counted(self, labels: np.ndarray) -> int:
        """How many predictions a batch's loss is the mean of."""
        return int((labels[:, 1:] != IGNORED).sum()) if self.task == "causal_lm" else labels.size

    def total(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The sum of the losses, float32."""
        if self.task == "causal_lm":
            return NextToken.apply(logits.flatten(0, 1).float(), functional.pad(labels[:, 1:], (0, 1), value=IGNORED).flatten())
        if self.task == "classification":
            return functional.cross_entropy(logits.float(), labels, reduction="sum")
        return functional.mse_loss(logits.float().reshape(labels.shape), labels.float(), reduction="sum")

    def predictions(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Logits [predictions, classes] of those that count."""
        return logits if self.task == "classification" else logits[:, :-1][labels[:, 1:] != IGNORED]

    def scores(self, logits: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
        """Of each sample: 1 where the class is right; the mean loss of its tokens; its squared error."""
        if self.task == "classification":
            return (logits.argmax(-1) == labels).float().cpu().numpy()
        if self.task == "causal_lm":
            losses = functional.cross_entropy(logits[:, :-1].transpose(1, 2).float(), labels[:, 1:], ignore_index=IGNORED, reduction="none")
            return (losses.sum(1) / (labels[:, 1:] != IGNORED).sum(1).clamp(min=1)).cpu().numpy()
        return (logits.float().reshape(labels.shape) - labels.float()).square().flatten(1).mean(1).cpu().numpy()

    def check(self, labels: np.ndarray, logits: torch.Tensor) -> None:
        """InputError for labels that the first sample's logits cannot be compared with."""
        if self.task == "regression":
            return
        if not np.issubdtype(labels.dtype, np.integer):
            raise InputError(f"{self.task} needs class indices as labels, integers, not {labels.dtype}")
        wanted = 2 if self.task == "causal_lm" else 1
        if labels.ndim != wanted:
            raise InputError(f"{self.task} needs labels of {wanted} dimension(s), not of shape {list(labels.shape)}")
        valid = labels[labels != IGNORED] if self.task == "causal_lm" else labels
        if not valid.size or valid.min() < 0 or valid.max() >= logits.shape[-1]:
            said = f"from {valid.min()} to {valid.max()}" if valid.size else "that are all -100"
            raise InputError(f"labels {said} are not classes 0 to {logits.shape[-1] - 1} of this model")


class NextToken(torch.autograd.Function):
    """Summed cross entropy of logits [tokens, words] for targets [tokens], -100 left out. The gradient takes the place of the logits, large and spent."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(logits, targets)
        parts = zip(logits.split(ROWS), targets.split(ROWS), strict=True)
        return sum(functional.cross_entropy(part, target, ignore_index=IGNORED, reduction="sum") for part, target in parts)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        logits, targets = ctx.saved_tensors
        for part, target in zip(logits.split(ROWS), targets.split(ROWS), strict=True):
            shares = part.softmax(1).scatter_add_(1, target.clamp(min=0)[:, None], part.new_full((len(part), 1), -1.0))
            torch.mul(shares, gradient * (target != IGNORED)[:, None], out=part)
        return logits, None
