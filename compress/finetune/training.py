"""The loop: batches in, a model that learned out; the same on one device and, in a script of one's own under `accelerate launch` or `torchrun`, on many."""

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DistributedType
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, parse_flag_from_env
from torch.distributed.fsdp import fully_shard

from compress.errors import InputError, TrainingError
from compress.finetune.adapting import Adapted
from compress.finetune.batches import Batches, Samples
from compress.finetune.budget import Budget
from compress.finetune.checkpoint import Checkpoint, identity
from compress.finetune.losses import Objective, outputs
from compress.finetune.tasks import Progress

SAVE_SECONDS = 30.0
EVALUATION_BATCH = 32


@dataclass(eq=False)
class Trainer:
    """A fine-tuning at some step.

    log     one entry for each step (step, loss, rate, tokens, seconds) and each evaluation (step, evaluation loss, score)
    scores  of each test sample at the last evaluation, which a run ends with; None before any
    """

    adapted: Adapted
    data: Samples
    budget: Budget
    objective: Objective
    test: Samples | None = None
    checkpoint: Path | None = None
    progress: Progress | None = None
    log: list[dict[str, Any]] = field(default_factory=list)
    scores: np.ndarray | None = None

    def __post_init__(self):
        AcceleratorState._reset_state()  # the precision of an earlier fine-tuning in this process
        same = DistributedDataParallelKwargs(broadcast_buffers=False)  # codes of a frozen base are the same everywhere
        self.accelerator = Accelerator(mixed_precision="bf16" if self.budget.precision == "bfloat16" else "no", kwargs_handlers=[same])
        self.batches, self.total = Batches(self.data, self.budget), self.budget.total(len(self.data))
        self.identity = identity(self) if self.checkpoint else ""  # of the weights before they are shared out
        for_training(self.adapted.model, self.budget)
        if self.budget.compile:
            compile_blocks(self.adapted.model)
        self.sharded = shards_on_cpus(self.accelerator)
        if self.sharded:
            fully_shard(self.adapted.model)
        made = optimizer(self.adapted, self.budget, self.accelerator.device)
        self.model, self.optimizer = (
            (self.adapted.model, self.accelerator.prepare(made)) if self.sharded else self.accelerator.prepare(self.adapted.model, made)
        )
        self.check()

    def check(self) -> None:
        with torch.no_grad():
            self.objective.check(self.data.labels, self.logits(self.data.take(np.arange(1))[0]))

    def logits(self, inputs: dict[str, np.ndarray]) -> torch.Tensor:
        return outputs(self.model(**{name: torch.as_tensor(array, device=self.accelerator.device) for name, array in inputs.items()}))

    def run(self) -> None:
        """Trains to the end, from the checkpoint of the same fine-tuning where there is one. TrainingError for a loss that is NaN or infinite."""
        kept = Checkpoint(self) if self.checkpoint else None
        step, saved = kept.restore() if kept else 0, monotonic()
        while step < self.total and not self.stopped():
            self.step(step)
            step, self.scores = step + 1, None
            if self.test is not None and (step == self.total or (self.budget.evaluate_every and step % self.budget.evaluate_every == 0)):
                found, self.scores = self.evaluate(self.test)
                self.say({"step": step, **found})
            if kept and (step == self.total or self.stopped() or self.accelerator.reduce(torch.tensor(monotonic() - saved)).item() > SAVE_SECONDS):
                kept.save(step)
                saved = monotonic()

    def step(self, step: int) -> None:
        began, (process, processes) = perf_counter(), (self.accelerator.process_index, self.accelerator.num_processes)
        torch.manual_seed(hash((self.budget.seed, step, process)))  # dropout follows from the step, so a run that goes on draws what it would have drawn
        self.model.train()
        counted = self.objective.counted(self.data.labels[self.batches.rows(step)])
        total, tokens = torch.zeros((), device=self.accelerator.device), 0
        parts = self.batches.parts(step, process, processes)
        for i, rows in enumerate(parts):
            inputs, labels = self.data.take(rows)
            tokens += next(iter(inputs.values())).size if self.data.lengths is None else int(self.data.lengths[rows].sum())
            with self.apart(i + 1 < len(parts)):
                loss = self.objective.total(self.logits(inputs), torch.as_tensor(labels, device=self.accelerator.device)) / counted
                self.accelerator.backward(loss * processes)  # processes average their gradients: this makes it their sum
            total += loss.detach()
        loss = self.accelerator.reduce(total).item()
        if not math.isfinite(loss):
            raise TrainingError(f"the loss is {loss} at step {step + 1} of {self.total}{self.culprit(inputs)}{self.advice()}")
        norm = self.accelerator.clip_grad_norm_(self.adapted.trainable().values(), self.budget.clip) if self.budget.clip else None
        rate = self.budget.learning_rate * self.budget.factor(step, self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        self.optimizer.step()
        self.optimizer.zero_grad()
        entry = {"step": step + 1, "loss": loss, "rate": rate, "tokens": tokens * processes, "seconds": perf_counter() - began}
        self.say(entry | ({"gradient": float(norm)} if norm is not None else {}))

    def apart(self, more: bool) -> AbstractContextManager:
        """Processes share their gradients with the last part of a batch only."""
        if self.sharded:
            self.model.set_requires_gradient_sync(not more)
        return self.accelerator.no_sync(self.model) if more and not self.sharded else nullcontext()

    def say(self, entry: dict[str, Any]) -> None:
        self.log.append(entry)
        if self.progress and self.accelerator.is_main_process:
            self.progress(entry | {"steps": self.total})

    def stopped(self) -> bool:
        """Whether evaluations no longer improve."""
        return self.budget.enough(self.log)

    @torch.no_grad()
    def evaluate(self, samples: Samples) -> tuple[dict[str, float], np.ndarray]:
        """(mean loss and score, score of each sample). Every process evaluates all of it."""
        self.model.eval()
        total, counted, scores = 0.0, 0, []
        for start in range(0, len(samples), EVALUATION_BATCH):
            inputs, labels = samples.take(np.arange(start, min(start + EVALUATION_BATCH, len(samples))))
            logits, target = self.logits(inputs), torch.as_tensor(labels, device=self.accelerator.device)
            total += self.objective.total(logits, target).item()
            counted += self.objective.counted(labels)
            scores.append(self.objective.scores(logits, target))
        each = np.concatenate(scores)
        return {"evaluation loss": total / counted, "score": float(each.mean())}, each

    def culprit(self, inputs: dict[str, np.ndarray]) -> str:
        """Where the first number that is not finite comes from."""
        found: list[str] = []

        def look(name: str):
            def hook(module, given, result):
                if isinstance(result, torch.Tensor) and not found and not torch.isfinite(result).all():
                    found.append(name)

            return hook

        hooks = [module.register_forward_hook(look(name)) for name, module in self.adapted.model.named_modules() if name]
        try:
            with torch.no_grad():
                self.logits(inputs)
        finally:
            for hook in hooks:
                hook.remove()
        return f": the first outputs that are not finite are those of {found[0]}" if found else ": the outputs of every layer are finite, the loss is not"

    def advice(self) -> str:
        kept = f"; the last good checkpoint is kept in {self.checkpoint}" if self.checkpoint and self.checkpoint.exists() else ""
        return f". A smaller learning rate often helps{kept}"


def shards_on_cpus(accelerator: Accelerator) -> bool:
    """Whether FSDP2 is asked for where accelerate knows it on accelerators only: there it is torch's own `fully_shard`."""
    return accelerator.distributed_type == DistributedType.MULTI_CPU and parse_flag_from_env("ACCELERATE_USE_FSDP")


def for_training(model: torch.nn.Module, budget: Budget) -> None:
    """Turns off what generating needs, and on gradient checkpointing where the budget asks for it. InputError where the model has none."""
    if getattr(getattr(model, "config", None), "use_cache", False):
        model.config.use_cache = False  # keys and values kept for later would also make attention see all packed documents
    if budget.recompute and not hasattr(model, "gradient_checkpointing_enable"):
        raise InputError(f"recompute: {type(model).__name__} has no gradient checkpointing; leave it out of the budget")
    if budget.recompute:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def compile_blocks(model: torch.nn.Module) -> None:
    """Compiles modules of one class in a list where they stand: the first one's code serves them all. InputError without a C++ compiler."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise InputError("compile: no C++ compiler: install g++ (Debian: apt-get install g++) or name one in the variable CXX") from error
    lists = [found for found in model.modules() if isinstance(found, torch.nn.ModuleList) and len({type(block) for block in found}) == 1]
    for module in [block for blocks in lists for block in blocks] or [model]:
        module.compile()


def optimizer(adapted: Adapted, budget: Budget, device: torch.device) -> torch.optim.Optimizer:
    groups = adapted.groups(budget.learning_rate)
    given = {"lr": budget.learning_rate, "weight_decay": budget.weight_decay}
    if budget.optimizer == "adamw" and all(p.dtype == torch.float32 for p in adapted.trainable().values()):
        return torch.optim.AdamW(groups, fused=True, **given)
    from bitsandbytes.optim import AdamW, AdamW8bit, PagedAdamW8bit

    if budget.optimizer == "adamw":
        return AdamW(groups, **given)  # moments of 16-bit parameters stay float32: torch rounds them to 16 bits, where they no longer move
    return (PagedAdamW8bit if device.type == "cuda" else AdamW8bit)(groups, **given)
