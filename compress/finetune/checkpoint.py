"""A fine-tuning's state in one safetensors file: parameters that learn, moments of the optimizer, the log. Nothing in it is ever unpickled."""

import json
import os
from collections.abc import Iterator, Mapping
from functools import reduce
from hashlib import sha256
from operator import getitem
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from compress.backends.training_data import read_tensors
from compress.errors import InputError, TrainingError
from compress.finetune.quantized import QuantizedLinear

if TYPE_CHECKING:
    from compress.finetune.training import Trainer

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True, strict=False)
SEPARATOR = "|"


class Checkpoint:
    """Writes and reads a trainer's state; whole at any time, known by method, budget, data and first weights."""

    def __init__(self, trainer: "Trainer"):
        self.trainer, self.path, self.identity = trainer, trainer.checkpoint, trainer.identity

    def save(self, step: int) -> None:
        """TrainingError for a number that is not finite: a checkpoint is good."""
        model, optimizer = self.state()
        if not self.trainer.accelerator.is_main_process:
            return
        tensors = {SEPARATOR.join(place): torch.as_tensor(value) for place, value in leaves({"model": model, "optimizer": optimizer["state"]})}
        broken = next((name for name, t in tensors.items() if t.is_floating_point() and not torch.isfinite(t).all()), None)
        if broken:
            raise TrainingError(f"{broken} is not finite after step {step}{self.trainer.advice()}")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        save_file(apart(tensors), part, {"identity": self.identity, "step": str(step), "log": json.dumps(self.trainer.log)})
        os.replace(part, self.path)

    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What of the model changes, under one name each though weights be tied, and the optimizer's state."""
        model, optimizer = get_state_dict(self.trainer.model, self.trainer.optimizer.optimizer, options=WHOLE)
        own = self.trainer.adapted.model
        frozen = {name for name, _ in own.named_parameters(remove_duplicate=False)} - set(self.trainer.adapted.trainable())
        codes = {f"{name}.{array}" for name, layer in own.named_modules() if isinstance(layer, QuantizedLinear) for array in layer.arrays}
        return {name: tensor for name, tensor in model.items() if name not in frozen | codes}, optimizer

    def restore(self) -> int:
        """Steps done; 0 where there is no file. InputError for the checkpoint of another fine-tuning, BrokenFile for one that cannot be read."""
        if not self.path.exists():
            return 0
        header, found = read_tensors(self.path, "pt", "remove it to train from the start")
        if header.get("identity") != self.identity:
            raise InputError(f"{self.path} is the checkpoint of another method, budget, data or model: remove it, or write to another folder")
        model, optimizer = self.state()
        state = {"model": model, "optimizer": optimizer["state"]}
        for place, tensor in found.items():
            *way, last = place.split(SEPARATOR)
            parent = reduce(getitem, way, state)
            parent[last] = tensor if isinstance(parent.get(last), torch.Tensor) else tensor.item()
        set_state_dict(self.trainer.model, self.trainer.optimizer.optimizer, model_state_dict=model, optim_state_dict=optimizer, options=WHOLE)
        self.trainer.log[:] = json.loads(header["log"])
        return int(header["step"])


def apart(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Contiguous, and copied where two share storage, as the tables of 8-bit optimizers do: a safetensors file holds every tensor once."""
    seen, found = set(), {}
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        found[name] = tensor.clone() if place in seen else tensor.contiguous()
        seen.add(place)
    return found


def leaves(tree: Mapping[str, Any], way: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(keys from the root, value) of nested mappings."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, (*way, name))
        else:
            yield (*way, name), value


def identity(trainer: "Trainer") -> str:
    """Equal for the same method, budget, task, data and model as it is before the first step: every weight counts, also those that stay."""
    said = {"method": trainer.adapted.method.model_dump(), "budget": trainer.budget.model_dump(), "task": trainer.objective.task}
    digest = sha256(json.dumps(said, sort_keys=True).encode())
    for name, tensor in trainer.adapted.model.state_dict().items():
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode() + tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    for name, array in [*trainer.data.inputs.items(), ("labels", trainer.data.labels)]:
        digest.update(f"{name}{array.dtype}{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
