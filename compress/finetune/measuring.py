"""What a training really takes: its peak, what the model and the optimizer hold of it, and what the allocator and the process add."""

import ctypes
import gc
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from compress.finetune.adapting import Adapted
from compress.finetune.memory import Memory
from compress.finetune.tracking import LINES, kept, moments

LIBC = ctypes.CDLL(None)
STEP = ("activations", "logits", "workspace")  # what passes within a step cannot be told apart from outside


@dataclass(frozen=True)
class Measured:
    """Bytes: the peak over what was there before the model, and what it is made of.

    lines      counted from the model's and the optimizer's own tensors; gradients where the peak is after the backward pass
    allocator  freed tensors' memory that malloc has not given back, at the peak; 0 on a GPU, whose allocator is asked for tensors alone
    code       libraries that were loaded meanwhile
    """

    peak: int
    lines: dict[str, int]
    allocator: int
    code: int

    @property
    def step(self) -> int:
        """What is left: activations, logits, workspace, and what nobody counts."""
        return self.peak - sum(self.lines.values()) - self.allocator - self.code

    def beside(self, predicted: Memory) -> dict[str, Any]:
        """The report's entry: prediction and measurement by line, and the rest by name."""
        expected = {line: predicted.lines[line] for line in LINES if line not in STEP} | {" + ".join(STEP): sum(predicted.lines[line] for line in STEP)}
        return {
            "lines": {line: {"predicted": size, "measured": self.lines.get(line, self.step)} for line, size in expected.items()},
            "peak": {"predicted": predicted.total, "measured": self.peak},
            "predicted / measured": predicted.total / self.peak,
            "not predicted": {"freed tensors that malloc keeps": self.allocator, "libraries loaded meanwhile": self.code},
        }


class Meter:
    """Measures a training on one device from its making on. Costs nothing but a look at counters twice a step."""

    def __init__(self, adapted: Adapted, optimizer: torch.optim.Optimizer):
        self.adapted, self.optimizer, self.learned = adapted, optimizer, list(adapted.trainable().values())
        self.cuda = next(adapted.model.parameters()).device.type == "cuda"
        self.lines = dict.fromkeys((line for line in LINES if line not in STEP), 0)
        self.give_back()
        self.before, self.files = self.held() - storages(t for _, t in kept(adapted)), 0 if self.cuda else status("RssFile")
        self.at_most = (0, 0, 0, False)  # held, kept by malloc, code, whether gradients are there
        self.reset()
        adapted.model.register_forward_hook(lambda *_: self.look(False))
        optimizer.register_step_post_hook(lambda *_: self.look(True))

    def give_back(self) -> None:
        """What is freed already is not there."""
        gc.collect()
        torch.cuda.empty_cache() if self.cuda else LIBC.malloc_trim(0)

    def reset(self) -> None:
        """Forgets the peak."""
        torch.cuda.reset_peak_memory_stats() if self.cuda else Path("/proc/self/clear_refs").write_text("5")

    def held(self) -> int:
        return torch.cuda.memory_allocated() if self.cuda else status("VmRSS")

    def look(self, learned: bool) -> None:
        if learned:
            groups: dict[str, list[torch.Tensor]] = {line: [] for line in self.lines}
            for line, tensor in (*kept(self.adapted), *moments(self.optimizer), *(("gradients", p.grad) for p in self.learned if p.grad is not None)):
                groups[line].append(tensor)
            self.lines = {line: storages(tensors) for line, tensors in groups.items()}
        now = (self.held(), 0, 0, learned) if self.cuda else (self.held(), freed(), status("RssFile") - self.files, learned)
        self.at_most = max(self.at_most, now)

    def measured(self) -> Measured:
        _, allocator, code, gradients = self.at_most
        peak = (torch.cuda.max_memory_allocated() if self.cuda else status("VmHWM")) - self.before
        return Measured(peak, self.lines | ({} if gradients else {"gradients": 0}), allocator, code)


def unmeasured(device: torch.device) -> str:
    """Why this machine does not tell what a training takes; empty where it does."""
    if device.type == "cuda":
        return ""
    if device.type != "cpu" or not hasattr(LIBC, "mallinfo2") or not os.access("/proc/self/clear_refs", os.W_OK):
        return f"memory is measured on CUDA, and on the CPU under Linux with glibc 2.33 or later, not on {device.type} here"
    return ""


def storages(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the storages of tensors, each once."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def status(name: str) -> int:
    """Bytes that Linux says of this process: VmRSS is resident, VmHWM was at most, RssFile of it is files."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


class Mallinfo(ctypes.Structure):
    """struct mallinfo2 of malloc.h"""

    _fields_ = [(name, ctypes.c_size_t) for name in ["arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"]]


def freed() -> int:
    """Bytes that glibc's malloc holds and nobody uses."""
    LIBC.mallinfo2.restype = Mallinfo
    return LIBC.mallinfo2().fordblks
