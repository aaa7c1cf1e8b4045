"""Operators are timed by each runtime's own profiler, and causes follow from what was measured, never from less."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("altair", reason="the report needs altair, vl-convert, jinja2 and rich")
from results_fixture import results
from tiny_study import STUDY, written

import evaluators
from compress.errors import InputError
from evaluators import kinds
from evaluators.artifact_facts import to_facts
from evaluators.causes import Profile, causes
from evaluators.evidence import Subject, source_of
from evaluators.explained import unexpected
from evaluators.explaining import explain, explain_unexpected, named
from evaluators.file_causes import planned_bytes
from evaluators.operators import OperatorTime, Timed, medians, own_times
from evaluators.profiling import Unmeasured
from evaluators.report import explanation
from evaluators.report.verdicts import verdict
from evaluators.results import Estimate, first_break
from evaluators.store import Store
from evaluators.study import LatencySettings
from evaluators.worker import Worker

PLAIN = "convolutions and matrix products"
SIDE = 64
MULTIPLY_ADDS = 32 * 32 * 16 * 3 * 9 + 32 * 32 * 16 * 9 + 32 * 32 * 32 * 16 + 32 * 10
RUNTIMES = {"litert": ".tflite", "onnxruntime": ".onnx", "torch": ".pt2", "torch-compiled": ".pt2", "executorch": ".pte"}
SLOW = ("torch-compiled", "executorch")  # they compile or lower the model first


def network():
    torch = pytest.importorskip("torch")
    from torch import nn

    from compress.backends import open_model

    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.deep = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, 1, 1, groups=16)
            self.wide, self.last = nn.Conv2d(16, 32, 1), nn.Linear(32, 10)

        def forward(self, x):
            return self.last(self.wide(self.deep(self.first(x).relu()).relu()).relu().mean((2, 3)))

    torch.manual_seed(0)
    return open_model(Small().eval(), np.zeros((1, 3, SIDE, SIDE), np.float32))


@pytest.fixture(scope="module")
def opened():
    return network()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where artifacts and test samples lie, as a study has them."""
    folder = tmp_path_factory.mktemp("operators")
    np.save(folder / "0.npy", np.random.default_rng(0).standard_normal((4, 3, SIDE, SIDE), np.float32))
    (folder / "data.json").write_text(json.dumps(["0"]))
    return folder


@pytest.mark.parametrize("runtime", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in RUNTIMES])
def test_every_runtime_times_its_operators(runtime, opened, folder):
    exporters = pytest.importorskip("exporters")
    from compress.pipeline import compress
    from evaluators.runtimes import RUNTIMES as known

    pytest.importorskip({"onnxruntime": "onnxscript", "litert": "litert_torch", "torch-compiled": "torch"}.get(runtime, runtime))
    name = f"float{RUNTIMES[runtime]}"
    facts = to_facts(exporters.export(compress(opened, "float32"), folder / name), name)
    given = facts, str(folder), runtime, 1, str(folder)
    with Worker(1) as worker:
        found = worker.call("evaluators.operators:profile", *given, 8, limit=600)
        assert found.status == "done", found.trace
        assert worker.call("evaluators.metrics.latency:load", *given, limit=600).status == "done"
        whole = float(np.median(worker.call("evaluators.metrics.latency:block", 8, limit=120).value)) / 1e9
        count = worker.call("evaluators.operators:multiply_adds", *given, limit=120)
    operators = [OperatorTime(**row) for row in found.value]
    counts = {group: sum(kinds.group(o.kind) == group for o in operators) for group in kinds.PRODUCTS}
    assert counts[PLAIN] >= 3 and counts["depthwise convolutions"] >= 1, operators
    assert not any(kinds.in_integers(o.kind) for o in operators)
    assert whole / 20 < sum(o.seconds for o in operators) < 20 * whole  # finds a wrong unit; tests share the machine, and a profiler costs time
    if hasattr(known.load(runtime), "multiply_adds"):
        assert count.value == MULTIPLY_ADDS
    else:
        assert count.status == "refused" and "shapes" in count.cause


