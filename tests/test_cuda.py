"""What runs on an NVIDIA GPU: marked `gpu`, it runs there; the rest shows on any machine how graphs are rewritten for it and what is refused."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from conftest import gpu_lacks  # noqa: E402
from torch import nn  # noqa: E402

import evaluators  # noqa: E402
import exporters  # noqa: E402
from compress.errors import Refused, Unreachable  # noqa: E402
from compress.pipeline import compress  # noqa: E402
from compress.recipe import Recipe  # noqa: E402
from evaluators.runtimes import RUNTIMES, torch_eager  # noqa: E402
from evaluators.targets import open_target  # noqa: E402

ROOT = Path(__file__).parents[1]
NEW = (9, 0)  # a compute capability that has everything here
needs_nvml = pytest.mark.skipif(find_spec("pynvml") is None, reason="nvidia-ml-py is not installed")
no_gpu = pytest.mark.skipif(not gpu_lacks(), reason="this machine has a GPU")
ARMS = {  # recipe: largest error of an output, as a share of the largest output of the file on the CPU
    "float32": 1e-5,  # sums in another order
    "float16": 2e-2,  # products in half types: 2^-11 and 2^-8 a number, in two layers
    "examples/gpu/bfloat16.yaml": 5e-2,
    "int8-weight-only": 1e-5,
    "int8-dynamic": 2e-2,  # a token's scale may round another way, which moves codes by one
    "int4-group32": 5e-2,  # bfloat16 on both sides
    "examples/gpu/float8.yaml": 2e-1,  # activations with 3 bits of mantissa
    "nf4-double": 5e-2,
    "mxfp4": 1e-5,
}


class Tokens(nn.Module):
    """Layers whose shapes integer, float8 and sparse kernels take, and an end that they do not."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.end = nn.Linear(128, 256), nn.Linear(256, 128), nn.Linear(128, 10)

    def forward(self, x):
        return self.end(torch.relu(self.second(torch.relu(self.first(x)))).mean(1))


def data(rows: int = 8) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((rows, 24, 128)).astype(np.float32)


def recipe(name: str) -> Recipe:
    return Recipe.load(ROOT / name if "/" in name else name)


def written(name: str, folder: Path, suffix: str = ".pt2"):
    small = compress(Tokens(), recipe(name), calibration=data(), inputs=data())
    return exporters.export(small, folder / f"model{suffix}")


def lowered(artifact, device: str, capability=NEW):
    from evaluators.runtimes.torch_on_cuda import lowered

    return lowered(torch_eager.open_program(artifact), artifact, device, capability)


def operators(module) -> list[str]:
    return [str(node.target) for node in module.graph.nodes if node.op == "call_function"]


# On any machine


@no_gpu
def test_without_a_gpu_everything_says_so():
    target = open_target("cuda:0")
    with pytest.raises(Unreachable, match="NVIDIA driver|not installed|without CUDA"):
        target.check()
    assert not next(target for target in target_list() if target["name"] == "cuda:0")["reachable"]
    done = command("benchmarks.gpu_check")
    assert done.returncode == 2 and done.stdout == "" and done.stderr.startswith("gpu-check: target cuda:0: ") and done.stderr.count("\n") == 1


def target_list() -> list[dict]:
    return json.loads(command("compress", "targets", "--json").stdout)


def command(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, env=os.environ)


def test_runtimes_that_know_no_gpu_are_refused():
    with pytest.raises(Refused, match="litert does not compute on NVIDIA GPUs"):
        open_target("cuda:0").refuse("litert", 1)
    open_target("cuda:0").refuse("torch", 1)


@needs_nvml
@pytest.mark.parametrize("name", [name for name in ARMS if name not in ("int4-group32",)])
def test_rewritten_products_compute_the_same_with_the_cpus_kernels(name, tmp_path):
    """All of CUDA's operators but tinygemm's have CPU kernels too, so the graph for a GPU can be run here."""
    if name == "int8-dynamic" and not torch_eager.dynamic_products_are_exact():
        pytest.skip("int8 products saturate on this CPU")
    artifact, x = written(name, tmp_path), {"x": data()[:1]}
    low = lowered(artifact, "cpu")
    wanted = torch_eager.load(artifact, 1).run(x)[0]
    with torch.no_grad():
        found = low.module(torch.from_numpy(x["x"]))
    found = (found if isinstance(found, torch.Tensor) else found[0]).numpy()
    assert np.abs(found - wanted).max() <= ARMS[name] * np.abs(wanted).max()


