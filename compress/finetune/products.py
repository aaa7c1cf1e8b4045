"""Products with a frozen weight, as one step of the graph: what the backward pass needs is x, and the weight is expanded again."""

from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

if TYPE_CHECKING:
    from compress.finetune.lora import LoRALayer


class Expands(Protocol):
    """A layer whose weight is there for the moment only."""

    bias: torch.Tensor | None

    def expanded(self, dtype: torch.dtype, again: bool = False) -> torch.Tensor: ...


def product(x: torch.Tensor, layer: "nn.Linear | Expands", lora: "LoRALayer | None" = None) -> torch.Tensor:
    """x [..., inputs] -> x W^T + bias, plus scale * x A^T B^T, [..., outputs], in autocast's dtype where that is on. No gradient reaches W."""
    kind = x.device.type
    x = x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x
    A, B, scale = (lora.A, lora.B, lora.scale) if lora else (None, None, 0.0)
    return Product.apply(x, layer, layer.bias, A, B, scale)


def weight(layer: "nn.Linear | Expands", dtype: torch.dtype, again: bool = False) -> torch.Tensor:
    return layer.weight.to(dtype) if isinstance(layer, nn.Linear) else layer.expanded(dtype, again)


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: "nn.Linear | Expands", bias: Any, A: Any, B: Any, scale: float) -> torch.Tensor:
        rows, matrix = x.reshape(-1, x.shape[-1]), weight(layer, x.dtype).t()
        y = rows @ matrix if bias is None else torch.addmm(bias.to(x.dtype), rows, matrix)
        ctx.layer, ctx.scale, ctx.shape = layer, scale, x.shape
        if A is not None:
            narrow = rows @ A.to(x.dtype).t()
            y.addmm_(narrow, B.to(x.dtype).t(), alpha=scale)
            ctx.save_for_backward(rows, narrow, A, B)
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        saved, rows = ctx.saved_tensors, gradient.reshape(-1, gradient.shape[-1])  # looked at once: recomputed activations allow no more
        to_x = rows @ weight(ctx.layer, rows.dtype, again=True) if ctx.needs_input_grad[0] else None
        to_bias = rows.sum(0) if ctx.needs_input_grad[2] else None
        if not saved:
            return None if to_x is None else to_x.view(ctx.shape), None, to_bias, None, None, None
        x, narrow, A, B = saved
        to_narrow = (rows @ B.to(rows.dtype)).mul_(ctx.scale)
        if to_x is not None:
            to_x = to_x.addmm_(to_narrow, A.to(rows.dtype)).view(ctx.shape)
        to_A, to_B = to_narrow.t() @ x, (narrow.t() @ rows).mul_(ctx.scale).t()
        return to_x, None, to_bias, to_A.to(A.dtype), to_B.to(B.dtype), None
