"""Parameters of a PyTorch model that learn, each under the constraint that a recipe puts on it: zeros, clusters, a number format."""

import numpy as np
import torch

from compress.backends.pytorch_dkm import SoftClusters
from compress.backends.pytorch_network import PytorchNetwork, canonical, framework_layout, tensor_of
from compress.backends.torch_numerics import stored
from compress.backends.training_data import check_constraint, clusters
from compress.encoding import encode
from compress.formats import Format, IntFormat
from compress.numerics import reach
from compress.training import Constraint


class Rounded(torch.autograd.Function):
    """A tensor as its format holds it, by the core's own arithmetic: the codes are those of the exported file."""

    @staticmethod
    def forward(context, values: torch.Tensor, fmt: Format) -> torch.Tensor:
        if values.device.type == "cpu":  # the core's fused loops
            return torch.from_numpy(encode(values.detach().contiguous().numpy(), fmt).decode())
        return encode(values.detach().contiguous(), fmt).decode()

    @staticmethod
    def backward(context, gradient: torch.Tensor):
        return gradient, None


def at_scales(values: torch.Tensor, scales: torch.Tensor, fmt: IntFormat) -> torch.Tensor:
    """Canonical values as integers hold them by these stored scales [n]; with the gradients of LSQ (Esser et al. 2020, equations 2 to 4) for both."""
    scaled = (values.reshape(len(scales), -1) / scales[:, None]).clamp(*fmt.code_range)
    codes = straight(scaled, scaled.round())
    return (codes * scales[:, None]).reshape(values.shape)


def straight(values: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
    """The rounded values, exactly, with the gradient of those before: the difference of a number to one that it is rounded to is a float."""
    return values + (rounded - values).detach()


class Part:
    """A parameter that learns.

    latent   what Adam moves, float32: canonical values of the parameter, or centroids [clusters] or [out * clusters]
    mask     bool in canonical layout, True where the weight may differ from 0; None for everywhere
    codes    int64, the centroid of each value; None where nothing is clustered or weights choose their clusters
    soft     the clusters that they choose from; None where they do not
    first    learned scales as they start, float32 [scales]; None where none learn
    growth   logarithm of what they are multiplied by: Adam's steps are relative to them then, and they stay positive
    """

    def __init__(self, name: str, network: PytorchNetwork, constraint: Constraint):
        self.name, self.constraint = name, constraint
        self.module, self.kind = network.owner(network.names[name])
        tensor = tensor_of(network.model, name)
        self.dtype, device = tensor.dtype, tensor.device
        value = np.array(canonical(tensor.detach().float().cpu().numpy(), self.module, self.kind))
        check_constraint(name, constraint, value.shape)
        mask = constraint.codes != 0 if constraint.zero else constraint.mask
        self.mask = None if mask is None else torch.from_numpy(mask).to(device)
        self.codes = self.soft = None
        if constraint.temperature is not None:
            self.soft = SoftClusters(value, mask, constraint, device)
        elif constraint.codes is not None:
            codes, value = clusters(value, constraint)
            self.codes = torch.from_numpy(codes).to(device)
        if self.codes is None and constraint.mask is not None:
            value = np.where(constraint.mask, value, np.float32(0))
        self.latent = torch.from_numpy(value).to(device).requires_grad_(True)
        self.first = self.growth = None
        if constraint.learned:
            scales = encode(self.canonical(), constraint.format).scales if constraint.scales is None else constraint.scales
            self.first = torch.from_numpy(scales.ravel()).to(device)
            self.growth = torch.zeros_like(self.first, requires_grad=True)

    @property
    def latents(self) -> dict[str, torch.Tensor]:
        """All that learns, by what it is."""
        return {"latent": self.latent} if self.growth is None else {"latent": self.latent, "growth": self.growth}

    def values(self, training: bool = False) -> torch.Tensor:
        """Canonical latent values: pruned and clustered, not rounded. In training, weights that choose their clusters are still between them."""
        found = self.latent if self.codes is None else self.latent[self.codes]
        if self.soft is not None:
            found = self.soft.attended(found) if training else self.soft.nearest(found)
        return found if self.mask is None else torch.where(self.mask, found, 0.0)

    def placed(self) -> torch.Tensor:
        """What the model computes with, in its own layout."""
        found, fmt = self.values(training=True), self.constraint.format
        if self.growth is not None:
            found = at_scales(found, self.scales(), fmt)
        elif fmt is not None:
            found = Rounded.apply(found, fmt)
        return framework_layout(found, self.module, self.kind).to(self.dtype)

    def canonical(self) -> np.ndarray:
        return self.values().detach().cpu().numpy()

    def scales(self) -> torch.Tensor:
        """Learned scales [scales] as the format stores them."""
        found = self.first * self.growth.exp()
        return straight(found, stored(found, self.constraint.format.scale_dtype, self.constraint.format.small_scale))

    def learned_scales(self) -> np.ndarray:
        """As Encoded.scales."""
        return self.scales().detach().cpu().numpy().reshape(reach.scale_shape(tuple(self.values().shape), self.constraint.format.granularity))

    @torch.no_grad()
    def hold(self) -> None:
        """Puts pruned weights back to 0 after a step."""
        if self.codes is None and self.mask is not None:
            self.latent.copy_(torch.where(self.mask, self.latent, 0.0))

    def remask(self, mask: np.ndarray) -> None:
        self.mask = torch.from_numpy(np.array(mask)).to(self.latent.device)
        self.hold()
