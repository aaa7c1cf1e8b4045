"""The project's own adapters beside LoRA: DoRA, IA3 and bottlenecks."""

import math

import torch
from torch import nn
from torch.nn import functional

from compress.errors import InputError
from compress.finetune.lora import LoRALayer, frozen_copy


class LinearWithDoRA(nn.Module):
    """magnitude * (W + scale B A) / (its rows' norms) x + bias; norms are constants to the gradient (Liu et al. 2024, section 4.3).

    magnitude  [outputs], the norms of the rows at the start
    """

    def __init__(self, linear: nn.Module, lora: LoRALayer):
        super().__init__()
        self.linear, self.lora = frozen_copy(linear), lora
        self.magnitude = nn.Parameter(self.norms())

    @torch.no_grad()
    def norms(self) -> torch.Tensor:
        return torch.linalg.norm(self.linear.weight + self.lora.delta(), dim=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        plain, scale = self.linear(x), (self.magnitude / self.norms()).to(x.dtype)
        product = plain if self.linear.bias is None else plain - self.linear.bias
        return plain + (scale - 1) * product + scale * self.lora(x)  # exactly `plain` where scale is 1 and B is 0

    @property
    def weight(self) -> torch.Tensor:
        """What the layer computes with."""
        return (self.magnitude / self.norms())[:, None] * (self.linear.weight + self.lora.delta())

    @property
    def bias(self) -> torch.Tensor | None:
        return self.linear.bias


class LinearWithIA3(nn.Module):
    """(W x + bias) * scales, which start at 1 (Liu et al. 2022).

    ia3_l  [outputs, 1], named and shaped as in PEFT's files
    """

    def __init__(self, linear: nn.Module):
        super().__init__()
        self.linear = frozen_copy(linear)
        self.ia3_l = nn.Parameter(torch.ones(linear.out_features, 1, device=linear.weight.device))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) * self.ia3_l.flatten().to(x.dtype)

    @property
    def weight(self) -> torch.Tensor:
        """What the layer computes with."""
        return self.linear.weight * self.ia3_l

    @property
    def bias(self) -> torch.Tensor | None:
        return None if self.linear.bias is None else self.linear.bias * self.ia3_l.flatten()


class BottleneckLayer(nn.Module):
    """x [..., width] -> x + up(gelu(down(x))), `up` zero at the start (Houlsby et al. 2019)."""

    def __init__(self, width: int, size: int, generator: torch.Generator):
        super().__init__()
        self.down, self.up = nn.Linear(width, size), nn.Linear(size, width)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5), generator=generator)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.up(functional.gelu(self.down(x.to(self.up.weight.dtype)))).to(x.dtype)


def attach_bottleneck(model: nn.Module, name: str, size: int, generator: torch.Generator) -> None:
    """Sends the output of a module, which stays in its place, through a bottleneck. InputError where its width is not known or it is never called."""
    module, parent = model.get_submodule(name), model.get_submodule(name.rpartition(".")[0])
    if isinstance(parent, nn.MultiheadAttention):
        raise InputError(f"after: nn.MultiheadAttention reads the weight of {name} and never calls it; name another module")
    width = getattr(module, "out_features", None) or getattr(module, "embedding_dim", None) or (getattr(module, "normalized_shape", None) or [None])[-1]
    if width is None:
        raise InputError(f"after: the width of what {name}, a {type(module).__name__}, returns is not known: name a linear layer, embedding or LayerNorm")
    module.add_module("bottleneck", BottleneckLayer(width, size, generator).to(next(model.parameters()).device))
    module.register_forward_hook(through_bottleneck)


def through_bottleneck(module: nn.Module, given: tuple, result: torch.Tensor) -> torch.Tensor:
    return module.bottleneck(result)
