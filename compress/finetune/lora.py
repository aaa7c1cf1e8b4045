"""LoRA by hand: two small matrices beside a linear layer that stays as it is."""

import copy
import math

import torch
from torch import nn
from torch.nn import functional

from compress.errors import InputError
from compress.finetune.products import product


class LoRALayer(nn.Module):
    """x [..., inputs] -> scale * x A^T B^T [..., outputs], with scale = alpha / rank (Hu et al. 2021).

    A  [rank, inputs], drawn as nn.Linear draws its weights
    B  [outputs, rank], zero: an adapter that has not learned changes nothing
    """

    def __init__(self, inputs: int, outputs: int, rank: int, alpha: float, dropout: float = 0.0, device: torch.device | None = None):
        super().__init__()
        check_rank(rank, inputs, outputs)
        self.A = nn.Parameter(torch.empty(rank, inputs, device=device))
        self.B = nn.Parameter(torch.zeros(outputs, rank, device=device))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        self.scale = alpha / rank
        self.dropout = dropout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.dropout(x, self.dropout, self.training)
        return functional.linear(functional.linear(x, self.A.to(x.dtype)), self.B.to(x.dtype) * self.scale)

    def delta(self) -> torch.Tensor:
        """What it adds to the weight, float32 [outputs, inputs]."""
        return self.scale * (self.B @ self.A)


def check_rank(rank: int, inputs: int, outputs: int) -> None:
    if not 0 < rank <= min(inputs, outputs):
        raise InputError(f"rank {rank} does not fit a layer of {inputs} inputs and {outputs} outputs: its weight has at most rank {min(inputs, outputs)}")


class LinearWithLoRA(nn.Module):
    """A copy of a linear layer, frozen, plus a LoRALayer. The copy shares the weight, which nothing here changes before `merge`."""

    def __init__(self, linear: nn.Module, rank: int, alpha: float, dropout: float = 0.0):
        super().__init__()
        self.linear = frozen_copy(linear)
        self.lora = LoRALayer(linear.in_features, linear.out_features, rank, alpha, dropout, linear.weight.device)
        self.merged = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.merged:
            return self.linear(x)
        if self.training and self.lora.dropout:
            return self.linear(x) + self.lora(x)
        return product(x, self.linear, self.lora)

    @property
    def weight(self) -> torch.Tensor:
        """What the layer computes with: code that reads it (nn.MultiheadAttention does) is adapted too, but without dropout."""
        return self.linear.weight if self.merged else self.linear.weight + self.lora.delta().to(self.linear.weight.dtype)

    @property
    def bias(self) -> torch.Tensor | None:
        return self.linear.bias

    def merge(self) -> None:
        """Adds B A to the weight, after which the layer costs what the linear layer alone costs. InputError for a weight that is stored in another format."""
        if not self.merged:
            self.linear.weight = nn.Parameter(self.changed(self.lora.delta()), requires_grad=False)
            self.merged = True

    def unmerge(self) -> None:
        """Takes B A off the weight again; what is left differs from before by float rounding."""
        if self.merged:
            self.linear.weight = nn.Parameter(self.changed(-self.lora.delta()), requires_grad=False)
            self.merged = False

    def changed(self, delta: torch.Tensor) -> torch.Tensor:
        if not isinstance(self.linear, nn.Linear):
            raise InputError("the weight is stored as codes, and adding to it would round the adapter away: merge into the decoded or the original base")
        return (self.linear.weight + delta).to(self.linear.weight.dtype)


def frozen_copy(module: nn.Module) -> nn.Module:
    """A copy whose parameters, and codes, share the storage of the module's own and do not learn."""
    codes = {id(b): b for b in module.buffers()}
    return copy.deepcopy(module, codes | {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in module.parameters()})
