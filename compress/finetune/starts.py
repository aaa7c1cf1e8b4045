"""Where the two matrices of a LoRA start, and the base that stays beside them; the same for the project's own layers and for PEFT's."""

import math
from hashlib import sha256
from typing import NamedTuple

import torch
from torch import nn

from compress.errors import InputError
from compress.finetune.lora import check_rank, frozen_copy
from compress.finetune.methods import LoRA
from compress.finetune.quantized import QuantizedLinear

ALTERNATIONS = 5  # of LoftQ, as in the paper's experiments


class Start(NamedTuple):
    """base, A [rank, inputs], B [outputs, rank]"""

    base: nn.Module
    A: torch.Tensor
    B: torch.Tensor


def start(linear: nn.Linear, method: LoRA, seed: int, name: str) -> Start:
    """Where the layer of this name starts. InputError for a rank above the layer's."""
    try:
        check_rank(method.rank, linear.in_features, linear.out_features)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    if method.start == "loftq":
        return loftq(linear, method)
    if method.start == "pissa":
        A, B = singular(linear.weight, method)
        linear = frozen_copy(linear)
        linear.weight = nn.Parameter((linear.weight - method.scale * B @ A).to(linear.weight.dtype), requires_grad=False)
    else:
        A = drawn(method.rank, linear.in_features, seed, name).to(linear.weight.device)
        B = A.new_zeros(linear.out_features, method.rank)
    return Start(linear if method.format is None else QuantizedLinear.of(linear, method.format), A, B)


def loftq(linear: nn.Linear, method: LoRA) -> Start:
    """Codes and matrices that take turns in coming nearer to the weight (Li et al. 2023, algorithm 1)."""
    weight = linear.weight.detach().float()
    lost = torch.zeros_like(weight)
    for _ in range(ALTERNATIONS):
        base = QuantizedLinear.storing(weight - lost, linear.bias, method.format)
        A, B = nearest(weight - base.weight, method)
        lost = method.scale * B @ A
    return Start(base, A, B)


def singular(weight: torch.Tensor, method: LoRA) -> tuple[torch.Tensor, torch.Tensor]:
    """A [rank, inputs] and B [outputs, rank] of the largest singular values, computed as PEFT computes them, so that both take the same off the weight."""
    left, values, right = torch.linalg.svd(weight.detach().float(), full_matrices=False)
    root = torch.diag(torch.sqrt(values[: method.rank] / method.scale))
    return root @ right[: method.rank], left[:, : method.rank] @ root


def nearest(matrix: torch.Tensor, method: LoRA) -> tuple[torch.Tensor, torch.Tensor]:
    """The same of a float32 [outputs, inputs] from the eigenvectors of its smaller Gram matrix: several times as fast, near enough for what is repeated."""
    if matrix.shape[0] > matrix.shape[1]:
        B, A = nearest(matrix.T, method)
        return A.T, B.T
    left = torch.linalg.eigh(matrix @ matrix.T).eigenvectors[:, -method.rank :]
    right = left.T @ matrix
    root = torch.linalg.norm(right, dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny).sqrt()
    return right / root / method.scale**0.5, left * root.T / method.scale**0.5


def drawn(rank: int, inputs: int, seed: int, name: str) -> torch.Tensor:
    """[rank, inputs] as nn.Linear draws its weights; follows from seed and name alone, so that the order of layers does not matter."""
    return nn.init.kaiming_uniform_(torch.empty(rank, inputs), a=math.sqrt(5), generator=generator(seed, name))


def generator(seed: int, name: str) -> torch.Generator:
    return torch.Generator().manual_seed(int.from_bytes(sha256(f"{seed} {name}".encode()).digest()[:7]))
