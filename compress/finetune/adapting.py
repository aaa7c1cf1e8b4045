"""A model made ready to learn by a method: what learns, what stays, in which format. The caller's model is never changed."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import nn

from compress.errors import InputError
from compress.finetune.lora import LinearWithLoRA
from compress.finetune.methods import Full, LoRA, Method, Selective, WithBase
from compress.finetune.quantized import QuantizedLinear
from compress.registry import suggest
from compress.steps.selector import Patterns, glob


@dataclass(frozen=True, eq=False)
class Adapted:
    """A copy of a model, adapted.

    rates  by name of a parameter that learns: how many times the learning rate its own is (LoRA+); 1 where it says nothing
    notes  what stays other than the method says, with the reason
    """

    model: nn.Module
    method: Method
    rates: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def trainable(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def groups(self, rate: float) -> list[dict]:
        """Parameter groups of an optimizer, one for each learning rate; `scale` is what a schedule multiplies."""
        found: dict[float, list[nn.Parameter]] = {}
        for name, parameter in self.trainable().items():
            found.setdefault(self.rates.get(name, 1.0), []).append(parameter)
        return [{"params": parameters, "lr": rate * scale, "scale": scale} for scale, parameters in found.items()]


def adapt(model: nn.Module, method: Method, seed: int = 0) -> Adapted:
    """The model ready to learn: weights that do not learn share the caller's storage, what learns is a copy. InputError for targets that match nothing."""
    torch.manual_seed(seed)
    if isinstance(method, Full):
        return Adapted(learning(model, [name for name, _ in model.named_parameters()], ()), method)
    if isinstance(method, Selective):
        return Adapted(learning(model, selected(model, method.train), method.also), method)
    if not isinstance(method, LoRA):
        raise InputError(f"the method {method.method!r} adapts Hugging Face models only")
    return low_rank(model, method)


def low_rank(model: nn.Module, method: LoRA) -> Adapted:
    targets = linear_targets(model, method.targets, method.also)
    ready = learning(model, (), method.also)
    alpha = method.scale * method.rank
    for name in targets:
        linear = ready.get_submodule(name)
        try:
            replace(ready, name, LinearWithLoRA(stored(linear, method), method.rank, alpha, method.dropout))
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
    rates = {f"{name}.lora.B": method.b_rate for name in targets if method.b_rate != 1}
    return Adapted(ready, method, rates)


def stored(linear: nn.Linear, method: WithBase) -> nn.Module:
    return linear if method.format is None else QuantizedLinear.of(linear, method.format)


def replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)


def linear_targets(model: nn.Module, targets: Patterns, also: Patterns) -> list[str]:
    """Names of the linear layers that adapters go to. InputError where there are none."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    head = output_head(model)
    wanted = [n for n in linear if glob(targets, n) and not glob(also, n) and (n != head or targets not in ("*", ("*",)))]
    if not wanted:
        raise InputError(f"targets {targets!r} match no linear layer; {suggest(str(targets), linear)}the model has {', '.join(linear[:6]) or 'none'}, ...")
    return wanted


def output_head(model: nn.Module) -> str | None:
    """The name of a Hugging Face model's output layer."""
    found = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return next((name for name, module in model.named_modules() if module is found), None) if found is not None else None


def learning(model: nn.Module, parameters: Iterable[str], also: Patterns) -> nn.Module:
    """A copy in which these parameters, and all of the modules that `also` matches, learn; others share the caller's storage."""
    names = set(parameters)
    for pattern in (also,) if isinstance(also, str) else also:
        modules = [name for name, _ in model.named_modules() if name and glob(pattern, name)]
        if not modules:
            known = [name for name, _ in model.named_modules() if name]
            raise InputError(f"also: {pattern!r} matches no module; {suggest(pattern, known)}")
        names |= {n for n, _ in model.named_parameters() if any(n.startswith(f"{module}.") for module in modules)}
    memo = {id(p): nn.Parameter(p.detach().clone() if n in names else p.detach(), requires_grad=n in names) for n, p in model.named_parameters()}
    return copy.deepcopy(model, memo | {id(buffer): buffer.clone() for buffer in model.buffers()})  # deepcopy takes a FakeTensor out of its mode


NORMS = ("LayerNorm", "BatchNorm", "GroupNorm", "RMSNorm", "InstanceNorm")


def selected(model: nn.Module, train: Patterns) -> list[str]:
    """Names of the parameters that a selective method trains. InputError for a pattern that matches none."""
    names, found = [name for name, _ in model.named_parameters()], []
    for pattern in (train,) if isinstance(train, str) else train:
        if pattern == "biases":
            wanted = [n for n in names if n.endswith("bias")]
        elif pattern == "norms":
            norms = [n for n, m in model.named_modules() if any(kind in type(m).__name__ for kind in NORMS)]
            wanted = [n for n in names if n.rpartition(".")[0] in norms]
        elif pattern.startswith("last:"):
            blocks = last_blocks(model, pattern.removeprefix("last:"))
            wanted = [n for n in names if any(n.startswith(f"{block}.") for block in blocks)]
        else:
            wanted = [n for n in names if glob((pattern, f"{pattern}.*"), n)]
        if not wanted:
            raise InputError(f"train: {pattern!r} matches no parameter; {suggest(pattern, names)}the model has {', '.join(names[:6])}, ...")
        found += wanted
    return found


def last_blocks(model: nn.Module, count: str) -> list[str]:
    """Names of the last modules of the longest ModuleList."""
    if not count.isdigit() or not int(count):
        raise InputError(f"train: 'last:{count}' needs a number of blocks, as last:2")
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module)]
    if not lists:
        raise InputError("train: 'last:N' takes the last modules of a ModuleList, and the model has none: name parameters instead")
    name, blocks = max(lists, key=lambda pair: len(pair[1]))
    return [f"{name}.{i}".lstrip(".") for i in range(len(blocks))][-int(count) :]
