"""Linear layers whose frozen weight is stored in a format of the core."""

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from compress.backends.torch_numerics import encode
from compress.finetune import stored
from compress.finetune.products import product
from compress.formats import Format
from compress.numerics import Encoded
from compress.numerics.ledger import TensorLedger
from compress.numerics.storing import FORMAT


class QuantizedLinear(nn.Module):
    """x W^T + bias, W [out_features, in_features] stored as codes and expanded in each pass; gradients reach x only.

    arrays  what `Encoded.save` writes, as buffers: packed codes, and scales, zero points or a codebook in the bytes that they are stored in
    """

    def __init__(self, arrays: dict[str, torch.Tensor], fmt: Format, shape: tuple[int, int], bias: nn.Parameter | None):
        super().__init__()
        self.format, (self.out_features, self.in_features) = fmt, shape
        self.arrays, self.stored = tuple(arrays), stored.Stored(",".join(arrays), FORMAT.dump_json(fmt).decode(), shape)
        for name, array in arrays.items():
            self.register_buffer(name, array)
        self.bias = bias

    @classmethod
    def of(cls, linear: nn.Linear, fmt: Format) -> "QuantizedLinear":
        """The layer's weight, encoded on the CPU by the core's loops. A weight without data (meta, FakeTensorMode) gives codes without data."""
        return cls.storing(linear.weight.detach(), linear.bias, fmt)

    @classmethod
    def storing(cls, weight: torch.Tensor, bias: nn.Parameter | None, fmt: Format) -> "QuantizedLinear":
        shape = tuple(weight.shape)
        if weight.is_meta or isinstance(weight, FakeTensor):
            return cls(stored.without_data(weight, fmt), fmt, shape, bias)
        stored.kernels_for(shape, torch.device("cpu"))  # loaded, they encode as well
        arrays = stored.tensors(encode(weight.cpu(), fmt).numpy())
        return cls({name: array.to(weight.device) for name, array in arrays.items()}, fmt, shape, bias)

    @property
    def tensors(self) -> list[torch.Tensor]:
        return [getattr(self, name) for name in self.arrays]

    @property
    def weight(self) -> torch.Tensor:
        """float32 [out_features, in_features]"""
        return self.stored.expanded(self.tensors, torch.float32)

    @property
    def encoded(self) -> Encoded:
        """The codes as the core has them."""
        return stored.encoded(dict(zip(self.arrays, self.tensors, strict=True)), self.format, (self.out_features, self.in_features))

    @property
    def ledger(self) -> TensorLedger:
        return self.encoded.ledger

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return product(x, self)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, {self.format}"