@needs_nvml
@pytest.mark.parametrize(
    ("name", "wanted", "gone"),
    [
        ("float16", "aten.linear.default", None),
        ("int8-dynamic", "aten.constant_pad_nd.default", None),  # the last layer: one row, 10 outputs
        ("int4-group32", "aten._weight_int4pack_mm.default", "aten._weight_int4pack_mm_for_cpu.default"),
        ("examples/gpu/float8.yaml", "aten._scaled_mm.default", None),
        ("nf4-double", "bitsandbytes.gemm_4bit.default", None),
    ],
)
def test_everything_is_on_the_device_and_shapes_fit(name, wanted, gone, tmp_path):
    """Fake tensors of a device that is not there: operators are dispatched and shapes checked, nothing is computed."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    artifact = written(name, tmp_path)
    program = torch_eager.open_program(artifact)
    mode = torch._guards.detect_fake_mode([node.meta.get("val") for node in program.graph.nodes]) or FakeTensorMode()
    mode.allow_non_fake_inputs = True
    from evaluators.runtimes import torch_on_cuda

    with mode:
        low = torch_on_cuda.lowered(program, artifact, "cuda:0", NEW)
        found = low.module(torch.zeros(1, 24, 128, device="cuda:0"))
    found = found if isinstance(found, torch.Tensor) else found[0]
    assert found.device == torch.device("cuda:0") and found.shape == (1, 10) and found.dtype == torch.float32
    assert {str(tensor.device) for tensor in (*low.module.buffers(), *low.module.parameters())} == {"cuda:0"}
    assert wanted in operators(low.module) and gone not in operators(low.module)
    assert {placement for placement, _ in low.computed.values()} <= {"native", "decoded"}


@needs_nvml
def test_two_nibbles_share_a_byte_the_even_one_on_top(tmp_path):
    from evaluators.runtimes.torch_cuda_products import pack_int4
    from evaluators.runtimes.torch_loading import evaluated

    module = torch_eager.open_program(written("int4-group32", tmp_path)).module(check_guards=False)
    nibbles = [evaluated(module, node.args[0]) for node in module.graph.nodes if "_convert_weight_to_int4pack_for_cpu" in str(node.target)]
    pack_int4(module)
    packed = [evaluated(module, node.args[0]) for node in module.graph.nodes if "_convert_weight_to_int4pack.default" in str(node.target)]
    assert len(packed) == len(nibbles) > 0
    for codes, bytes_ in zip(nibbles, packed, strict=True):
        assert bytes_.dtype == torch.uint8 and torch.equal(bytes_.int() >> 4, codes[:, ::2].int()) and torch.equal(bytes_.int() & 15, codes[:, 1::2].int())


@needs_nvml
@pytest.mark.parametrize(
    ("name", "capability", "words"),
    [
        ("int8-static", NEW, "static int8.*oneDNN"),
        ("int8-dynamic", (7, 0), "int8 products need compute capability 7.5, and this card has 7.0"),
        ("int4-group32", (7, 5), "tinygemm.*8.0.*7.5"),
        ("examples/gpu/float8.yaml", (8, 6), "float8 products need compute capability 8.9"),
    ],
)
def test_what_a_card_cannot_compute_is_refused(name, capability, words, tmp_path):
    with pytest.raises(Refused, match=words):
        lowered(written(name, tmp_path), "cpu", capability)


@needs_nvml
def test_a_weight_says_how_it_computes_on_the_device(tmp_path):
    half = lowered(written("float16", tmp_path), "cpu").computed
    assert half["first.weight"] == ("native", "products in float16, summed in float32")
    eight = lowered(written("examples/gpu/float8.yaml", tmp_path), "cpu").computed
    assert eight["first.weight"][0] == "native" and eight["end.weight"] == ("decoded", eight["end.weight"][1]) and "10 outputs" in eight["end.weight"][1]


def test_nodes_that_stay_on_the_cpu_are_named(tmp_path):
    """ONNX Runtime's record of who got which node, here with its CPU provider alone."""
    ort = pytest.importorskip("onnxruntime")
    pytest.importorskip("pynvml")
    from evaluators.runtimes.ort import options
    from evaluators.runtimes.ort_on_cuda import RECORD, on_the_cpu

    chosen = options(1)
    chosen.add_session_config_entry(RECORD, "1")
    session = ort.InferenceSession(str(written("float32", tmp_path, ".onnx").path), chosen, providers=["CPUExecutionProvider"])
    (said,) = on_the_cpu(session)
    assert "nodes run on the CPU, with copies between" in said and "Relu" in said


