"""Differentiable k-means (Cho et al. 2022, "DKM: Differentiable K-Means Clustering Layer for Neural Network Compression")."""

import numpy as np
import torch

from compress.backends.training_data import clusters
from compress.training import Constraint

ROUNDS = 5  # of k-means in one forward pass, at most
SMALLEST = float(np.finfo(np.float32).tiny)
STILL = 1e-3  # centroids have converged that move by less than this share of the distance that the temperature stands for


class SoftClusters:
    """The centroids of a weight's tensor or of each of its channels, float32 [rows, clusters]. They follow the weights; pruned weights belong to none.

    temperature  of the attention, a square of distances: the constraint's, times the mean squared distance to the nearest centroid at the start
    """

    def __init__(self, value: np.ndarray, mask: np.ndarray | None, constraint: Constraint, device: torch.device):
        codes, centroids = clusters(value, constraint)
        kept = np.ones(value.shape, bool) if mask is None else mask
        distance = float(np.square(value - centroids[codes]).sum(where=kept, dtype=np.float64)) / max(1, int(kept.sum()))
        self.temperature = constraint.temperature * max(distance, SMALLEST)
        rows = len(value) if constraint.per_axis else 1
        self.mask = None if mask is None else torch.from_numpy(mask.reshape(rows, -1)).to(device)
        centroids = np.ascontiguousarray(centroids.reshape(rows, -1)[:, 0 if mask is None else 1 :])  # 0 is that of pruned weights
        self.centroids = torch.from_numpy(centroids).to(device)

    def distances(self, rows: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
        """Squared, [rows, values, clusters]."""
        return (rows[:, :, None] - centroids[:, None, :]).square()

    def attended(self, values: torch.Tensor) -> torch.Tensor:
        """Every value as the mean of centroids that it attends to. Gradients go through all rounds; the next pass starts from their last centroids."""
        rows, centroids = values.reshape(len(self.centroids), -1), self.centroids
        for _ in range(ROUNDS):
            before, attention = centroids, torch.softmax(-self.distances(rows, centroids) / self.temperature, -1)
            share = attention if self.mask is None else attention * self.mask[:, :, None]
            total = share.sum(1)
            centroids = torch.where(total > 0, (share * rows[:, :, None]).sum(1) / total.clamp(min=SMALLEST), before)
            if (centroids - before).detach().square().max() <= STILL**2 * self.temperature:
                break
        self.centroids = centroids.detach()
        attention = torch.softmax(-self.distances(rows, centroids) / self.temperature, -1)
        return (attention @ centroids[:, :, None]).reshape(values.shape)

    def nearest(self, values: torch.Tensor) -> torch.Tensor:
        """Every value as its nearest centroid."""
        rows = values.reshape(len(self.centroids), -1)
        return self.centroids.gather(1, self.distances(rows, self.centroids).argmin(-1)).reshape(values.shape)
