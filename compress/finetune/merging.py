"""What becomes of an adapter when it is merged: four models from one fine-tuning, side by side.

An adapter that learned on a stored base makes up for what storing lost: merged into the original it is another model, and storing the sum may round it away.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from compress.backends.torch_numerics import encode
from compress.errors import InputError
from compress.finetune.adapting import Adapted, replace
from compress.finetune.batches import Samples
from compress.finetune.lora import LinearWithLoRA
from compress.finetune.losses import Objective, outputs
from compress.finetune.methods import LoRA
from compress.finetune.tasks import Task

BATCH = 16
ABOUT = {
    "adapter": "the adapter on its stored base, as it learned",
    "decoded": "merged into the base as it is decoded: the same numbers, in float",
    "original": "merged into the original weights",
    "stored": "merged into the decoded base and stored in its format again",
}


def merged(adapted: Adapted, base: "Callable[[str, nn.Module], torch.Tensor] | None" = None, stored: bool = False) -> nn.Module:
    """A copy with plain linear layers that compute what the adapters and the rest do together.

    base    gives each adapted layer's weight; None: its own, decoded
    stored  round the sum to the layer's own format
    """
    learned = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in adapted.model.parameters()}
    found = copy.deepcopy(adapted.model, learned)
    for name, layer in adapters(found):
        with torch.no_grad():
            weight = (layer.linear.weight if base is None else base(name, layer)) + layer.lora.delta()
            if stored:
                weight = encode(weight, adapted.method.format).decode()
        plain = nn.Linear(layer.linear.in_features, layer.linear.out_features, bias=layer.linear.bias is not None, device="meta")
        plain.weight = nn.Parameter(weight, requires_grad=False)
        if layer.linear.bias is not None:
            plain.bias = layer.linear.bias
        replace(found, name, plain)
    return found.eval()


def adapters(model: nn.Module) -> Iterator[tuple[str, LinearWithLoRA]]:
    return ((name, module) for name, module in list(model.named_modules()) if isinstance(module, LinearWithLoRA))


def variants(adapted: Adapted, model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(name, model) of every way to merge that means something; one after another, so that one is in memory at a time.

    model  the one that was adapted. Where adapters do not start at zero, the base is not its weights, and nothing is merged into them.
    """
    if not isinstance(adapted.method, LoRA):
        raise InputError(f"only low-rank adapters can be merged, not {adapted.method.method}")
    yield "adapter", adapted.model
    yield "decoded", merged(adapted)
    if adapted.method.start == "zero":
        yield "original", merged(adapted, lambda name, layer: model.get_submodule(name).weight.detach().float())
    if adapted.method.format is not None:
        yield "stored", merged(adapted, stored=True)


def compare_merges(adapted: Adapted, model: nn.Module, test: Samples, task: Task) -> list[dict[str, Any]]:
    """A row for each variant: name, about, score, scores of each sample, and KL(adapter || variant) of the outputs in nats, the mean over predictions.

    Empty for methods without a stored base: there a merge only rounds.
    """
    if not isinstance(adapted.method, LoRA) or adapted.method.format is None:
        return []
    return [{"name": name, "about": ABOUT[name]} | judged(variant, adapted.model, test, Objective(task)) for name, variant in variants(adapted, model)]


@torch.no_grad()
def judged(variant: nn.Module, reference: nn.Module, test: Samples, objective: Objective) -> dict[str, Any]:
    """Both models run on each batch, so that logits of one batch are in memory at a time."""
    reference.eval(), variant.eval()
    device = next(reference.parameters()).device
    scores, divergences, counts = [], [], []
    for start in range(0, len(test), BATCH):
        inputs, labels = test.take(np.arange(start, min(start + BATCH, len(test))))
        given, target = {name: torch.as_tensor(array, device=device) for name, array in inputs.items()}, torch.as_tensor(labels, device=device)
        found = outputs(variant(**given))
        scores.append(objective.scores(found, target))
        if objective.task != "regression":
            divergences.append(kl(outputs(reference(**given)), found))
            counts.append(len(labels))
    each = np.concatenate(scores)
    return {"score": float(each.mean()), "scores": each.tolist(), "kl": float(np.average(divergences, weights=counts)) if counts else None}


def kl(reference: torch.Tensor, other: torch.Tensor) -> float:
    """Mean over predictions of KL(reference || other), nats."""
    p, q = (functional.log_softmax(x.float().flatten(0, -2), -1) for x in (reference, other))
    return functional.kl_div(q, p, log_target=True, reduction="batchmean").item()