@pytest.mark.parametrize(
    ("kind", "group", "integer"),
    [
        ("Convolution (NHWC, F32) IGEMM", PLAIN, False),
        ("Convolution (NHWC, QC8) IGEMM", PLAIN, True),
        ("Convolution (NHWC, F32) DWConv", "depthwise convolutions", False),
        ("Fully Connected (NC, QD8, F32, QC8W) GEMM", PLAIN, True),
        ("Convert (NC, F32, QD8)", "quantizing", False),
        ("Convert (NC, QS8, F32)", "dequantizing", False),
        ("CONV_2D (float32 x int8)", PLAIN, True),
        ("DEPTHWISE_CONV_2D (float32 x float32)", "depthwise convolutions", False),
        ("QUANTIZE", "quantizing", False),
        ("DequantizeLinear", "dequantizing", False),
        ("DynamicQuantizeLinear", "quantizing", False),
        ("QLinearConv", PLAIN, True),
        ("QLinearAdd", kinds.REST, False),
        ("MatMulIntegerToFloat", PLAIN, True),
        ("DynamicQuantizeMatMul", PLAIN, True),
        ("MatMulNBits", PLAIN, True),
        ("Gemm", PLAIN, False),
        ("Conv (depthwise)", "depthwise convolutions", False),
        ("ReorderOutput", "layout and copies", False),
        ("aten::addmm", PLAIN, False),
        ("aten::conv2d by aten::mkldnn_convolution (depthwise)", "depthwise convolutions", False),
        ("aten::_int_mm", PLAIN, True),
        ("aten::_weight_int4pack_mm_for_cpu", PLAIN, True),
        ("onednn::qlinear_pointwise", PLAIN, True),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention", False),
        ("quantized_decomposed::quantize_per_tensor", "quantizing", False),
        ("quantized_decomposed::dequantize_per_channel", "dequantizing", False),
        ("cpp_fused_addmm_relu", "fused loops", False),
        ("aten::copy_", "layout and copies", False),
        ("ADD", kinds.REST, False),
    ],
)
def test_names_of_kernels_say_what_they_do(kind, group, integer):
    assert (kinds.group(kind), kinds.in_integers(kind)) == (group, integer)


def test_what_is_called_is_not_counted_twice():
    def event(name, start, duration):
        return Timed(OperatorTime(name, name, 0.0), start, duration)

    found = own_times([event("loop", 0, 100), event("a", 10, 30), event("inner", 15, 10), event("b", 40, 50), event("after", 100, 5)], 1e-6)
    assert {o.name: round(o.seconds * 1e6) for o in found} == {"loop": 20, "a": 20, "inner": 10, "b": 50, "after": 5}


def test_a_run_with_other_operators_is_left_out():
    def run(*pairs):
        return [OperatorTime(kind, kind, seconds) for kind, seconds in pairs]

    found = medians([run(("a", 1.0), ("b", 5.0)), run(("a", 3.0), ("b", 6.0)), run(("a", 2.0), ("b", 9.0)), run(("x", 100.0))])
    assert [(o.kind, o.seconds) for o in found] == [("a", 2.0), ("b", 6.0)]


@pytest.fixture(scope="module")
def arms():
    """int8-dynamic on LiteRT beside float32."""
    found = {arm.id: arm for arm in results().arms}
    return found["minilm/int8-dynamic/litert/cpu"], found["minilm/float32/litert/cpu"]


def conv(kind, milliseconds, library):
    return [OperatorTime(f"{kind} {n}", kind, milliseconds / 1000, library) for n in range(3)]


SLOW = Profile(
    float32=[*conv("Convolution (NHWC, F32) IGEMM", 4, "XNNPACK"), *conv("Convolution (NHWC, F32) DWConv", 1, "XNNPACK")],
    own=[*conv("CONV_2D (float32 x int8)", 10, "LiteRT's built-in kernels"), *conv("DEPTHWISE_CONV_2D (float32 x int8)", 3, "LiteRT's built-in kernels")],
    copied_bytes=10e9,
    peak=50e9,
    multiply_adds=300_000_000,
    flags=frozenset({"avx2"}),
)


def said(found, part):
    return [cause.said for cause in found if part in cause.said]


