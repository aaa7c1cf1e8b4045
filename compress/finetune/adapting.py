"""A model made ready to learn by a method: what learns, what stays, in which format. The caller's model is never changed."""

import re
from collections import defaultdict
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import nn

from compress.finetune.methods import Bottleneck, Full, Method, Selective
from compress.finetune.quantized import QuantizedLinear
from compress.finetune.targets import learning, modules_of, selected

PARTS = re.compile(r"\.(default|modules_to_save|lora_\w+|lora|bottleneck|ia3_l)\b.*$")  # of an adapter, below the module that it is an adapter of
PEFT = re.compile(r"^base_model\.(model\.)?")
BLOCKS = re.compile(r"(?<=\.)\d+(?=\.|$)")


@dataclass(frozen=True, eq=False)
class Adapted:
    """A copy of a model, adapted.

    rates  by name of a parameter that learns: how many times the learning rate its own is (LoRA+); 1 where it says nothing
    notes  whose layers the adapters are, and what stays other than the method says, with the reason
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

    def sizes(self) -> list[tuple[str, int, bool]]:
        """(name, numbers, whether they learn) of every parameter and every weight that is stored as codes."""
        found = [(name, p.numel(), p.requires_grad) for name, p in self.model.named_parameters() if ".original_module." not in name]
        stored = [(f"{n}.weight", m.in_features * m.out_features, False) for n, m in self.model.named_modules() if isinstance(m, QuantizedLinear)]
        return found + stored


class Row(NamedTuple):
    """A module's parameters (weights that are stored as codes among them): how many learn, of how many."""

    module: str
    learn: int
    all: int

    @property
    def share(self) -> float:
        return self.learn / self.all


def adapt(model: nn.Module, method: Method, seed: int = 0) -> Adapted:
    """The model ready to learn: weights that do not learn share the caller's storage, what learns is a copy. InputError for names that match nothing.

    Adapters of Hugging Face models are PEFT's, those of other models, and bottlenecks, which PEFT does not have, the project's own.
    """
    if isinstance(method, Full):
        return Adapted(learning(model, [name for name, _ in model.named_parameters()]), method)
    if isinstance(method, Selective):
        return Adapted(learning(model, selected(model, method.train), modules_of(model, method.also, "also")), method)
    if from_hugging_face(model) and not isinstance(method, Bottleneck):
        from compress.finetune.hugging_face import adapt_by_peft

        return adapt_by_peft(model, method, seed)
    from compress.finetune.by_hand import adapt_by_hand

    reason = "PEFT has no bottlenecks" if isinstance(method, Bottleneck) else f"{type(model).__name__} is no transformers.PreTrainedModel"
    return adapt_by_hand(model, method, seed, f"adapters are this project's own layers: {reason}")


def from_hugging_face(model: nn.Module) -> bool:
    return any(base.__name__ == "PreTrainedModel" and base.__module__.startswith("transformers.") for base in type(model).__mro__)


def trainable_table(adapted: Adapted) -> list[Row]:
    """A row for each kind of module that learns, its numbers (of blocks) written as *, largest first, and one for the whole model."""
    learn, held = defaultdict(int), defaultdict(int)
    names = {PARTS.sub("", name.rpartition(".")[0]) or name for name in adapted.trainable()}
    for name, size, learns in adapted.sizes():
        owner = max((n for n in names if f"{name}.".startswith(f"{n}.")), key=len, default=None)
        for row in ["all"] if owner is None else ["all", BLOCKS.sub("*", PEFT.sub("", owner))]:
            held[row] += size
            learn[row] += size * learns
    rows = [Row(row, learn[row], held[row]) for row in held]
    return sorted(rows, key=lambda row: (row.module == "all", -row.learn))
