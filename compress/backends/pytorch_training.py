"""Training of PyTorch models in which every weight keeps what a recipe made of it: zeros, clusters, a number format.

What learns is a latent tensor per parameter. The model is called with the values that it stands for, pruned, clustered and rounded, in the parameters'
place (torch.func.functional_call); gradients pass rounding straight through (Bengio et al. 2013).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from compress.backends import training_loop
from compress.backends.pytorch_network import PytorchNetwork
from compress.backends.pytorch_objective import Objective, floats
from compress.backends.pytorch_parts import Part
from compress.backends.training_data import Batches
from compress.errors import InputError
from compress.formats import Activations, StaticActivations
from compress.training import Constraint, Course

MOMENTS = ("exp_avg", "exp_avg_sq")  # Adam's
AVERAGE = 0.99  # of the ranges of static activations: what stays of the old one at every step


class FakeQuantized(torch.autograd.Function):
    """Activations rounded to integers within [low, high]; the gradient is cut where the range cuts."""

    @staticmethod
    def forward(context, values: torch.Tensor, low: torch.Tensor, high: torch.Tensor, bits: int) -> torch.Tensor:
        steps = 2**bits - 1 if bits == 8 else 2**bits - 2  # 16 bits are symmetric
        scale = ((high - low) / steps).clamp(min=torch.finfo(torch.float32).tiny)
        zero = torch.round(-low / scale)
        context.save_for_backward((values >= low) & (values <= high))
        return (torch.clamp(torch.round(values / scale) + zero, 0, steps) - zero) * scale

    @staticmethod
    def backward(context, gradient: torch.Tensor):
        (inside,) = context.saved_tensors
        return gradient * inside, None, None, None


class Learner:
    """A model while it trains; its parts and ranges are all that changes from step to step."""

    def __init__(self, network: PytorchNetwork, course: Course):
        self.network, self.course = network.with_weights({}), course
        self.batches = Batches(course, network.inputs)
        self.objective = Objective(self.network, course, self.batches)
        strangers = [name for name in course.constraints if name not in network.names]
        if strangers:
            raise InputError(f"{course.name}: the model has no tensor {', '.join(map(repr, strangers))}")
        learning = {name for name, _ in self.network.model.named_parameters()}
        names = [name for name in network.names if name in learning or name in course.constraints]
        self.parts = [Part(name, self.network, course.constraints.get(name, Constraint())) for name in names]
        self.ranges = {p.name: torch.zeros(3) for p in self.parts if p.constraint.activations is not None}
        self.adam = torch.optim.Adam([latent for p in self.parts for latent in p.latents.values()])

    @property
    def device(self) -> torch.device:
        return self.parts[0].latent.device

    def state(self) -> dict[str, np.ndarray]:
        found = {}
        for p in self.parts:
            for k, latent in p.latents.items():
                moments = self.adam.state.get(latent, {})
                found[f"{p.name}|{k}"] = latent.detach().cpu().numpy()
                for what in MOMENTS:
                    found[f"{p.name}|{k}|{what}"] = moments[what].cpu().numpy() if moments else np.zeros(latent.shape, np.float32)
            if p.soft is not None:
                found[f"{p.name}|centroids"] = p.soft.centroids.cpu().numpy()
            if p.mask is not None:
                found[f"{p.name}|mask"] = p.mask.cpu().numpy()
        return found | {f"{name}|range": seen.numpy() for name, seen in self.ranges.items()}

    @torch.no_grad()
    def restore(self, step: int, arrays: dict[str, np.ndarray]) -> None:
        for p in self.parts:
            for k, latent in p.latents.items():
                latent.copy_(torch.from_numpy(arrays[f"{p.name}|{k}"]))
                moments = {what: torch.from_numpy(arrays[f"{p.name}|{k}|{what}"].copy()).to(self.device) for what in MOMENTS}
                self.adam.state[latent] = {"step": torch.tensor(float(step)), **moments}
            if p.soft is not None:
                p.soft.centroids = torch.from_numpy(arrays[f"{p.name}|centroids"].copy()).to(self.device)
            if p.mask is not None:
                p.mask = torch.from_numpy(arrays[f"{p.name}|mask"].copy()).to(p.latent.device)
        self.ranges = {name: torch.from_numpy(arrays[f"{name}|range"].copy()) for name in self.ranges}

    def step(self, step: int, rate: float, inputs: list[np.ndarray], labels: np.ndarray) -> float:
        self.adam.zero_grad()
        self.adam.param_groups[0]["lr"] = rate
        loss = self.objective({p.name: p.placed() for p in self.parts}, self.tensors(inputs), torch.from_numpy(labels).to(self.device))
        if math.isfinite(value := loss.item()):
            loss.backward()
            self.adam.step()
            for p in self.parts:
                p.hold()
        return value

    def tensors(self, inputs: list[np.ndarray]) -> list[torch.Tensor]:
        return [torch.from_numpy(array).to(self.device) for array in inputs]

    @torch.no_grad()
    def culprit(self, inputs: list[np.ndarray]) -> str | None:
        found: list[str] = []

        def look(path: str):
            return lambda module, inputs, outputs: found.append(path) if not all(t.isfinite().all() for t in floats(outputs)) else None

        leaves = [(path, module) for path, module in self.network.model.named_modules() if not list(module.children())]
        hooks = [module.register_forward_hook(look(path)) for path, module in leaves]
        torch.func.functional_call(self.network.model, {p.name: p.placed() for p in self.parts}, tuple(self.tensors(inputs)))
        for hook in hooks:
            hook.remove()
        return found[0] if found else None

    @contextmanager
    def rounding(self) -> Iterator[None]:
        """Inside, the first inputs of layers are rounded where constraints say so; several weights of a layer share its input."""
        owners = {id(p.module): p for p in self.parts if p.name in self.ranges}
        hooks = [p.module.register_forward_pre_hook(self.round_input(p.name, p.constraint.activations)) for p in owners.values()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def round_input(self, name: str, activations: Activations):
        def hook(module: nn.Module, inputs: tuple) -> tuple:
            if not inputs or not inputs[0].is_floating_point():
                return inputs
            values = inputs[0].float()
            low, high = values.detach().amin().clamp(max=0), values.detach().amax().clamp(min=0)
            if isinstance(activations, StaticActivations):
                low, high = self.averaged(name, low, high)
            if activations.bits == 16:
                high = torch.maximum(-low, high)
                low = -high
            return (FakeQuantized.apply(values, low, high, activations.bits).to(inputs[0].dtype), *inputs[1:])

        return hook

    def averaged(self, name: str, low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The moving average of a layer's range, which the moment's joins."""
        now, seen = torch.stack([low, high]).cpu(), self.ranges[name]
        ends = AVERAGE * seen[:2] + (1 - AVERAGE) * now if seen[2] else now
        self.ranges[name] = torch.cat([ends, torch.ones(1)])
        return ends[0].to(low.device), ends[1].to(low.device)


@contextmanager
def denormals_flushed() -> Iterator[None]:
    """Inside, numbers below 2^-126 count as 0: Adam's moments of pruned weights pass through them, where a CPU is many times slower."""
    before = bool((torch.tensor(1e-39) * torch.ones(())) == 0)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def train(network: PytorchNetwork, course: Course) -> tuple[PytorchNetwork, dict[str, np.ndarray]]:
    """A copy of the network with what its parameters learned, pruned and clustered as constrained, not yet rounded to their formats; scales that learned.

    The model runs in evaluation mode: statistics of norms stay, nothing is dropped out.
    InputError for data and constraints that do not fit; TrainingError for a loss that is NaN or infinite. An existing checkpoint of another training is
    replaced, with a warning.
    """
    learner = Learner(network, course)
    with learner.rounding(), denormals_flushed():
        training_loop.train(learner, {name: weight.value for name, weight in network.weights().items()})
    scales = {p.name: p.learned_scales() for p in learner.parts if p.growth is not None}
    return network.with_weights({p.name: p.canonical() for p in learner.parts}), scales
