"""How much memory a fine-tuning takes, before any weight is loaded: its own code runs a training step on tensors without data."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PretrainedConfig

from compress.errors import InputError
from compress.finetune.adapting import Adapted, adapt
from compress.finetune.architectures import blank, built_in, load_config, task_of, uniform, with_blocks
from compress.finetune.budget import Budget
from compress.finetune.losses import Objective, outputs
from compress.finetune.methods import Method, load_method
from compress.finetune.tracking import LINES, Phase, Tracker
from compress.finetune.training import for_training, optimizer

SIDE_BY_SIDE = ("full", "lora", "qlora")
FEW = 3  # blocks that have one between the first and the last
Peaks = dict[Phase, dict[str, int]]


@dataclass(frozen=True)
class Memory:
    """Bytes by line at the moment when most are alive.

    when     in the forward pass, the loss, the backward pass or the optimizer
    largest  bytes by line, each at its own worst moment
    """

    lines: dict[str, int]
    when: str
    largest: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.lines.values())

    def facts(self) -> dict[str, Any]:
        return {**self.lines, "total": self.total, "when": self.when, "largest": self.largest}


@dataclass(frozen=True)
class Shape:
    """A training step: `batch` samples of `seq` tokens; base and activations in `dtype`, adapters in float32, moments as the optimizer has them."""

    batch: int = 1
    seq: int = 512
    dtype: str = "bfloat16"
    optimizer: str = "adamw"
    recompute: bool = False

    def __post_init__(self):
        for name, least in (("batch", "one sample"), ("seq", "one token")):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}: a training step needs at least {least}")
        if self.dtype not in ("float32", "bfloat16", "float16"):
            raise InputError(f"no dtype {self.dtype!r}: known: float32, bfloat16, float16")
        if self.optimizer not in ("adamw", "adamw8bit"):
            raise InputError(f"no optimizer {self.optimizer!r}: known: adamw, adamw8bit")


class Blank(FakeTensorMode):
    """Tensors have shapes and no data. A copy of a model in it belongs to it as well."""

    def __deepcopy__(self, memo):
        return self


def predict_memory(model: "str | Path | PretrainedConfig", method: "str | Method", rank: int | None = None, **shape) -> Memory:
    """The peak of a training step; `shape` as in Shape.

    model  a folder with a config.json, a .json file, the name of a built-in config, or a Hugging Face configuration

    UnknownName for a model or method that does not exist; InputError for what no model can be built from, targets that match nothing, nothing in a batch.
    """
    config = model if isinstance(model, PretrainedConfig) else load_config(model)
    return at_peak(peaks(config, ranked(method, rank), Shape(**shape)))


def ranked(method: "str | Method", rank: int | None) -> Method:
    """The method, with this rank where it has one."""
    found = load_method(method)
    return load_method(found, rank=rank) if "rank" in type(found).model_fields else found


def side_by_side(config: PretrainedConfig, named: str, rank: int | None, shape: Shape) -> Iterator[tuple[str, bool, Memory]]:
    """(method, whether activations are recomputed, memory) of full fine-tuning, LoRA, QLoRA, and before them the named method where it is another."""
    for name in dict.fromkeys((*(() if named in SIDE_BY_SIDE else (named,)), *SIDE_BY_SIDE)):
        for again in (False, True):
            yield name, again, at_peak(peaks(config, ranked(name, rank), replace(shape, recompute=again)))


def fitting(limit: int, method: str, rank: int | None, shape: Shape) -> Iterator[tuple[str, bool, Memory]]:
    """(name, whether activations are recomputed, memory) of the built-in configs that fit in `limit` bytes; recomputed only where it does not fit without."""
    for name in built_in():
        for again in (False, True):
            needed = predict_memory(name, method, rank, **(vars(shape) | {"recompute": again}))
            if needed.total <= limit:
                yield name, again, needed
                break


def at_peak(found: Peaks) -> Memory:
    (when, _), lines = max(found.items(), key=lambda item: sum(item[1].values()))
    return Memory(lines, when, {line: max(of[line] for of in found.values()) for line in LINES})


def peaks(config: PretrainedConfig, method: Method, shape: Shape) -> Peaks:
    """By phase. Blocks that are all alike add the same bytes each, so those of many follow from those of few."""
    count = config.num_hidden_layers
    if count <= FEW + 1 or not uniform(config):
        return simulated(config, method, shape)
    fewer, more = (by_end(simulated(with_blocks(config, n), method, shape), n) for n in (FEW, FEW + 1))
    return {phase: {line: fewer[phase][line] + (count - FEW) * (more[phase][line] - fewer[phase][line]) for line in LINES} for phase in fewer}


def by_end(found: Peaks, count: int) -> Peaks:
    """The first two blocks as 0 and 1, the last two as -2 and -1: all between lie between those in memory too."""
    said = {}
    for (name, block), lines in found.items():
        places = {None} if block is None else {p for p in (block, block - count) if p in (0, 1, -2, -1)}
        said |= {(name, place): lines for place in places}
    return said


def predict_step(adapted: Adapted, inputs: dict[str, np.ndarray], labels: np.ndarray, objective: Objective, budget: Budget) -> Memory:
    """The peak of a step of a model that is there: a copy of it without data takes the step. Call it before the model is prepared for training."""
    mode = Blank(allow_non_fake_inputs=True)
    memo = {id(p): nn.Parameter(mode.from_tensor(p.detach()), requires_grad=p.requires_grad) for p in adapted.model.parameters()}
    memo |= {id(b): mode.from_tensor(b) for b in adapted.model.buffers()}
    device = next(adapted.model.parameters()).device
    with mode:
        empty = {name: torch.empty(array.shape, dtype=torch.as_tensor(array[:0]).dtype, device=device) for name, array in inputs.items()}
        wanted = torch.empty(labels.shape, dtype=torch.as_tensor(labels[:0]).dtype, device=device)
        blank = replace(adapted, model=deepcopy(adapted.model, memo))
    return at_peak(step(mode, blank, empty, wanted, objective, budget))


def simulated(config: PretrainedConfig, method: Method, shape: Shape) -> Peaks:
    budget = Budget(steps=1, batch=shape.batch, optimizer=shape.optimizer, recompute=shape.recompute)
    mode, task = Blank(allow_non_fake_inputs=True), task_of(config)  # of the optimizer's own tables
    with mode:
        adapted = adapt(blank(config, getattr(torch, shape.dtype)), method)
        ids = torch.zeros(shape.batch, shape.seq, dtype=torch.int64)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        labels = ids.clone() if task == "causal_lm" else torch.zeros(shape.batch, dtype=torch.int64)
    return step(mode, adapted, inputs, labels, Objective(task), budget)


def step(mode: Blank, adapted: Adapted, inputs: dict[str, torch.Tensor], labels: torch.Tensor, objective: Objective, budget: Budget) -> Peaks:
    """The peaks of a step that is not the first: the optimizer has its moments."""
    for_training(adapted.model, budget)
    learns = optimizer(adapted, budget, labels.device)
    adapted.model.train()
    with mode:
        for parameter in adapted.trainable().values():
            parameter.grad = torch.zeros_like(parameter)
        learns.step()
        learns.zero_grad()
        with Tracker(adapted, learns) as tracker, torch.autocast(labels.device.type, torch.bfloat16, enabled=budget.precision == "bfloat16"):
            objective.total(outputs(adapted.model(**inputs)), labels).backward()
            learns.step()
    return tracker.peaks
