"""The loss of a PyTorch model's outputs, alone or with a teacher's."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional

from compress.backends.pytorch_network import PytorchNetwork, copies, flatten
from compress.backends.training_data import Batches, check_features, check_labels, feature_layers
from compress.training import Course


class Objective:
    """(parameters by name, inputs in the model's order, labels) -> scalar loss."""

    def __init__(self, network: PytorchNetwork, course: Course, batches: Batches):
        self.network, self.course, self.distill = network, course, course.budget.distill
        self.features = feature_layers(course, [name for name, _ in network.model.named_modules() if name])
        with torch.no_grad(), tapped(network.model, self.features) as found:
            check_labels(course, batches, flatten(network.model(*copies(network.example)))[0])
        if self.features:
            with torch.no_grad(), tapped(course.teacher.model, self.features) as taught:
                course.teacher.model(*copies(network.example))
            check_features(course, found, taught)

    def __call__(self, parameters: Mapping[str, torch.Tensor], tensors: list[torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
        with tapped(self.network.model, self.features) as found:
            outputs = torch.func.functional_call(self.network.model, dict(parameters), copies(tensors))
        first, task = flatten(outputs)[0].float(), self.course.data.loss
        if task == "cross_entropy":
            loss = functional.cross_entropy(first.reshape(-1, first.shape[-1]), labels.reshape(-1))
        else:
            loss = functional.mse_loss(first, labels.float()) if task == "mse" else task(outputs, labels)
        return loss if self.distill is None else self.distilled(loss, first, found, tensors)

    def distilled(self, loss: torch.Tensor, first: torch.Tensor, found: Mapping[str, list[torch.Tensor]], tensors: list[torch.Tensor]) -> torch.Tensor:
        teacher, weight, temperature = self.course.teacher.model, self.distill.weight, self.distill.temperature
        with torch.no_grad(), tapped(teacher, self.features) as taught:
            logits = flatten(teacher(*copies(tensors)))[0].float() / temperature
        divergence = functional.kl_div(functional.log_softmax(first / temperature, -1), logits.log_softmax(-1), reduction="none", log_target=True)
        loss = (1 - weight) * loss + weight * temperature**2 * divergence.sum(-1).mean()
        errors = [functional.mse_loss(a.float(), b.float()) for name in self.features for a, b in zip(found[name], taught[name], strict=True)]
        return loss + self.distill.feature_weight * torch.stack(errors).mean() if errors else loss


@contextmanager
def tapped(model: nn.Module, names: Iterable[str]) -> Iterator[dict[str, list[torch.Tensor]]]:
    """Inside, the floating-point outputs of the named modules are collected, in the order of their calls."""
    found: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    hooks = [model.get_submodule(name).register_forward_hook(lambda module, inputs, outputs, name=name: found[name].extend(floats(outputs))) for name in found]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def floats(outputs) -> list[torch.Tensor]:
    return [t for t in torch.utils._pytree.tree_leaves(outputs) if isinstance(t, torch.Tensor) and t.is_floating_point()]
