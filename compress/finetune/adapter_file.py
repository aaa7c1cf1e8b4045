"""What a model learned as a folder that PEFT reads: adapter_model.safetensors, adapter_config.json."""

import copy
import json
import os
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import nn

from compress.backends.training_data import read_tensors
from compress.errors import InputError
from compress.finetune.adapting import Adapted, adapt
from compress.finetune.layers import LinearWithDoRA, LinearWithIA3
from compress.finetune.lora import LinearWithLoRA
from compress.finetune.methods import IA3, LoRA, Prompt, load_method
from compress.finetune.targets import inside

if TYPE_CHECKING:
    from peft import PeftConfig

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
HEADER = "compresskit.method"
PREFIX = "base_model.model."
RUNNING = ("running_mean", "running_var", "num_batches_tracked")  # what batch norms learn without a gradient


def save_adapter(adapted: Adapted, folder: str | Path) -> Path:
    """Writes what learned. `peft.PeftModel.from_pretrained(model, folder)` reads LoRA, IA3 and prompts, put on the weights they learned beside:
    of a method with a base, those that the base decodes to. Other methods have no place in PEFT and no adapter_config.json; `load_adapter` reads all."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder) as part:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in learned(adapted).items()}
        save_file(tensors, Path(part, WEIGHTS), {"format": "pt", HEADER: adapted.method.model_dump_json()})
        if isinstance(adapted.method, LoRA | IA3 | Prompt):
            described(adapted).save_pretrained(part)
        else:
            Path(folder, CONFIG).unlink(missing_ok=True)
        for file in sorted(Path(part).iterdir()):
            os.replace(file, folder / file.name)
    return folder


def load_adapter(model: nn.Module, folder: str | Path) -> Adapted:
    """The model, adapted as when `save_adapter` wrote the folder. InputError where the folder fits another model, BrokenFile where it cannot be read."""
    path = Path(folder, WEIGHTS)
    if not path.exists():
        raise InputError(f"{folder} holds no {WEIGHTS}: is it the folder of an adapter?")
    header, tensors = read_tensors(path, "pt", "write the adapter again")
    method = header.get(HEADER)
    if method is None:
        raise InputError(f"{path} does not say by which method it learned, so it is not save_adapter's: use peft.PeftModel.from_pretrained")
    try:
        adapted = adapt(model, load_method(json.loads(method)))
    except InputError as error:
        raise InputError(f"{folder} is the adapter of another model: {error}") from error
    fill(adapted, tensors, folder)
    return adapted


def described(adapted: Adapted) -> "PeftConfig":
    """An adapter as PEFT says it."""
    method, model = adapted.method, adapted.model
    if by_peft(adapted):
        config = copy.copy(model.peft_config["default"])
    else:
        from compress.finetune.hugging_face import config_of

        targets = [name for name, module in model.named_modules() if isinstance(module, LinearWithLoRA | LinearWithDoRA | LinearWithIA3)]
        whole = {name.rpartition(".")[0] for name in adapted.trainable() if not inside(name, targets)}
        config = config_of(model, method, targets, sorted(whole))
    if isinstance(method, LoRA) and method.start == "pissa" and method.base is None:
        config.init_lora_weights = "pissa"  # PEFT takes the same singular values off the weights when it loads the folder
    return config


def fill(adapted: Adapted, tensors: dict[str, torch.Tensor], folder: str | Path) -> None:
    wanted = learned(adapted)
    for name in sorted({*wanted, *tensors}):
        here, there = (tuple(found[name].shape) if name in found else None for found in (wanted, tensors))
        if here != there:
            raise InputError(f"{folder} is the adapter of another model: {name} is {there or 'nothing'} in the file and {here or 'nothing'} in this model")
    if by_peft(adapted):
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(adapted.model, tensors)
    else:
        with torch.no_grad():
            for name, tensor in wanted.items():
                tensor.copy_(tensors[name])


def learned(adapted: Adapted) -> dict[str, torch.Tensor]:
    """By PEFT's names: parameters that learn and the running statistics of batch norms."""
    model = adapted.model
    prefix = "" if by_peft(adapted) else PREFIX
    running = {f"{prefix}{n}": b for n, b in model.named_buffers() if n.endswith(RUNNING) and ".modules_to_save." not in n and ".original_module." not in n}
    if by_peft(adapted):
        from peft import get_peft_model_state_dict

        return running | get_peft_model_state_dict(model, save_embedding_layers=False)
    return running | {peft_name(name): parameter for name, parameter in adapted.trainable().items()}


def peft_name(name: str) -> str:
    """Of a parameter of the project's own layers."""
    return PREFIX + re.sub(r"\.magnitude$", ".lora_magnitude_vector", re.sub(r"\.lora\.([AB])$", r".lora_\1.weight", name))


def by_peft(adapted: Adapted) -> bool:
    return hasattr(adapted.model, "peft_config")
