"""What becomes of an adapter when it is merged: four models from one fine-tuning, side by side.

An adapter that learned on a stored base makes up for what storing lost: merged into the original it is another model, and storing the sum may round it away.
"""

import copy
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from compress.errors import InputError
from compress.finetune.adapting import PEFT, Adapted
from compress.finetune.batches import Samples
from compress.finetune.layers import LinearWithDoRA, LinearWithIA3
from compress.finetune.lora import LinearWithLoRA
from compress.finetune.losses import Objective, outputs
from compress.finetune.methods import IA3, LoRA
from compress.finetune.quantized import QuantizedLinear
from compress.finetune.targets import replace
from compress.finetune.tasks import Task

BATCH = 16
PLACE = re.compile(r"\.(base_layer|linear)$")  # of a base inside the adapter that it belongs to
ABOUT = {
    "adapter": "the adapter on its stored base, as it learned",
    "decoded": "merged into the base as it is decoded: the same numbers, in float",
    "original": "merged into the original weights",
    "stored": "merged into the decoded base and stored in its format again",
}


Base = Callable[[str, QuantizedLinear], torch.Tensor]


def merged(adapted: Adapted, base: Base = lambda name, layer: layer.weight, stored: bool = False) -> nn.Module:
    """A copy of what was adapted, in its own shape, whose plain linear layers compute what adapters and base do together.

    base    a stored layer's weight, by its name in the model that was adapted; as it is decoded, unless another is given
    stored  layers whose base was stored are stored again, in the same format

    InputError for adapters that are no change of a weight.
    """
    if not isinstance(adapted.method, LoRA | IA3):
        raise InputError(f"only adapters that change weights can be merged, not {adapted.method.method}")
    found = copy.deepcopy(adapted.model, {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in adapted.model.parameters()})
    names = []
    for place, layer in [(n, m) for n, m in found.named_modules() if isinstance(m, QuantizedLinear)]:
        names.append(PLACE.sub("", PEFT.sub("", place)))
        replace(found, place, linear(base(names[-1], layer), layer.bias))
    if hasattr(found, "merge_and_unload"):
        for layer in found.modules():
            vars(layer).pop("merge", None)  # refused on a stored base, which is no longer there
        found = found.merge_and_unload()
    else:
        for place, layer in [(n, m) for n, m in found.named_modules() if isinstance(m, LinearWithLoRA | LinearWithDoRA | LinearWithIA3)]:
            replace(found, place, linear(layer.weight.detach(), layer.bias))
    for name in names if stored else ():
        replace(found, name, QuantizedLinear.of(found.get_submodule(name), adapted.method.format))
    return found.eval()


def linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    made.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        made.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return made


def variants(adapted: Adapted, model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(name, model) of every way to merge an adapter of a stored base that means something; one after another, so that one is in memory at a time.

    model  the one that was adapted. Where an adapter did not start at zero, its base is not that model's weights, and nothing is merged into those.
    """
    yield "adapter", adapted.model
    yield "decoded", merged(adapted)
    if isinstance(adapted.method, IA3) or adapted.method.start == "zero":
        yield "original", merged(adapted, lambda name, layer: model.get_submodule(name).weight.detach().float())
    yield "stored", merged(adapted, stored=True)


def compare_merges(adapted: Adapted, model: nn.Module, test: Samples, task: Task) -> list[dict[str, Any]]:
    """A row for each variant: name, about, score, scores of each sample, and KL(adapter || variant) of the outputs in nats, the mean over predictions.

    Empty for methods without a stored base: there a merge only rounds.
    """
    if not isinstance(adapted.method, LoRA | IA3) or adapted.method.format is None:
        return []
    return [{"name": name, "about": ABOUT[name]} | judged(variant, adapted.model, test, Objective(task)) for name, variant in variants(adapted, model)]


@torch.no_grad()
def judged(variant: nn.Module, reference: nn.Module, test: Samples, objective: Objective) -> dict[str, Any]:
    """Both models run on each batch, so that logits of one batch are in memory at a time."""
    reference.eval()
    variant.eval()
    device = next(reference.parameters()).device
    scores, divergences, counts = [], [], []
    for start in range(0, len(test), BATCH):
        inputs, labels = test.take(np.arange(start, min(start + BATCH, len(test))))
        given, target = {name: torch.as_tensor(array, device=device) for name, array in inputs.items()}, torch.as_tensor(labels, device=device)
        found = outputs(variant(**given))
        scores.append(objective.scores(found, target))
        if objective.task != "regression":
            divergences.append(kl(objective.predictions(outputs(reference(**given)), target), objective.predictions(found, target)))
            counts.append(objective.counted(labels))
    each = np.concatenate(scores)
    return {"score": float(each.mean()), "scores": each.tolist(), "kl": float(np.average(divergences, weights=counts)) if counts else None}


def kl(reference: torch.Tensor, other: torch.Tensor) -> float:
    """Mean over predictions of KL(reference || other), nats, of logits [predictions, classes]."""
    p, q = (functional.log_softmax(x.float(), -1) for x in (reference, other))
    return functional.kl_div(q, p, log_target=True, reduction="batchmean").item()
