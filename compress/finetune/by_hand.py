"""Adapters of any torch.nn.Module by the project's own layers."""

from collections.abc import Collection

import torch
from torch import nn

from compress.errors import InputError
from compress.finetune.adapting import Adapted
from compress.finetune.layers import LinearWithDoRA, LinearWithIA3, attach_bottleneck
from compress.finetune.lora import LinearWithLoRA
from compress.finetune.methods import IA3, Bottleneck, LoRA, Method, Prompt
from compress.finetune.quantized import QuantizedLinear
from compress.finetune.starts import generator, start
from compress.finetune.targets import inside, learning, linear_targets, matching, modules_of, replace, to_store


def adapt_by_hand(model: nn.Module, method: Method, seed: int, note: str) -> Adapted:
    """InputError for names that match nothing, and for methods that only Hugging Face models take."""
    also = modules_of(model, method.also, "also")
    targets = targets_of(model, method, also)
    ready = learning(model, modules=also)
    stored, notes = to_store(model, method, also, targets if isinstance(method, LoRA) else ())
    for name in stored:
        replace(ready, name, QuantizedLinear.of(ready.get_submodule(name), method.format))
    for name in targets:
        if isinstance(method, LoRA):
            replace(ready, name, with_lora(ready.get_submodule(name), method, seed, name))
        elif isinstance(method, IA3):
            replace(ready, name, LinearWithIA3(ready.get_submodule(name)))
        else:
            attach_bottleneck(ready, name, method.size, generator(seed, name))
    rates = {f"{name}.lora.B": method.b_rate for name in targets} if isinstance(method, LoRA) and method.b_rate != 1 else {}
    return Adapted(ready, method, rates, (note, *notes, *fused(model, method, also)))


def targets_of(model: nn.Module, method: Method, also: Collection[str]) -> list[str]:
    """Names of the modules that adapters go to."""
    if isinstance(method, Prompt):
        raise InputError(f"prompt and prefix tuning need a Hugging Face model, whose inputs PEFT knows; {type(model).__name__} is none: use lora or ia3")
    if isinstance(method, Bottleneck):
        return [name for name in matching(model, method.after, "after") if not inside(name, also)]
    if method.targets is None:
        raise InputError(f"ia3: which layers to scale is known of Hugging Face models only; {type(model).__name__} is none: give targets")
    return linear_targets(model, method.targets, also)


def with_lora(linear: nn.Linear, method: LoRA, seed: int, name: str) -> nn.Module:
    begun = start(linear, method, seed, name)
    layer = LinearWithLoRA(begun.base, method.rank, method.scale * method.rank, method.dropout)
    with torch.no_grad():
        layer.lora.A.copy_(begun.A)
        layer.lora.B.copy_(begun.B)
    return LinearWithDoRA(begun.base, layer.lora) if method.magnitude else layer


def fused(model: nn.Module, method: Method, also: Collection[str]) -> list[str]:
    """What holds products that are no linear layers, so that adapters of linear layers do not reach them."""
    if isinstance(method, Bottleneck):
        return []
    found = [name for name, module in model.named_modules() if isinstance(module, nn.MultiheadAttention) and not inside(name, also)]
    return [f"{name}.in_proj_weight stays as it is: nn.MultiheadAttention keeps queries, keys and values in one parameter, no linear layer" for name in found]
