"""A third of the channels taken out of EfficientNet-Lite0, against the whole network: latency on LiteRT and ONNX Runtime, one thread."""

import tempfile
from pathlib import Path

import exporters
from benchmarks.efficientnet_static_int8 import images, model, views
from benchmarks.ratio import interleaved
from compress.backends import open_model
from compress.pipeline import compress
from compress.recipe import Recipe
from compress.sparsity import Channels
from compress.steps import Prune
from evaluators.runtimes import RUNTIMES

TAKEN = Recipe(name="channels30", steps=(Prune(sparsity=0.3, pattern=Channels()),))


def run():
    view = views(images()[0][:1])[:1]
    network = open_model(model(), view)
    inputs = {network.inputs[0].name: view}
    folder = Path(tempfile.mkdtemp(prefix="compresskit-bench-"))
    made = {"whole": compress(network, "float32"), "smaller": compress(network, TAKEN)}
    for runtime in ("litert", "onnxruntime"):
        module = RUNTIMES.load(runtime)
        files = {name: exporters.export(small, folder / f"{name}{module.SUFFIX}") for name, small in made.items()}
        sessions = {name: module.load(artifact, threads=1) for name, artifact in files.items()}
        ratio = interleaved(*((lambda s=sessions[name]: s.run(inputs)) for name in ("smaller", "whole")), rounds=40, repeats=5)
        size = files["smaller"].ledger.file_bytes / files["whole"].ledger.file_bytes
        yield f"EfficientNet-Lite0 with 30% of its channels taken out, latency on {runtime} ({size:.2f} of the size)", ratio, "at most 0.8", ratio.high <= 0.8
