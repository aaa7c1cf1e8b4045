"""Adapters of Hugging Face models by PEFT, on weights that PEFT does not know how to store."""

import re
from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from unittest.mock import patch

import peft
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from compress.errors import InputError
from compress.finetune.adapting import Adapted
from compress.finetune.methods import IA3, LoRA, Method, Prompt
from compress.finetune.quantized import QuantizedLinear
from compress.finetune.starts import start
from compress.finetune.targets import inside, learning, linear_targets, modules_of, replace, to_store

NAME = "default"  # PEFT's name of the one adapter
TASKS = {"ForSequenceClassification": "SEQ_CLS", "ForCausalLM": "CAUSAL_LM", "LMHeadModel": "CAUSAL_LM", "Model": "FEATURE_EXTRACTION"}


def adapt_by_peft(model: nn.Module, method: LoRA | IA3 | Prompt, seed: int) -> Adapted:
    """A PeftModel around a copy. InputError for names that match nothing, and for models whose prompts PEFT does not know."""
    also = modules_of(model, method.also, "also")
    targets = linear_targets(model, method.targets, also) if isinstance(method, LoRA | IA3) and method.targets else ()
    started = targets if isinstance(method, LoRA) else ()
    stored, notes = to_store(model, method, also, started)
    config = config_of(model, method, targets, also)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        ready = learning(model)
        with in_place() if any(isinstance(p, FakeTensor) for p in ready.parameters()) else nullcontext():
            adapted = peft.get_peft_model(ready, config)
    missed = next((name for name in targets if not isinstance(ready.get_submodule(name), BaseTunerLayer)), None)
    if missed:
        raise InputError(f"{missed}: PEFT gives it no adapter, because its name ends as one of also does ({', '.join(also)}): leave it out of targets")
    for name in started:
        begin(ready.get_submodule(name), method, seed, name)
    for name in stored:
        place = f"{name}.base_layer" if isinstance(ready.get_submodule(name), BaseTunerLayer) else name
        replace(ready, place, QuantizedLinear.of(ready.get_submodule(place), method.format))
    for layer in adapted.modules():
        if isinstance(layer, BaseTunerLayer) and isinstance(layer.base_layer, QuantizedLinear):
            layer.merge = refuse_merging
    keep_frozen(adapted, {f"{'base_model' if isinstance(method, Prompt) else 'base_model.model'}.{name}" for name in also})
    if isinstance(method, Prompt) and not method.deep:
        adapted.register_forward_hook(without_prompt)
    rates = {n: method.b_rate for n, _ in adapted.named_parameters() if ".lora_B." in n} if isinstance(method, LoRA) and method.b_rate != 1 else {}
    return Adapted(adapted, method, rates, (f"adapters are PEFT {peft.__version__}'s", *notes))


def in_place() -> AbstractContextManager:
    """PEFT moves new adapters to their base's device, where those without data are already; moving them swaps tensors, which they refuse."""
    return patch.object(nn.Module, "to", lambda module, *_, **__: module)


def config_of(model: nn.Module, method: Method, targets: Collection[str], also: Collection[str]) -> peft.PeftConfig:
    """What PEFT calls a method; `targets` of LoRA and IA3 are layers of this model."""
    whole: dict[str, Any] = {"modules_to_save": list(also) or None}
    if isinstance(method, LoRA):
        kind = {"lora_dropout": method.dropout, "use_rslora": method.stabilized, "use_dora": method.magnitude}
        return peft.LoraConfig(r=method.rank, lora_alpha=method.alpha or 2.0 * method.rank, target_modules=spelled(targets, model), **kind, **whole)
    if isinstance(method, IA3):
        return peft.IA3Config(target_modules=spelled(targets, model), feedforward_modules=[], **whole) if targets else known_ia3(model, whole)
    task = next((task for end, task in TASKS.items() if type(model).__name__.endswith(end)), None)
    if task is None:
        raise InputError(f"prompts go before the inputs of classifiers of sequences, causal language models and encoders, and a {type(model).__name__} is none")
    if method.deep:
        return peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=method.tokens, **whole)
    return peft.PromptTuningConfig(task_type=task, num_virtual_tokens=method.tokens, prompt_tuning_init="SAMPLE_VOCAB", **whole)


def known_ia3(model: nn.Module, whole: dict[str, Any]) -> peft.IA3Config:
    if model.config.model_type not in TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING:
        raise InputError(f"ia3: PEFT knows no layers to scale in a {model.config.model_type}: give targets, globs over linear layers")
    return peft.IA3Config(**whole)


def spelled(targets: Collection[str], model: nn.Module) -> list[str] | str:
    """What PEFT takes for these layers and no others: it takes whatever ends with a name, so a regular expression where that is too much."""
    others = [name for name, _ in model.named_modules() if not inside(name, targets)]
    return "|".join(map(re.escape, targets)) if any(name.endswith(tuple(f".{target}" for target in targets)) for name in others) else list(targets)


def begin(layer: BaseTunerLayer, method: LoRA, seed: int, name: str) -> None:
    """Puts the project's base and start into a layer of PEFT's."""
    begun = start(layer.base_layer, method, seed, name)
    layer.base_layer = begun.base
    A, B = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight
    with torch.no_grad():
        A.copy_(begun.A)
        B.copy_(begun.B)
        if method.magnitude:
            norms = layer.lora_magnitude_vector[NAME].get_weight_norm(begun.base.weight, B @ A, method.scale)
            layer.lora_magnitude_vector[NAME].weight.copy_(norms)


def refuse_merging(*args: Any, **options: Any) -> None:
    raise InputError("the weight is stored as codes, and adding to it would round the adapter away: merge into the decoded or the original base")


def keep_frozen(adapted: peft.PeftModel, also: Collection[str]) -> None:
    """PEFT lets modules learn whose names end as one that is to learn, and the head of a classifier beside prompts."""
    for name, parameter in adapted.named_parameters():
        if ".modules_to_save." in name:
            parameter.requires_grad = name.partition(".modules_to_save.")[0] in also


def without_prompt(adapted: peft.PeftModel, given: tuple, result: Any) -> Any:
    """Outputs of the tokens alone: those of the prompt, which come first, have no labels."""
    tokens = adapted.active_peft_config.num_virtual_tokens
    for name in ("logits", "last_hidden_state"):
        if name in result and result[name].ndim == 3:
            result[name] = result[name][:, tokens:]
    return result
