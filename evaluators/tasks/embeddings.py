"""A vector for each sample: the model's first output. Samples of the same label [samples] belong together; without labels only likeness to float32 is scored.

Retrieval asks, for each sample as a query, how high the nearest of its own label stands among all other samples by cosine. A tie counts against it, so
embeddings that are all equal find nothing. Queries share what they search in, so an interval over queries is that of other queries to these very samples.
"""

import numpy as np

from compress.errors import InputError
from evaluators.results import Metric
from evaluators.tasks import Kept, Scored, classes, finite, once

RECALL = {k: Metric(f"recall@{k}", "right", "%", noun="sample") for k in (1, 10)}
RANK = Metric("mean reciprocal rank", noun="sample")
COSINE = Metric("cosine similarity", "likeness", noun="embedding")
ANSWERS = "embeddings"
ROWS = 256  # queries at a time


def check(labels: np.ndarray | None) -> np.ndarray | None:
    if labels is None:
        return None
    found = classes(labels, ("samples",))
    if len(np.unique(found)) == len(found):
        raise InputError("no two samples have the same label, so nothing can be retrieved: give none, or those of samples that belong together")
    return found


def keep(outputs: list[np.ndarray], label: np.ndarray | None) -> dict[str, np.ndarray]:
    """`embeddings` float32 [size]."""
    return {"embeddings": finite(np.array(outputs[0], np.float32).ravel(), "cosine")}


def scores(kept: Kept, float32: Kept | None, labels: np.ndarray | None) -> list[Scored]:
    found, unit = [], units(kept["embeddings"])
    if labels is not None:
        rank = ranks(unit, labels)
        has = np.isfinite(rank).astype(np.float64)
        found += [Scored(RECALL[1], rank == 1, has), Scored(RANK, 1 / rank, has), Scored(RECALL[10], rank <= 10, has)]
    if float32 is not None:
        found.append(Scored(COSINE, (unit * units(float32["embeddings"])).sum(1), once(unit)))
    return found


def units(vectors: np.ndarray) -> np.ndarray:
    """float64 [samples, size] of length 1; zeros stay zeros."""
    exact = vectors.astype(np.float64)
    lengths = np.linalg.norm(exact, axis=1, keepdims=True)
    return exact / np.where(lengths == 0, 1, lengths)


def ranks(unit: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """float64 [samples]: the place of the nearest other sample of the same label, from 1; infinity where there is none."""
    found = np.full(len(unit), np.inf)
    for start in range(0, len(unit), ROWS):
        rows = np.arange(start, min(start + ROWS, len(unit)))
        near = unit[rows] @ unit.T
        own = labels[rows, None] == labels
        near[np.arange(len(rows)), rows] = -np.inf
        best = np.where(own, near, -np.inf).max(1)
        found[rows] = np.where(np.isfinite(best), 1 + ((near >= best[:, None]) & ~own).sum(1), np.inf)
    return found


def notes(kept: Kept, labels: np.ndarray | None) -> tuple[str, ...]:
    if labels is None:
        return ()
    _, place, count = np.unique(labels, return_inverse=True, return_counts=True)
    alone = int((count[place] == 1).sum())
    return (f"{alone} of {len(labels)} samples are the only ones of their label: they are searched through and ask for nothing",) if alone else ()
