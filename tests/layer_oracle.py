"""What a layer computes, from its canonical weight alone, in NumPy. Inputs and outputs are single samples, channels first."""

import numpy as np


def layer(kind: str, weight: np.ndarray, x: np.ndarray) -> np.ndarray:
    """A layer without bias.

    linear [in] to [out] · convolutions [channels, *size] of exactly the kernel's size to [out] · transposed convolutions [channels] (one
    pixel) to [out, *kernel] · embedding: entry numbers to rows
    """
    if kind == "embedding":
        return weight[x]
    if "conv" not in kind:
        return weight.astype(np.float64) @ x
    groups = len(x) // weight.shape[1]
    grouped = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:]).astype(np.float64)
    if kind.startswith("conv_transpose"):
        return np.einsum("goi...,gi->go...", grouped, x.reshape(groups, -1)).reshape(weight.shape[0], *weight.shape[2:])
    return np.einsum("goi,gi->go", grouped.reshape(*grouped.shape[:2], -1), x.reshape(groups, -1)).ravel()


def tolerance(kind: str, weight: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Bound of float32's rounding error: one epsilon for each product that is summed, of the size of the products."""
    if kind == "embedding":
        return np.zeros(())
    terms = weight[0].size
    return np.finfo(np.float32).eps * (terms + 1) * layer(kind, np.abs(weight), np.abs(x))
