"""A layer's output is the same tensor in every file, whatever operators a format adds around the layer."""

import numpy as np
import pytest

from evaluators.layer_graph import Operator, layer_outputs
from evaluators.layers import LIMIT_DB, Noise


def operators(*rows: str) -> list[Operator]:
    """From lines as `Add y bias -> z`."""
    parts = [row.replace(",", " ").split() for row in rows]
    return [Operator(kind, tuple(rest[: rest.index("->")]), tuple(rest[rest.index("->") + 1 :])) for kind, *rest in parts]


@pytest.mark.parametrize(
    ("graph", "found"),
    [
        (("Conv x w b -> y", "Relu y -> z", "Conv z v -> out"), {"first": "z", "second": "out"}),
        (("Conv x w b -> y", "Relu y -> z", "Add z x -> r", "Conv r v -> out"), {"first": "z", "second": "out"}),  # what else is added is not the layer's
        (("MatMul x w -> y", "Add y b -> z", "Gelu z -> g", "Add z g -> r", "MatMul r v -> out"), {"first": "z", "second": "out"}),
        (("Cast w -> f", "Mul f b -> d", "Conv x d b -> y", "Conv y v -> out"), {"first": "y", "second": "out"}),  # decoded by constants alone
        (
            ("Quantize x -> q, d", "MatMulInteger q w -> i", "Cast i -> f", "Mul d f -> p", "Mul p b -> r", "Add r b -> y", "MatMul y v -> out"),
            {"first": "y", "second": "out"},
        ),
        (("MatMul x w -> y", "Mul y x -> gated", "MatMul gated v -> out"), {"first": "y", "second": "out"}),  # a gate is no scale
        (("MatMul x w -> y", "Split y -> a, c", "MatMul a v -> out"), {"first": "y", "second": "out"}),
        (("Conv x w -> y", "QuantizeLinear y s -> q", "DequantizeLinear q s -> d", "MaxPool d -> m", "Conv m v -> out"), {"first": "m", "second": "out"}),
        (  # rows of codes, and the scales of those rows
            ("Gather w x -> q", "Cast q -> f", "Gather s x -> d", "Mul f d -> y", "Gather v x -> z", "Add y z -> out"),
            {"first": "y", "second": "z"},
        ),
        (("Gather w x -> y", "Mul y h -> z", "MatMul z v -> out"), {"first": "y", "second": "out"}),  # what else it is multiplied with is not the row's
        (("Gather w x -> y", "MatMul x v -> z", "MatMul y w -> out"), {"first": "y", "second": "z"}),  # a tied weight: where it is read first
    ],
)
def test_where_layers_end(graph, found):
    assert layer_outputs(operators(*graph), ["w", "v", "b", "s"], {"w": "first", "v": "second"}) == found


def test_noise_is_summed_over_samples():
    noise = Noise()
    noise.add(np.array([3.0, 4.0]), np.array([3.0, 4.5]))
    noise.add(np.array([[0.0]]), np.array([0.0]))
    assert noise.db == pytest.approx(10 * np.log10(25 / 0.25))
    equal, broken = Noise(), Noise()
    equal.add(np.ones(3), np.ones(3))
    broken.add(np.ones(3), np.array([1, np.nan, 1]))
    assert equal.db == LIMIT_DB and broken.db == -LIMIT_DB


@pytest.mark.parametrize("recipe", ["int8-dynamic", "int8-static", "nf4"])
@pytest.mark.parametrize(("runtime", "model"), [("onnxruntime", "torch_text"), ("torch", "torch_text"), ("litert", "keras_cnn")])
def test_every_runtime_shows_the_layers_of_every_kind_of_file(runtime, model, recipe, tmp_path_factory):
    """Beside float32's file each layer has about the error of its format, whatever reads its weight."""
    exporters = pytest.importorskip("exporters")
    pytest.importorskip({"onnxruntime": "onnxscript", "litert": "ai_edge_litert"}.get(runtime, runtime))
    from zoo import case

    from compress.pipeline import compress
    from evaluators.layers import weights
    from evaluators.runtimes import RUNTIMES

    given, module, files = case(model), RUNTIMES.load(runtime), []
    for name in ("float32", recipe):
        small = compress(given.network, name, calibration=given.data)
        path = tmp_path_factory.getbasetemp() / f"layers-{name}-{runtime}{module.SUFFIX}"
        files.append(exporters.inspect(path) if path.exists() else exporters.export(small, path))
    layers = list(small.plan.compressed)
    before, now = (module.show_layers(file, weights(files, layers), 1) for file in files)
    sums = {name: Noise() for name in before[0] if name in now[0] and name in layers}
    assert set(layers) - set(sums) <= {"embed.weight"}  # tied to the output layer, which ONNX names it after, and looked up in parts
    for index in range(4):
        shown = [dict(zip(names, run(given.sample(index)), strict=True)) for names, run in (before, now)]
        for name in [name for name in sums if shown[0][name].size == shown[1][name].size]:
            sums[name].add(shown[0][name], shown[1][name])
    low, high = (12, 40) if recipe == "nf4" else (25, 75)
    assert all(low < noise.db < high for name, noise in sums.items() if name != "embed.weight"), {name: noise.db for name, noise in sums.items()}
