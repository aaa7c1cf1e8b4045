"""torch.nn.Module, Hugging Face models included, as a Network."""

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from compress.channels import Group
from compress.errors import InputError
from compress.network import Inputs, InputSpec, Weight
from compress.samples import Data, samples
from compress.training import Course

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class PytorchNetwork:
    framework = "pytorch"

    def __init__(self, model: nn.Module, inputs: tuple[InputSpec, ...], example: tuple[torch.Tensor, ...], notes: tuple[str, ...]):
        self.model, self.inputs, self.example, self.notes = model, inputs, example, notes

    @cached_property
    def names(self) -> dict[str, tuple[str, ...]]:
        """First name of every floating-point parameter and buffer to all of its names: tied tensors have several."""
        by_identity: dict[int, list[str]] = {}
        for name, tensor in [*self.model.named_parameters(remove_duplicate=False), *self.model.named_buffers(remove_duplicate=False)]:
            if tensor.is_floating_point():
                by_identity.setdefault(id(tensor), []).append(name)
        return {names[0]: tuple(names) for names in by_identity.values()}

    def weights(self) -> dict[str, Weight]:
        found = {}
        for name, names in self.names.items():
            module, kind = self.owner(names)
            value = tensor_of(self.model, name).detach().float().numpy()
            found[name] = Weight(name, kind, canonical(value, module, kind), names[1:])
        return found

    def owner(self, names: tuple[str, ...]) -> tuple[nn.Module, str]:
        """The module that decides a tensor's kind; a tied tensor counts as what its first layer with a known kind says."""
        kinds = []
        for name in names:
            path, _, leaf = name.rpartition(".")
            module = self.model.get_submodule(path)
            kinds.append((module, kind_of(module, leaf)))
        return next((pair for pair in kinds if pair[1] not in ("parameter", "buffer")), kinds[0])

    def with_weights(self, values: Mapping[str, np.ndarray]) -> "PytorchNetwork":
        model = copy.deepcopy(self.model)
        with torch.no_grad():
            for name, value in values.items():
                if name not in self.names:
                    raise InputError(f"the model has no tensor {name!r}; tied tensors go by their first name")
                module, kind = self.owner(self.names[name])
                tensor = tensor_of(model, name)
                expected = canonical(tensor.detach().float().numpy(), module, kind).shape
                if np.shape(value) != expected:
                    raise InputError(f"{name}: a value of shape {list(np.shape(value))} does not fit, expected {list(expected)}")
                tensor.copy_(torch.from_numpy(np.ascontiguousarray(framework_layout(np.asarray(value), module, kind))))
        return PytorchNetwork(model, self.inputs, self.example, self.notes)

    @torch.no_grad()
    def run(self, inputs: Inputs) -> list[np.ndarray]:
        outputs = self.model(*(torch.tensor(inputs[spec.name]) for spec in self.inputs))  # copies: a model may write into its inputs
        return [tensor.float().numpy() for tensor in flatten(outputs)]

    def train(self, course: Course) -> tuple["PytorchNetwork", dict[str, np.ndarray]]:
        """A copy with what its parameters learned, and learned scales: see compress.backends.pytorch_training."""
        from compress.backends.pytorch_training import train

        return train(self, course)

    def observe(self, names: Iterable[str], data: Data, see: Callable[[str, np.ndarray], None]) -> None:
        """Calls see(name, float32 rows [n, in * kernel]) with what the named weights are multiplied by."""
        from compress.backends.pytorch_observing import observe

        observe(self, names, data, see)

    def second_moments(self, names: Iterable[str], data: Data) -> dict[str, np.ndarray]:
        """float64 [in * kernel, in * kernel] by name: the mean outer product of what the named weights are multiplied by."""
        from compress.backends.training_data import second_moments

        return second_moments(self, names, data)

    def channel_groups(self) -> tuple[Group, ...]:
        from compress.backends.pytorch_channels import channel_groups

        return channel_groups(self)

    def without_channels(self, kept: Mapping[str, np.ndarray]) -> "PytorchNetwork":
        from compress.backends.pytorch_channels import channel_groups, shrunk

        return shrunk(self, channel_groups(self), kept)


def tensor_of(model: nn.Module, name: str) -> torch.Tensor:
    """A parameter or buffer by its path."""
    path, _, leaf = name.rpartition(".")
    return getattr(model.get_submodule(path), leaf)


def flatten(outputs: Any) -> list[torch.Tensor]:
    """Tensors of a model's output in order: a tensor, a tuple, a dict or a Hugging Face ModelOutput. InputError for anything else."""
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    if not isinstance(outputs, Mapping | tuple | list):
        raise InputError(f"the model returns an output of type {type(outputs).__name__}: give one that returns tensors, or tuples or dicts of tensors")
    values = outputs.values() if isinstance(outputs, Mapping) else outputs
    return [tensor for value in values if value is not None for tensor in flatten(value)]


