"""Linear layers whose frozen weight is stored in a format of the core."""

import torch
from torch import nn
from torch.nn import functional

from compress.backends.torch_numerics import TorchEncoded, encode
from compress.formats import Format


class QuantizedLinear(nn.Module):
    """x W^T + bias, W [out_features, in_features] stored as codes and expanded in each pass; gradients reach x only."""

    def __init__(self, encoded: TorchEncoded, bias: nn.Parameter | None):
        super().__init__()
        self.encoded, self.bias = encoded, bias
        self.out_features, self.in_features = encoded.shape

    @classmethod
    def of(cls, linear: nn.Linear, fmt: Format) -> "QuantizedLinear":
        return cls(encode(linear.weight, fmt), linear.bias)

    @property
    def weight(self) -> torch.Tensor:
        return self.encoded.decode()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return Product.apply(x, self, self.bias)


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, layer, bias):
        ctx.layer = layer
        return functional.linear(x, layer.weight.to(x.dtype), bias)

    @staticmethod
    def backward(ctx, gradient):
        return gradient @ ctx.layer.weight.to(gradient.dtype), None, None
