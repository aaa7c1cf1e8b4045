"""Files without zeros against the same files with them: bytes, time to load and run once, time of a run.

MobileNetV1 (Howard et al. 2017), all weights pruned.
"""

import tempfile
from pathlib import Path
from unittest import mock

import numpy as np

import exporters
from benchmarks.ratio import interleaved
from compress.backends import open_model
from compress.pipeline import compress
from compress.recipe import Recipe
from compress.steps import Prune
from evaluators.runtimes import RUNTIMES
from exporters import litert_sparse, onnx_sparse

STAGES = ((32, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2), *[(512, 512, 1)] * 5, (512, 1024, 2), (1024, 1024, 1))
SPARSE = {".tflite": (litert_sparse, "litert"), ".onnx": (onnx_sparse, "onnxruntime")}


def mobilenet():
    """With random weights: how long a layer takes does not depend on what it has learned."""
    import torch

    nn = torch.nn
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 32, 3, stride=2, padding=1), nn.ReLU6()]
    for inputs, outputs, stride in STAGES:
        layers += [nn.Conv2d(inputs, inputs, 3, stride=stride, padding=1, groups=inputs), nn.ReLU6(), nn.Conv2d(inputs, outputs, 1), nn.ReLU6()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1024, 1000))


def run():
    image = np.random.default_rng(0).normal(size=(1, 3, 224, 224)).astype(np.float32)
    network, folder = open_model(mobilenet(), image), Path(tempfile.mkdtemp(prefix="compresskit-bench-"))
    for share in (0.8, 0.9):
        small = compress(network, Recipe(name="pruned", steps=(Prune(sparsity=share),)))
        for suffix, (module, name) in SPARSE.items():
            runtime, sample = RUNTIMES.load(name), {network.inputs[0].name: image}
            sparse = exporters.export(small, folder / f"sparse{suffix}")
            with mock.patch.object(module, "worth", lambda sparse, dense: False):
                dense = exporters.export(small, folder / f"dense{suffix}")

            def first(artifact, runtime=runtime, sample=sample):
                return runtime.load(artifact, 1).run(sample)

            assert np.array_equal(first(sparse)[0], first(dense)[0])
            what = f"{name}, {share:.0%} zeros, without / with them"
            size = sparse.ledger.file_bytes / dense.ledger.file_bytes
            yield f"{what}: bytes of {dense.ledger.file_bytes:,}", f"{size:.3f}", "at most 0.35", size <= 0.35
            loading = interleaved(lambda a=sparse: first(a), lambda a=dense: first(a), rounds=10)
            yield f"{what}: loading and the first run", loading, "said, not judged", True
            ours, peer = runtime.load(sparse, 1), runtime.load(dense, 1)
            ratio = interleaved(lambda s=ours, x=sample: s.run(x), lambda s=peer, x=sample: s.run(x), rounds=20, repeats=5)
            yield f"{what}: a run", ratio, "an interval that reaches 1", ratio.low <= 1
