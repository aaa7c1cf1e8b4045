"""How much memory a fine-tuning takes, before any weight is loaded: its own code runs a training step on tensors without data."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PretrainedConfig

from compress.errors import InputError
from compress.finetune.adapting import Adapted, adapt
from compress.finetune.architectures import blank, load_config, task_of, uniform, with_blocks
from compress.finetune.budget import Budget
from compress.finetune.losses import Objective, outputs
from compress.finetune.methods import Method, load_method
from compress.finetune.tracking import LINES, Phase, Tracker
from compress.finetune.training import optimizer, recompute

FEW = 3  # blocks that have one between the first and the last


@dataclass(frozen=True)
class Memory:
    """Bytes by line, as many as are alive at once, and when: in the forward pass, the loss, the backward pass or the optimizer."""

    lines: dict[str, int]
    when: str

    @property
    def total(self) -> int:
        return sum(self.lines.values())


class Blank(FakeTensorMode):
    """Tensors have shapes and no data. A copy of a model in it belongs to it as well."""

    def __deepcopy__(self, memo):
        return self


def predict_memory(
    model: "str | Path | PretrainedConfig",
    method: "str | Method",
    batch: int = 1,
    seq: int = 512,
    dtype: str = "bfloat16",
    optimizer: str = "adamw",
    recompute: bool = False,
) -> Memory:
    """The peak of a training step over `batch` samples of `seq` tokens; weights of the base and activations in `dtype`, adapters in float32.

    model  a folder with a config.json, a .json file, the name of a built-in config, or a Hugging Face configuration

    InputError for what is no configuration of a model that can be built, for targets that match nothing, for nothing in a batch.
    """
    config = model if isinstance(model, PretrainedConfig) else load_config(model)
    for name, value in (("batch", batch), ("seq", seq)):
        if value < 1:
            raise InputError(f"{name} is {value}: a training step needs at least one {'sample' if name == 'batch' else 'token'}")
    budget = Budget(steps=1, batch=batch, optimizer=optimizer, recompute=recompute)
    return at_peak(peaks(config, load_method(method), budget, seq, getattr(torch, dtype)))


def at_peak(found: dict[Phase, dict[str, int]]) -> Memory:
    phase, lines = max(found.items(), key=lambda item: sum(item[1].values()))
    return Memory(lines, phase[0])


def peaks(config: PretrainedConfig, method: Method, budget: Budget, seq: int, dtype: torch.dtype) -> dict[Phase, dict[str, int]]:
    """By phase. Blocks that are all alike add the same bytes each, so those of many follow from those of few."""
    count = config.num_hidden_layers
    if count <= FEW + 1 or not uniform(config):
        return simulated(config, method, budget, seq, dtype)
    fewer, more = (by_end(simulated(with_blocks(config, n), method, budget, seq, dtype), n) for n in (FEW, FEW + 1))
    return {phase: {line: fewer[phase][line] + (count - FEW) * (more[phase][line] - fewer[phase][line]) for line in LINES} for phase in fewer}


def by_end(found: dict[Phase, dict[str, int]], count: int) -> dict[Phase, dict[str, int]]:
    """The first two blocks as 0 and 1, the last two as -2 and -1: all between lie between those in memory too."""
    said = {}
    for (name, block), lines in found.items():
        places = {None} if block is None else {p for p in (block, block - count) if p in (0, 1, -2, -1)}
        said |= {(name, place): lines for place in places}
    return said


def simulated(config: PretrainedConfig, method: Method, budget: Budget, seq: int, dtype: torch.dtype) -> dict[Phase, dict[str, int]]:
    with Blank():
        adapted = adapt(blank(config, dtype), method)
        labels = torch.zeros((budget.batch, seq) if task_of(config) == "causal_lm" else budget.batch, dtype=torch.int64)
        ids = torch.zeros(budget.batch, seq, dtype=torch.int64)
        return step(adapted, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, labels, Objective(task_of(config)), budget)


def step(adapted: Adapted, inputs: dict[str, torch.Tensor], labels: torch.Tensor, objective: Objective, budget: Budget) -> dict[Phase, dict[str, int]]:
    """The peaks of a step that is not the first: the optimizer has its moments."""
    if budget.recompute:
        recompute(adapted.model)
    learns = optimizer(adapted, budget, torch.device("cpu"))
    for parameter in adapted.trainable().values():
        parameter.grad = torch.zeros_like(parameter)
    learns.step()
    learns.zero_grad()
    adapted.model.train()
    with Tracker(adapted, learns) as tracker:
        objective.total(outputs(adapted.model(**inputs)), labels).backward()
        learns.step()
    return tracker.peaks
