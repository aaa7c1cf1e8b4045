"""Files of a middle-sized network take what its plan predicts: operators, names and metadata add little where weights dominate."""

import numpy as np
import pytest

import exporters
from compress import compress
from compress.backends import open_model

torch = pytest.importorskip("torch")

DATA = np.random.default_rng(3).normal(size=(8, 512)).astype(np.float32)
WITHIN = {  # of the plan alone
    (".onnx", "int8-static"): 0.01,
    (".onnx", "int4-group32"): 0.01,
    (".onnx", "kmeans16"): 0.01,
    (".onnx", "nf4-double"): 0.013,  # half a megabyte: a table of 256 levels in 1 kB, and for each of 4 weights 10 nodes and 740 bytes of metadata
    (".pte", "int8-weight-only"): 0.015,  # operators that expand each weight at each run
    (".pte", "int8-dynamic"): 0.01,
    (".pte", "int8-static"): 0.02,  # XNNPACK wants a float32 scale for each int32 bias
    (".pte", "int4-group32"): 0.02,  # half a megabyte, and the graph itself is 5 kB
    (".tflite", "int4-group32"): 0.01,
    (".tflite", "int8-weight-only"): 0.01,
    (".tflite", "int8-static"): 0.015,  # LiteRT keeps a float32 scale for each int32 bias, and int64 zeros as long as the scales
    (".tflite", "kmeans16"): 0.022,  # operators that decode each weight at the first run
    (".tflite", "nf4-double"): 0.033,  # operators that decode each weight and its scales at the first run
}


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(9)
    return open_model(torch.nn.Sequential(*(layer for _ in range(4) for layer in (torch.nn.Linear(512, 512), torch.nn.ReLU()))), DATA[:1])


def test_convolutions_that_executorch_expands_are_foreseen(tmp_path):
    pytest.importorskip("executorch")
    torch.manual_seed(9)
    small = compress(torch.nn.Sequential(*(torch.nn.Conv2d(96, 96, 3) for _ in range(3))), "int8-weight-only", inputs=np.zeros((1, 96, 9, 9), np.float32))
    placed = exporters.placements(small.plan, "executorch", "pytorch")
    predicted = exporters.predicted_bytes(small.plan, "executorch", placed)
    assert abs(exporters.export(small, tmp_path / "m.pte").ledger.file_bytes - predicted) <= 0.02 * predicted


@pytest.mark.parametrize(("suffix", "recipe"), WITHIN)
def test_files_are_as_large_as_planned(suffix, recipe, network, tmp_path):
    if suffix == ".pte":
        pytest.importorskip("executorch")
    calibration = DATA if "static" in recipe else None
    small = compress(network, recipe, calibration=calibration)
    ledger = exporters.export(small, tmp_path / f"m{suffix}").ledger
    assert abs(ledger.file_bytes - small.plan.size_bytes) <= WITHIN[suffix, recipe] * small.plan.size_bytes
    placed = exporters.placements(small.plan, suffix[1:], "pytorch")
    predicted = exporters.predicted_bytes(small.plan, suffix[1:], placed)
    assert abs(ledger.file_bytes - predicted) <= 0.01 * predicted
    assert min(ledger.payload, ledger.scales, ledger.graph) > 0 and ledger.zero_points >= 0  # what tensors share counts once