def kind_of(module: nn.Module, leaf: str) -> str:
    if isinstance(module, nn.RNNBase):
        return "recurrent" if leaf.startswith("weight") else "bias"
    if isinstance(module, nn.MultiheadAttention) and leaf.endswith("_weight"):
        return "attention"
    if "bias" in leaf:
        return "bias"
    norm = "norm" in type(module).__name__.lower()
    if leaf in module._buffers:
        return "norm" if norm else "buffer"
    if leaf != "weight":
        return "parameter"
    if isinstance(module, nn.Linear):
        return "linear"
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):  # GPT-2's linear layer with a transposed weight
        return "linear"
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return "embedding"
    if isinstance(module, CONVOLUTIONS):
        depthwise = module.groups > 1 and module.groups == module.in_channels
        return f"{'depthwise_' if depthwise else ''}conv{module.weight.ndim - 2}d"
    if isinstance(module, TRANSPOSED):
        return f"conv_transpose{module.weight.ndim - 2}d"
    return "norm" if norm else "parameter"


def canonical(value: np.ndarray, module: nn.Module, kind: str) -> np.ndarray:
    if kind.startswith("conv_transpose"):  # [in, out / groups, *kernel] to [out, in / groups, *kernel]
        groups = module.groups
        split = value.reshape(groups, value.shape[0] // groups, *value.shape[1:])
        return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(-1, value.shape[0] // groups, *value.shape[2:])
    if kind == "linear" and hasattr(module, "nf"):
        return np.ascontiguousarray(value.T)
    return value


def framework_layout(value: np.ndarray, module: nn.Module, kind: str) -> np.ndarray:
    """The inverse of `canonical`."""
    if kind.startswith("conv_transpose"):
        groups = module.groups
        split = value.reshape(groups, value.shape[0] // groups, *value.shape[1:])
        return split.swapaxes(1, 2).reshape(-1, value.shape[0] // groups, *value.shape[2:])
    if kind == "linear" and hasattr(module, "nf"):
        return value.T
    return value


def open_model(model: nn.Module | torch.export.ExportedProgram | str | Path, inputs: Data | None, weights_only: bool = False) -> PytorchNetwork:
    """A copy of the model in evaluation mode with its batch norms folded. InputError where `inputs` is missing or does not run."""
    notes: tuple[str, ...] = ()
    if not isinstance(model, nn.Module):
        from compress.backends.pytorch_loading import load

        model, inputs, notes = load(Path(model) if isinstance(model, str) else model, inputs, weights_only)
    if inputs is None:
        raise InputError("a PyTorch model does not know its input shapes: give `inputs` (or `calibration`), at least one sample")
    specs, example = first_sample(model, inputs)
    try:
        model = copy.deepcopy(model).eval().requires_grad_(False)
    except RuntimeError as error:  # tensors computed from others, as torch.nn.utils.weight_norm leaves them, cannot be copied
        raise InputError(f"{type(model).__name__} cannot be copied: {error}") from error
    if hasattr(model, "config") and hasattr(model.config, "use_cache"):
        model.config.use_cache = False
    try:
        with torch.no_grad():
            outputs = model(*copies(example))
    except Exception as error:
        shapes = ", ".join(f"{spec.name} {list(spec.shape)} {spec.dtype}" for spec in specs)
        raise InputError(f"{type(model).__name__} does not run on the first sample ({shapes}): {error}") from error
    flatten(outputs)
    return PytorchNetwork(model, specs, example, notes + fold_batch_norms(model, copies(example)) + unknown_layers(model))


def copies(example: Iterable[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Tensors that a model may write into."""
    return tuple(tensor.clone() for tensor in example)


def unknown_layers(model: nn.Module) -> tuple[str, ...]:
    """A note on the modules whose own matrices recipes do not know."""
    found = []
    for path, module in model.named_modules():
        if any(p.ndim >= 2 and kind_of(module, leaf) == "parameter" for leaf, p in module.named_parameters(recurse=False)):
            found.append(f"{type(module).__name__} {path}".strip())
    return (f"weights of layers that recipes do not know stay in float: {', '.join(found)}",) if found else ()


def first_sample(model: nn.Module, inputs: Data) -> tuple[tuple[InputSpec, ...], tuple[torch.Tensor, ...]]:
    """Input specifications and tensors of the first sample; names come from the data or from the signature of `forward`."""
    parameters = [name for name in inspect.signature(model.forward).parameters if name not in ("args", "kwargs")]
    first = next(iter(inputs() if callable(inputs) else ([inputs] if isinstance(inputs, Mapping | tuple | np.ndarray) else inputs)), None)
    if first is None:
        raise InputError("the data is empty: calibration and example inputs need at least one sample")
    if isinstance(first, Mapping):
        unknown = [name for name in first if name not in parameters]
        if unknown and "kwargs" not in str(inspect.signature(model.forward)):
            raise InputError(f"{type(model).__name__}.forward takes {', '.join(parameters)}; the data has {', '.join(map(str, first))}")
        names = tuple(name for name in parameters if name in first)
    else:
        names = tuple(parameters[: len(first) if isinstance(first, tuple) else 1])
    sample = next(samples(inputs, tuple(InputSpec(name, (), str(dtype_of(first, i, name))) for i, name in enumerate(names))))
    if names != tuple(parameters[: len(names)]):
        raise InputError(f"the data names {', '.join(names)}, but they must be the first arguments of forward: {', '.join(parameters[: len(names)])}")
    specs = tuple(InputSpec(name, array.shape, str(array.dtype)) for name, array in sample.items())
    return specs, tuple(torch.tensor(array) for array in sample.values())


def dtype_of(first: Any, index: int, name: str) -> np.dtype:
    given = first[name] if isinstance(first, Mapping) else (first[index] if isinstance(first, tuple) else first)
    dtype = np.asarray(given).dtype
    return np.dtype(np.float32) if dtype == np.float64 else dtype


def fold_batch_norms(model: nn.Module, example: tuple[torch.Tensor, ...]) -> tuple[str, ...]:
    """Folds every BatchNorm whose input is a convolution's or linear layer's output and nobody else's, in place; notes say which.

    Adjacency is read from torch.export's graph, so that it holds for any control flow the model has.
    """
    norms = {name: module for name, module in model.named_modules() if isinstance(module, BATCH_NORMS) and module.track_running_stats}
    if not norms:
        return ()
    try:
        exported = torch.export.export(model, example)
    except Exception as error:
        return (f"batch norms were not folded, since torch.export refused the model: {str(error).splitlines()[0]}",)
    folded = [
        pair for node in exported.graph.nodes if node.op == "call_function" and "batch_norm" in str(node.target) and (pair := fold_one(model, exported, node))
    ]
    left = sorted(set(norms) - {norm for _, norm in folded})
    notes = [f"{len(folded)} batch norms folded into the layers before them"] if folded else []
    if left:
        notes.append(f"batch norms left as they are (not alone behind a convolution or linear layer): {', '.join(left)}")
    return tuple(notes)


def fold_one(model: nn.Module, exported: torch.export.ExportedProgram, node: torch.fx.Node) -> tuple[str, str] | None:
    """Folds one batch norm node into the layer before it; the names of both, or None where it cannot be."""
    before = node.args[0]
    if before.op != "call_function" or not any(op in str(before.target) for op in ("conv", "linear")):
        return None
    signature = exported.graph_signature
    norm_name = signature.inputs_to_buffers.get(getattr(node.args[3], "name", ""), "").rpartition(".")[0]
    layer_name = signature.inputs_to_parameters.get(before.args[1].name, "").rpartition(".")[0]
    if not norm_name or not foldable(model, model.get_submodule(layer_name), model.get_submodule(norm_name), before):
        return None
    fold(model.get_submodule(layer_name), model.get_submodule(norm_name))
    parent, _, leaf = norm_name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, nn.Identity())
    return layer_name, norm_name


def foldable(model: nn.Module, layer: nn.Module, norm: nn.Module, node: torch.fx.Node) -> bool:
    """Whether both modules are of a known type and used once, the norm reads the layer's output alone, and along its output channels."""
    known = isinstance(norm, BATCH_NORMS) and isinstance(layer, (nn.Linear, *CONVOLUTIONS, *TRANSPOSED))
    if not known:
        return False
    norm_node = next(iter(node.users))
    alone = len(node.users) == 1 and len(node.args[1].users) == 1 and len(norm_node.args[3].users) == 1
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    untied = sum(tensor is layer.weight or tensor is norm.running_mean for _, tensor in tensors) == 2
    channels = not isinstance(layer, nn.Linear) or node.meta["val"].ndim == 2  # of [batch, rows, out] a norm takes the rows
    return alone and untied and channels


@torch.no_grad()
def fold(layer: nn.Module, norm: nn.Module) -> None:
    """Scales the layer's output channels and moves its bias, in place."""
    scale = torch.rsqrt(norm.running_var.double() + norm.eps) * (1 if norm.weight is None else norm.weight)
    bias = (0 if layer.bias is None else layer.bias) - norm.running_mean.double()
    kind = kind_of(layer, "weight")
    weight = canonical(layer.weight.double().numpy(), layer, kind) * scale.numpy().reshape(-1, *[1] * (layer.weight.ndim - 1))
    layer.weight.copy_(torch.from_numpy(np.ascontiguousarray(framework_layout(weight, layer, kind))))
    layer.bias = nn.Parameter((bias * scale + (0 if norm.bias is None else norm.bias)).to(layer.weight.dtype), requires_grad=False)