# On a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("runtime", ["torch", "torch-compiled"])
@pytest.mark.parametrize("name", ARMS)
def test_a_gpu_gives_what_the_cpu_gives(name, runtime, tmp_path):
    artifact, x = written(name, tmp_path), {"x": data()[:1]}
    wanted = torch_eager.load(artifact, 1).run(x)[0]
    try:
        session = RUNTIMES.load(runtime).load_on(artifact, 1, "cuda:0")
    except Refused as error:
        pytest.skip(str(error))
    found = session.run(x)[0]
    assert np.abs(found - wanted).max() <= ARMS[name] * np.abs(wanted).max()
    assert session.timed(x) > 0 and session.memory([x])["allocated_bytes"] > 0


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["float32", "int8-dynamic", "int4-group32"])
def test_onnx_runtime_gives_on_a_gpu_what_it_gives_on_the_cpu(name, tmp_path):
    try:
        open_target("cuda:0").refuse("onnxruntime", 1)
    except Refused as error:
        pytest.skip(str(error))
    runtime, artifact, x = RUNTIMES.load("onnxruntime"), written(name, tmp_path, ".onnx"), {"x": data()[:1]}
    wanted, session = runtime.load(artifact, 1).run(x)[0], runtime.load_on(artifact, 1, "cuda:0")
    found = session.run(x)[0]
    assert np.abs(found - wanted).max() <= 5e-2 * np.abs(wanted).max()  # MatMulNBits may compute in float16 there
    assert session.timed(x) > 0


@pytest.mark.gpu
def test_sparse_tensor_cores_give_what_dense_ones_give(tmp_path):
    if not torch.backends.cusparselt.is_available():
        pytest.skip("this PyTorch has no cuSPARSELt")
    artifact, x = written("examples/gpu/sparse-2of4.yaml", tmp_path), {"x": data()[:1]}
    session = torch_eager.load_on(artifact, 1, "cuda:0")
    assert "sparse tensor cores" in session.computed["first.weight"][1]
    wanted = torch_eager.load(artifact, 1).run(x)[0]
    assert np.abs(session.run(x)[0] - wanted).max() <= 2e-2 * np.abs(wanted).max()  # as float16


MODEL = """
import torch
from torch import nn

def load():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)).eval()
"""
DATA = """
import numpy as np

def test(limit=16):
    x = np.random.default_rng(2).standard_normal((limit, 64)).astype(np.float32)
    return {"input": x}, x[:, :10].argmax(1)
"""
STUDY = """
name: tiny
models: {mlp: "model.py:load"}
calibration: "data.py:test"
test: "data.py:test"
samples: 40
recipes: [float32, float16, int8-static]
runtimes: [torch]
latency: {processes: 1, blocks: 5, runs: 9, seconds: 0, warmup_seconds: 0}
"""


@pytest.mark.gpu
def test_a_study_runs_on_a_gpu(tmp_path):
    for name, text in (("model.py", MODEL), ("data.py", DATA), ("study.yaml", STUDY)):
        (tmp_path / name).write_text(text)
    results = evaluators.compare(tmp_path / "study.yaml", tmp_path / "out", targets=["cuda:0"])
    arms = {arm.recipe: arm for arm in results.arms}
    assert {name: arm.status for name, arm in arms.items()} == {"float32": "done", "float16": "done", "int8-static": "refused"}
    assert "oneDNN" in arms["int8-static"].cause and "GPU cuda:0" in results.environment and "GPU" in results.protocol
    assert arms["float16"].latency.median_ms.value > 0 and arms["float16"].gpu.allocated_bytes > 0
    assert {tensor.placement for tensor in arms["float16"].tensors if tensor.planned} == {"native"}
