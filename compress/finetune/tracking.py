"""What the memory of a training step is for: storages that are alive, by line, at the peak of each phase. The same for tensors with and without data."""

import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from compress.finetune.adapting import Adapted
from compress.finetune.methods import WithBase
from compress.finetune.targets import output_head

LINES = ("parameters", "quantization constants", "adapters", "gradients", "first moments", "second moments", "activations", "logits", "workspace")
Phase = tuple[str, int | None]  # forward, loss, backward or optimizer, and in which block


@dataclass(eq=False)
class Held:
    """A storage: bytes, and the line that it is found to belong to."""

    size: int
    line: str
    alive: weakref.ref = field(repr=False)


class Tracker(TorchDispatchMode):
    """Follows whatever step runs inside it; `peaks` has each phase's bytes by line at its largest total.

    torch.distributed._tools.mem_tracker.MemTracker counts the same storages; logits, what a backward pass needs and what is only passing are one to it.
    """

    def __init__(self, adapted: Adapted, optimizer: torch.optim.Optimizer):
        super().__init__()
        self.adapted, self.optimizer = adapted, optimizer
        self.live: dict[int, Held] = {}
        self.total, self.phase, self.loss, self.forwards = 0, ("forward", None), False, True
        self.found: dict[Phase, tuple[int, list[Held]]] = {}
        for line, tensor in kept(adapted):
            self.hold(tensor, line)

    def hold(self, tensor: torch.Tensor, line: str | None = None) -> None:
        """Counts a tensor's storage once; the last line that is said for it holds."""
        storage = tensor.untyped_storage()
        place = id(storage)
        if place not in self.live:
            size = storage.nbytes()
            self.live[place] = Held(size, "logits" if self.loss else "workspace", weakref.ref(storage, lambda _: self.release(place)))
            self.total += size
        if line:
            self.live[place].line = line

    def release(self, place: int) -> None:
        self.total -= self.live.pop(place).size

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor):
                self.hold(tensor)
        if self.total > self.found.get(self.phase, (0,))[0]:
            self.found[self.phase] = self.total, list(self.live.values())
        return result

    @property
    def peaks(self) -> dict[Phase, dict[str, int]]:
        """By phase, bytes by line. Lines are those that storages turned out to belong to, also after the peak."""
        sums = {phase: dict.fromkeys(LINES, 0) for phase in self.found}
        for phase, (_, held) in self.found.items():
            for one in held:
                sums[phase][one.line] += one.size
        return sums

    def __enter__(self):
        model, last = self.adapted.model, len(blocks(self.adapted.model)) - 1
        self.handles = [
            model.register_forward_pre_hook(self.starts),
            model.register_forward_hook(self.ends),
            self.optimizer.register_step_pre_hook(lambda *_: self.enter(("optimizer", None))),
            self.optimizer.register_step_post_hook(lambda *_: self.name_moments()),
            *(p.register_post_accumulate_grad_hook(lambda p: self.hold(p.grad, "gradients")) for p in self.adapted.trainable().values()),
        ]
        for i, block in enumerate(blocks(model)):
            self.handles += [block.register_forward_pre_hook(self.block_starts(i)), block.register_forward_hook(self.block_ends(i, i == last))]
        if head := output_head(model):
            self.handles.append(model.get_submodule(head).register_forward_pre_hook(self.head_starts))
        self.name_moments()
        return super().__enter__()

    def __exit__(self, *raised):
        for handle in self.handles:
            handle.remove()
        return super().__exit__(*raised)

    def enter(self, phase: Phase) -> None:
        self.phase, self.loss = phase, False

    def starts(self, *_: Any) -> None:
        self.forwards = True
        self.enter(("forward", None))

    def ends(self, _module, _inputs, result: Any) -> None:
        for tensor in learned(result):
            tensor.register_hook(self.turns)

    def turns(self, _gradient: torch.Tensor) -> None:
        """The backward pass has begun: what the forward pass left alive, it needs."""
        self.forwards = False
        for held in self.live.values():
            held.line = "activations" if held.line == "workspace" else held.line

    def block_starts(self, i: int):
        return lambda *_: self.enter(("forward", i)) if self.forwards else None  # a block that is computed again belongs to the backward pass

    def block_ends(self, i: int, last: bool):
        def hook(_module, _inputs, result: Any) -> None:
            if self.forwards:
                for tensor in learned(result):
                    tensor.register_hook(lambda _: self.enter(("backward", i)))
                if last:
                    self.enter(("loss", None))

        return hook

    def head_starts(self, _module, inputs: Any) -> None:
        """Until the gradient of the head's input is known, all that is made is logits, or made of them."""
        self.loss = True
        for tensor in learned(inputs):
            tensor.register_hook(lambda _: setattr(self, "loss", False))

    def name_moments(self) -> None:
        for line, tensor in moments(self.optimizer):
            self.hold(tensor, line)


def learned(result: Any) -> Iterator[torch.Tensor]:
    return (t for t in tree_iter(result) if isinstance(t, torch.Tensor) and t.requires_grad)


def blocks(model: nn.Module) -> list[nn.Module]:
    """The modules of the longest ModuleList, which are a model's repeated layers."""
    return list(max((m for m in model.modules() if isinstance(m, nn.ModuleList)), key=len, default=()))


def kept(adapted: Adapted) -> Iterator[tuple[str, torch.Tensor]]:
    """(line, tensor) of all that a model holds between two steps."""
    beside = isinstance(adapted.method, WithBase)
    for parameter in adapted.model.parameters():
        yield "adapters" if beside and parameter.requires_grad else "parameters", parameter
    for module in adapted.model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            yield "quantization constants" if hasattr(module, "codes") and name != "codes" else "parameters", buffer


def moments(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, torch.Tensor]]:
    """(line, tensor) of an optimizer's state: torch calls the second moments exp_avg_sq, bitsandbytes state2, its scales absmax2."""
    for state in optimizer.state.values():
        for name, value in state.items():
            if isinstance(value, torch.Tensor):
                yield "second moments" if name.endswith(("sq", "2")) else "first moments", value
