"""The optimal 16-entry codebook of 10 million weights: time, memory and what it misses of the optimum, beside scikit-learn's k-means and TFMOT's clustering."""

import ctypes
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np

from benchmarks.ratio import interleaved, timed
from compress.numerics.kmeans import optimal_codebooks

WEIGHTS, ENTRIES = 10_000_000, 16
PEER_WEIGHTS = 1_000_000  # for scikit-learn, whose time grows with the weights and which copies them


def gaussian(count: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(count, np.float32)


def distortion(values: np.ndarray, codebook: np.ndarray) -> float:
    """The sum of squared distances, a part of the values at a time."""
    codebook = np.sort(codebook.astype(np.float64).ravel())
    parts = np.array_split(values, max(1, len(values) // 2**20))
    return sum(float(np.sum((part - codebook[np.searchsorted((codebook[1:] + codebook[:-1]) / 2, part)]) ** 2)) for part in parts)


def scikit_learn(values: np.ndarray) -> np.ndarray:
    from sklearn.cluster import KMeans

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 300 steps, its default, do not converge: that is what it returns
        return KMeans(ENTRIES, random_state=0).fit(values[:, None]).cluster_centers_


def tfmot(values: np.ndarray, initialization: str) -> np.ndarray:
    """The centroids with which TFMOT starts; training then moves them by gradients of the task, not by this distortion."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf
    from tensorflow_model_optimization.python.core.clustering.keras.cluster_config import CentroidInitialization
    from tensorflow_model_optimization.python.core.clustering.keras.clustering_centroids import CentroidsInitializerFactory

    kind = CentroidsInitializerFactory.get_centroid_initializer(CentroidInitialization[initialization])
    return np.asarray(kind(tf.constant(values), ENTRIES).get_cluster_centroids())


def extra_memory() -> float:
    """Peak memory above that of the weights alone, in their own size. In a process of its own, and Linux only: its peak is set back once all is loaded."""
    code = "from benchmarks.codebook import peak_growth; print(peak_growth())"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def peak_growth() -> float:
    values = gaussian(WEIGHTS)[None]
    optimal_codebooks(values[:, : WEIGHTS // 100], ENTRIES)  # compiles, starts the threads
    ctypes.CDLL(None).malloc_trim(0)  # what that call has freed is not there for the next one
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    optimal_codebooks(values, ENTRIES)
    return (resident("VmHWM") - before) / values.nbytes


def resident(line: str) -> int:
    """Bytes, from a line of the process's status."""
    return 1024 * next(int(text.split()[1]) for text in Path("/proc/self/status").read_text().splitlines() if text.startswith(line))


def exact(values: np.ndarray) -> np.ndarray:
    """The optimum over the sorted values themselves."""
    from compress.numerics.kmeans_kernels import codebooks

    return codebooks(values[None], np.empty((1, 0), np.float32), ENTRIES, False)[0]


def run():
    values = gaussian(WEIGHTS)
    optimal_codebooks(values[None, : WEIGHTS // 100], ENTRIES)
    seconds = float(np.median([timed(lambda: optimal_codebooks(values[None], ENTRIES)) for _ in range(5)]))
    yield f"{ENTRIES}-entry codebook of 10 million weights, seconds", f"{seconds:.2f}", "under 1", seconds < 1
    found, best = (distortion(values, codebook) for codebook in (optimal_codebooks(values[None], ENTRIES), exact(values)))
    excess = found / best - 1
    yield "excess distortion over the exact optimum", f"{excess:.1e}", "below 1e-6", excess < 1e-6
    growth = extra_memory()
    yield "peak extra memory / the weights'", f"{growth:.3f}", "under 0.25", growth < 0.25
    yield from against_peers(values)


def against_peers(values: np.ndarray):
    """Squared error and time as ratios ours / theirs; of TFMOT's other starts, which are not k-means, only the error."""
    k_means = {
        "scikit-learn KMeans, 1 million weights": (scikit_learn, values[:PEER_WEIGHTS]),
        "TFMOT KMEANS_PLUS_PLUS centroids": (lambda part: tfmot(part, "KMEANS_PLUS_PLUS"), values),
    }
    for name, (peer, part) in k_means.items():
        yield error_row(name, part, peer(part))
        ratio = interleaved(lambda part=part: optimal_codebooks(part[None], ENTRIES), lambda peer=peer, part=part: peer(part), rounds=3)
        yield f"time / {name}", ratio, "below 1", ratio.value < 1
    for start in ("DENSITY_BASED", "LINEAR"):
        yield error_row(f"TFMOT {start} centroids", values, tfmot(values, start))


def error_row(name: str, values: np.ndarray, theirs: np.ndarray):
    ratio = distortion(values, optimal_codebooks(values[None], ENTRIES)) / distortion(values, theirs)
    return f"squared error / {name}", f"{ratio:.6f}", "below 1", ratio < 1
