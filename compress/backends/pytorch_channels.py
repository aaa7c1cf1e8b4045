"""Channels of a PyTorch model that go together, as torch-pruning's dependency graph finds them, and the model without some.

torch-pruning takes any operation it does not know for an element-wise one. So each group is proved: the model without three of its
channels must compute what the model computes when nobody reads them. What does not is left whole, with the reason.
"""

import contextlib
import copy
import io
import warnings
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from compress.backends.pytorch_network import BATCH_NORMS, CONVOLUTIONS, TRANSPOSED, PytorchNetwork, framework_layout, tensor_of
from compress.channels import Group, Slice, removals, smaller, unlike
from compress.errors import InputError, MissingExtra

LAYERS = (nn.Linear, *CONVOLUTIONS, *TRANSPOSED)


def channel_groups(network: PytorchNetwork) -> tuple[Group, ...]:
    """Every group once; those whose channels cannot be removed say why."""
    return tuple(proved_either_way(network, group) for group in traced_groups(network))


def traced_groups(network: PytorchNetwork) -> list[Group]:
    pruning = library()
    model = copy.deepcopy(network.model).requires_grad_(True)
    names = {module: path for path, module in model.named_modules()}
    try:
        # the library prints what it does not know, and warns about parameters that belong to no layer
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            graph = pruning.DependencyGraph().build_dependency(model, tuple(tensor.clone() for tensor in network.example))
            found = list(graph.get_all_groups(root_module_types=list(LAYERS)))
    except Exception as error:  # it runs the model's own code
        raise InputError(f"the channels of {type(model).__name__} cannot be followed: {str(error).strip().splitlines()[0]}") from error
    return [group_of(network, graph, items, names) for items in found]


def library():
    try:
        import torch_pruning
    except ImportError as error:
        raise MissingExtra("removing channels of PyTorch models needs torch-pruning: pip install 'compresskit[torch]'") from error
    return torch_pruning


def group_of(network: PytorchNetwork, graph, items, names: dict[nn.Module, str]) -> Group:
    """A group of the library's as slices of tensors. Its `root_idxs` say which channel of the first layer each index belongs to."""
    slices, reasons = {}, []
    for item in items:
        module = item.dep.target.module
        if module not in names:
            if not hasattr(module, "forward") or isinstance(module, nn.Parameter):
                reasons.append("a parameter outside of any layer takes part")
            continue
        output = graph.is_out_channel_pruning_fn(item.dep.handler)
        path = names[module]
        reason = refusal(network, module, path)
        if reason:
            reasons.append(reason)
        for part in parts(module, path, output, np.array(item.idxs), np.array(item.root_idxs)):
            key = part.weight, part.axis
            slices[key] = merged(slices[key], part) if key in slices else part
    root = names[items[0].dep.target.module]
    size = len(set(items[0].root_idxs))
    return Group(f"{root}.weight", size, tuple(slices.values()), "; ".join(dict.fromkeys(reasons)))


def merged(one: Slice, other: Slice) -> Slice:
    """Both together: a concatenation may bring the same channels to a layer twice."""
    pairs = np.unique(np.concatenate([[one.positions, one.channels], [other.positions, other.channels]], axis=1), axis=1)
    return replace(one, positions=pairs[0], channels=pairs[1])


def refusal(network: PytorchNetwork, module: nn.Module, path: str) -> str:
    """Why a layer must stay as wide as it is, or nothing."""
    if not isinstance(module, (*LAYERS, *BATCH_NORMS)):
        return f"{path} is a {type(module).__name__}"
    if getattr(module, "groups", 1) > 1 and not depthwise(module):
        return f"{path} is a convolution in {module.groups} groups"
    if len(network.names.get(f"{path}.weight", ("",))) > 1 or (module.weight is not None and f"{path}.weight" not in network.names):
        return f"{path}.weight is tied to another layer"
    return ""


def depthwise(module: nn.Module) -> bool:
    return isinstance(module, CONVOLUTIONS) and 1 < module.groups == module.in_channels == module.out_channels