def test_the_causes_of_a_slow_arm_have_their_numbers(arms):
    size = replace(arms[0].size, graph=arms[0].size.file_bytes // 8)
    found = causes(replace(arms[0], size=size), arms[1], SLOW, {"layer.weight": 12.3})
    assert [c.about for c in found] == sorted((c.about for c in found), key=["speed", "size", "accuracy"].index)
    assert "6 operators" in said(found, "XNNPACK does not take")[0] and "39.0 ms, 100% of the whole" in said(found, "XNNPACK does not take")[0]
    assert "30.0 ms instead of 12.0 ms, 18.0 ms more" in said(found, "Convolutions and matrix")[0]
    assert "7.7 billion multiply-adds a second, those of float32 20.0" in said(found, "billion")[0]
    assert "no VNNI" in said(found, "This CPU")[0]
    assert "layer.weight, 12.3 dB" in said(found, "for the worse")[0]
    assert "graph" in said(found, "not codes of weights")[0]


def test_what_was_not_measured_is_no_cause(arms):
    assert not [c for c in causes(*arms, None, {}) if c.about == "speed"]
    blind = causes(*arms, replace(SLOW, multiply_adds=None, flags=frozenset({"avx512_vnni"})), {})
    assert not said(blind, "billion") and not said(blind, "bound:") and not said(blind, "This CPU")
    assert not said(blind, "dB") and not said(causes(*arms, replace(SLOW, own=SLOW.float32), {}), "XNNPACK does not take")


def test_an_integer_arm_whose_kernels_are_float_is_told(arms):
    floats = replace(SLOW, own=SLOW.float32, versions={"dynamic int8 products": "computed in float32: no VNNI"})
    found = causes(*arms, floats, {})
    assert "the runtime says of dynamic int8 products" in said(found, "No kernel that ran multiplies integers")[0]


def test_verdicts_say_slower_as_a_factor(arms):
    slower = replace(arms[0], latency=replace(arms[0].latency, speedup=Estimate(0.4, 0.32, 0.5), verdict="slower"))
    assert "2.5 times slower [2.00, 3.12]" in verdict(slower) and "smaller" in verdict(slower)
    assert "refused" in verdict(next(arm for arm in results().arms if arm.status == "refused"))


def test_an_arm_is_named_by_a_part_that_no_other_has():
    assert named(results(), "int8-dynamic/litert").id == "minilm/int8-dynamic/litert/cpu"
    with pytest.raises(InputError, match="part of several arms"):
        named(results(), "int8-dynamic")
    with pytest.raises(InputError, match="no arm"):
        named(results(), "int9")


BROKEN = """
def broken_layer():
    # the middle layer's first input is always 0 and has the only large weights, so that scales of 8 bits leave nothing of the others
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).eval()
    with torch.no_grad():
        model[0].weight[0], model[0].bias[0], model[2].weight[:, 0] = 0, -1, 100
    return model
"""
LAYERS = ("0.weight", "2.weight", "4.weight")


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    for package in ("torch", "onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    path = written(tmp_path_factory.mktemp("explained"), STUDY.replace("float32,", "float32, int8-dynamic,").replace("model.py:load", "model.py:broken_layer"))
    (path.parent / "model.py").write_text((path.parent / "model.py").read_text() + BROKEN)
    evaluators.compare(path, path.parent / "out")
    return path.parent / "out"


@pytest.fixture(scope="module")
def dynamic(study):
    """An explanation whose layers alone were stopped at once, and the one of the next call."""
    return explain(study, "int8-dynamic", seconds=0), explain(study, "int8-dynamic")


def test_an_arm_of_a_study_is_explained(study, dynamic):
    _, found = dynamic
    assert found.baseline == "mlp/float32/onnxruntime/cpu" and not found.unmeasured
    assert any(kinds.in_integers(o.kind) for o in found.own) and not any(kinds.in_integers(o.kind) for o in found.float32)
    assert found.multiply_adds == 64 * 64 * 2 + 64 * 10
    text = "\n".join([*(cell for _, _, rows in explanation.tables(found) for row in rows for cell in row), *explanation.lines(found)])
    assert "DynamicQuantizeMatMul" in text and "million multiply-adds" in text
    assert all(said.endswith(".") and any(c.isdigit() for c in said) for said in found.why)
    with Store(study, create=False) as store:
        assert store.piece(store.links(found.arm)["operators"]).facts["machine"]["peak"] > 0


def test_the_layer_that_breaks_is_named_and_costs_most_alone(dynamic):
    _, found = dynamic
    assert [layer.name for layer in found.layers] == list(LAYERS) and found.alone == "file"
    first, broken, last = found.layers
    assert first.weight_db > 40 and first.output_db > 30 and first.alone_db > 30 and last.alone_db > 30
    assert broken.weight_db > 40  # its large weights are exact, so its own error says nothing
    assert broken.output_db < 3 and broken.alone_db < first.alone_db - 20 and last.output_db < 10
    assert first_break(found.layers) is broken
    (where,) = [said for said in found.why if "is the first layer whose output" in said]
    assert where.startswith("2.weight") and "the outputs before it at least" in where
    (which,) = [said for said in found.why if "Compressed alone" in said]
    assert "2.weight" in which and "0.weight" not in which


def test_layers_alone_go_on_where_time_ran_out(dynamic):
    stopped, found = dynamic
    assert not any(layer.alone_db for layer in stopped.layers) and "2.weight" in stopped.unmeasured["alone"]
    assert all(layer.alone_db for layer in found.layers)


def test_weights_alone_are_measured_by_the_network(study):
    found = explain(study, "int8-weight-only")
    assert found.alone == "network" and first_break(found.layers).name == "2.weight"
    alone = {layer.name: layer.alone_db for layer in found.layers}
    assert min(alone, key=alone.get) == "2.weight" and alone["2.weight"] < alone["0.weight"] - 20


def test_what_was_measured_once_is_in_the_results_and_stays_when_the_study_runs_again(study, dynamic):
    again = evaluators.compare(study.parent / "study.yaml", study)
    arm = next(arm for arm in again.arms if arm.recipe == "int8-dynamic")
    assert arm.layers == dynamic[1].layers and arm.causes == dynamic[1].why
    assert sum(row.count for row in arm.operator_times) == len(dynamic[1].own)
    assert sum(row.float32_ms for row in arm.operator_times) == pytest.approx(1000 * sum(o.seconds for o in dynamic[1].float32))


def test_a_model_that_changed_is_not_taken_for_the_one_that_was_measured(study, tmp_path):
    shutil.copytree(study.parent, tmp_path / "copy")
    (tmp_path / "copy" / "model.py").write_text((study.parent / "model.py").read_text() + "\n# changed\n")
    with Store(tmp_path / "copy" / "out", create=False) as store:
        results = evaluators.load_results(tmp_path / "copy" / "out")
        arm = next(arm for arm in results.arms if arm.recipe == "int8-dynamic")
        with pytest.raises(Unmeasured, match="not as it was"):
            source_of(Subject(store, arm, results.arms[0]))


def test_an_arm_that_is_not_as_it_should_be_is_explained_without_asking(study, tmp_path):
    """As `compare` does it: the verdict is planted, all else is real."""
    shutil.copytree(study, tmp_path / "out")
    results = evaluators.load_results(tmp_path / "out")
    verdicts = {"weight-only": "slower", "int8-dynamic": "no difference shown"}
    slow = list(results.arms)
    for part, planted in verdicts.items():
        slow = [replace(arm, latency=replace(arm.latency, verdict=planted)) if part in arm.id else arm for arm in slow]
    asked = []
    with Store(tmp_path / "out", create=False) as store:
        store.write(("DELETE FROM pieces WHERE kind = 'operators'", ()))
        found = list(explain_unexpected(store, replace(results, arms=tuple(slow)), asked.append))
        assert asked == ["mlp/int8-weight-only/onnxruntime/cpu"] and found == [(asked[0], [])]
        assert not list(explain_unexpected(store, replace(results, arms=tuple(slow)), asked.append))  # it is known now
    (arm,) = [arm for arm in evaluators.load_results(tmp_path / "out").arms if "weight-only" in arm.id]
    assert arm.operator_times and arm.causes


def test_an_arm_without_result_is_explained_by_its_cause(study):
    found = explain(study, "int16x8")
    assert "refused" in found.verdict and not found.why
    with pytest.raises(InputError, match="float32 itself"):
        explain(study, "float32")


def test_a_file_that_is_larger_than_its_plan_says_by_what(arms):
    """Also one whose converter left planned weights in float32."""
    arm, float32 = arms
    planned = [t for t in arm.tensors if t.planned]
    left = replace(arm, tensors=tuple(replace(t, placement="float") if t is planned[0] else t for t in arm.tensors), operators={"QuantizeLinear": 2, "Conv": 5})
    expected = {"bytes": planned_bytes(arm.size) // 2, "strangers": [("table", arm.size.file_bytes)]}
    found = causes(left, float32, None, {}, predicted=expected)
    assert "the plan does not know table" in said(found, "where the plan expects")[0]
    assert f"1 of the {len(planned)} weights" in said(found, "float32 in the file")[0] and "2 of its 7 operators" in said(found, "float32 in the file")[0]
    assert unexpected(arm, expected) == ["larger"] and not unexpected(arm, {"bytes": planned_bytes(arm.size), "strangers": []})


@pytest.mark.slow
def test_two_known_causes_of_a_real_model_are_named(tmp_path):
    """LiteRT's dynamic int8 of EfficientNet-Lite0 is slow for its depthwise convolutions; PT2E's x86 quantizer finds none of its convolutions."""
    for package in ("efficientnet_lite_pytorch", "foolbox", "litert_torch", "torchao"):
        pytest.importorskip(package)
    small = {"samples": 20, "latency": LatencySettings(blocks=5, runs=9, seconds=0)}
    study = evaluators.Study.load(Path(__file__).parents[1] / "examples" / "efficientnet" / "study.yaml").model_copy(update=small)
    evaluators.compare(study, tmp_path)
    found = explain(tmp_path, "int8-dynamic/litert", seconds=0)
    assert "16 operators" in next(cause for cause in found.why if "XNNPACK does not take" in cause)
    assert any(cause.startswith("Depthwise convolutions") and "DEPTHWISE_CONV_2D (float32 x int8)" in cause for cause in found.why)
    assert len(found.layers) == 50 and all(layer.output_db is not None for layer in found.layers)
    found = explain(tmp_path, "int8-static/torch-pt2e", seconds=0)
    assert found.why[0].startswith("49 of the 50 weights that the plan compresses are float32 in the file")
    assert any("Conv2dStaticSamePadding" in cause for cause in found.why)
