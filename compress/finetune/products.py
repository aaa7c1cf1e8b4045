"""Products with a frozen weight, as one step of the graph: what the backward pass needs is x, and the weight is expanded again."""

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from compress.finetune.stored import Stored

if TYPE_CHECKING:
    from compress.finetune.lora import LoRALayer
    from compress.finetune.quantized import QuantizedLinear


def product(x: torch.Tensor, layer: "nn.Linear | QuantizedLinear", lora: "LoRALayer | None" = None) -> torch.Tensor:
    """x [..., inputs] -> x W^T + bias, plus scale * x A^T B^T, [..., outputs], in autocast's dtype where that is on. No gradient reaches W."""
    kind = x.device.type
    x = x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x
    A, B, scale = (lora.A, lora.B, lora.scale) if lora else (None, None, 0.0)
    how, arrays = (None, [layer.weight]) if isinstance(layer, nn.Linear) else (layer.stored, layer.tensors)
    return Product.apply(x, layer.bias, A, B, scale, how, *arrays)


def weight(how: Stored | None, arrays: "tuple[torch.Tensor, ...]", dtype: torch.dtype, again: bool = False) -> torch.Tensor:
    return arrays[0].to(dtype) if how is None else how.expanded(arrays, dtype, again)


class Product(torch.autograd.Function):
    """Takes tensors and plain values, no layer: a compiler would make code for each layer apart.

    how  the arrays are what a format stores; None: the one array is the weight itself
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, bias: Any, A: Any, B: Any, scale: float, how: Stored | None, *arrays: torch.Tensor) -> torch.Tensor:
        rows, matrix = x.reshape(-1, x.shape[-1]), weight(how, arrays, x.dtype).t()
        y = rows @ matrix if bias is None else torch.addmm(bias.to(x.dtype), rows, matrix)
        ctx.how, ctx.scale, ctx.shape, ctx.adapted = how, scale, x.shape, A is not None
        if A is None:
            ctx.save_for_backward(*arrays)
        else:
            narrow = rows @ A.to(x.dtype).t()
            y.addmm_(narrow, B.to(x.dtype).t(), alpha=scale)
            ctx.save_for_backward(rows, narrow, A, B, *arrays)
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        saved, rows = ctx.saved_tensors, gradient.reshape(-1, gradient.shape[-1])  # looked at once: recomputed activations allow no more
        arrays = saved[4:] if ctx.adapted else saved
        to_x = rows @ weight(ctx.how, arrays, rows.dtype, again=True) if ctx.needs_input_grad[0] else None
        to_bias = rows.sum(0) if ctx.needs_input_grad[1] else None
        none = (None,) * (2 + len(arrays))
        if not ctx.adapted:
            return None if to_x is None else to_x.view(ctx.shape), to_bias, None, None, *none
        x, narrow, A, B = saved[:4]
        to_narrow = (rows @ B.to(rows.dtype)).mul_(ctx.scale)
        if to_x is not None:
            to_x = to_x.addmm_(to_narrow, A.to(rows.dtype)).view(ctx.shape)
        to_A, to_B = to_narrow.t() @ x, (narrow.t() @ rows).mul_(ctx.scale).t()
        return to_x, to_bias, to_A.to(A.dtype), to_B.to(B.dtype), *none