def parts(module: nn.Module, path: str, output: bool, positions: np.ndarray, channels: np.ndarray) -> list[Slice]:
    tensors = {leaf for leaf, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)] if tensor.ndim > 0}
    if isinstance(module, BATCH_NORMS):
        return [Slice(f"{path}.{leaf}", 0, "follow", positions, channels) for leaf in sorted(tensors)]
    if not output and not depthwise(module):
        return [Slice(f"{path}.weight", 1, "input", positions, channels)]
    return [Slice(f"{path}.{leaf}", 0, "output", positions, channels) for leaf in ("weight", "bias") if leaf in tensors]


def proved_either_way(network: PytorchNetwork, group: Group) -> Group:
    """The group channel by channel where that can be, else head by head."""
    single = proved(network, group)
    heads = by_heads(network, group)
    if not single.reason or group.reason or heads is group:
        return single
    whole = proved(network, heads)
    return single if whole.reason else whole


def by_heads(network: PytorchNetwork, group: Group) -> Group:
    """The group with attention heads for channels, where its layers are an attention's projections: a head goes as a whole."""
    makers = {part.weight.rpartition(".")[0].rpartition(".")[0] for part in group.role("output")}
    sizes = {head_size(network.model.get_submodule(path)) for path in makers}
    size = sizes.pop() if len(sizes) == 1 else 0
    if size < 2 or group.size % size:
        return group
    slices = tuple(replace(part, channels=part.channels // size) for part in group.slices)
    return replace(group, size=group.size // size, slices=slices)


def head_size(module: nn.Module) -> int:
    """Channels of each head of an attention, by the names that Hugging Face's models give it; 0 where the module is none."""
    found = getattr(module, "attention_head_size", getattr(module, "head_dim", 0))
    return found if isinstance(found, int) and not isinstance(module, nn.MultiheadAttention) else 0


def proved(network: PytorchNetwork, group: Group) -> Group:
    if group.reason:
        return group
    if group.size < 2 or not group.role("input"):
        return replace(group, reason="there is only one" if group.size < 2 else "no layer reads them")
    removed = np.unique([0, 1, group.size // 2])[: group.size - 1]  # unevenly, so that no reshape into parts of equal size can hide
    without = shrunk(network, (group,), {group.id: np.setdiff1d(np.arange(group.size), removed)})
    inputs = {spec.name: tensor.numpy() for spec, tensor in zip(network.inputs, network.example, strict=True)}
    return replace(group, reason=unlike(network, without, group, removed, inputs))


def shrunk(network: PytorchNetwork, groups: tuple[Group, ...], kept: Mapping[str, np.ndarray]) -> PytorchNetwork:
    """A copy of the network that has only these channels; groups that `kept` does not name stay whole."""
    values = smaller(network.weights(), removals(groups, kept))
    model = copy.deepcopy(network.model)
    for name, value in values.items():
        module, kind = network.owner(network.names[name])
        tensor = torch.from_numpy(np.ascontiguousarray(framework_layout(value, module, kind))).to(tensor_of(model, name).dtype)
        path, _, leaf = name.rpartition(".")
        target = model.get_submodule(path)
        setattr(target, leaf, tensor if leaf in target._buffers else nn.Parameter(tensor, requires_grad=False))
    paths = {name.rpartition(".")[0] for name in values}
    for path in paths:
        resize(model.get_submodule(path))
    for path in {path.rpartition(".")[0] for path in paths}:
        resize_attention(model.get_submodule(path))
    return PytorchNetwork(model, network.inputs, network.example, network.notes)


def resize(module: nn.Module) -> None:
    """What a layer says about its own width, from its tensors."""
    if isinstance(module, BATCH_NORMS):
        module.num_features = len(module.running_mean)
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, TRANSPOSED):
        module.in_channels, module.out_channels = module.weight.shape[:2]
    elif module.groups > 1:  # depthwise
        module.groups = module.in_channels = module.out_channels = len(module.weight)
    else:
        module.out_channels, module.in_channels = module.weight.shape[:2]


def resize_attention(module: nn.Module) -> None:
    """How many heads a Hugging Face attention says it has, from its projection; models that read it from there reshape by it."""
    size, query = head_size(module), getattr(module, "query", None)
    if size and isinstance(query, nn.Linear):
        for name, value in (("num_attention_heads", query.out_features // size), ("all_head_size", query.out_features)):
            if hasattr(module, name):
                setattr(module, name, value)
