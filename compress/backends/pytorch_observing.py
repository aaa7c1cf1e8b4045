"""What the layers of a PyTorch model compute with: inputs of layers as rows of their canonical weight."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from compress.errors import InputError
from compress.samples import Data, samples

if TYPE_CHECKING:
    from compress.backends.pytorch_network import PytorchNetwork


def observe(network: "PytorchNetwork", names: Iterable[str], data: Data, see: Callable[[str, np.ndarray], None]) -> None:
    """Calls see(name, float32 rows [n, in * kernel]) with what the named weights are multiplied by, for every sample and every call of their layers.

    Rows are in the canonical weight's order, so a layer computes rows @ weight.reshape(out, -1).T. Grouped convolutions give the rows of all their groups.
    InputError for a name that the model lacks and for layers that do not multiply rows by a matrix.
    """
    hooks = []
    try:
        for name in names:
            if name not in network.names:
                raise InputError(f"the model has no tensor {name!r}")
            module, kind = network.owner(network.names[name])
            if kind not in ("linear", "conv1d", "conv2d"):
                raise InputError(f"{name}: inputs of a {kind} are not rows of a matrix product here; those of linear layers and 1d and 2d convolutions are")
            hooks.append(module.register_forward_pre_hook(lambda module, inputs, name=name: see(name, rows_of(module, inputs[0]))))
        for sample in samples(data, network.inputs):
            network.run(sample)
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def rows_of(module: nn.Module, inputs: torch.Tensor) -> np.ndarray:
    values = inputs.float()
    if not isinstance(module, nn.Conv1d | nn.Conv2d):
        return values.reshape(-1, values.shape[-1]).cpu().numpy()
    if isinstance(module.padding, str) or module.padding_mode != "zeros":
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        values, padding = functional.pad(values, module._reversed_padding_repeated_twice, mode), (0,) * len(module.kernel_size)
    else:
        padding = module.padding
    kernel, dilation, stride = module.kernel_size, module.dilation, module.stride
    if isinstance(module, nn.Conv1d):
        values, kernel, dilation, padding, stride = values.unsqueeze(-2), (1, *kernel), (1, *dilation), (0, *padding), (1, *stride)
    columns = functional.unfold(values, kernel, dilation, padding, stride)  # [samples, in * kernel, positions]
    per_group = columns.shape[1] // module.groups
    return columns.unflatten(1, (module.groups, per_group)).movedim(2, -1).reshape(-1, per_group).cpu().numpy()
