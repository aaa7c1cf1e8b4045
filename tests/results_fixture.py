"""A study's Results as a real one would have them: a small BERT, 7 recipes, 4 runtimes, refusals, a failure and a simulated arm."""

import base64
import gzip
import json
import re
from math import comb, sqrt
from random import Random

from evaluators.results import Arm, Estimate, Latency, Memory, Metric, Results, Score, Size, TensorRow

TOP1 = Metric("accuracy", "right", "%", noun="answer")
SAMPLES, BASE_CORRECT, HIDDEN, LAYERS = 600, 521, 384, 6
# recipe: planned format, stored dtype, bytes a weight, time relative to float32, answers lost of 600, answers changed
RECIPES = {
    "float32": ("", "float32", 4.0, 1.0, 0, 0),
    "float16": ("float16", "float16", 2.0, 1.003, 0, 0),
    "int8-weight-only": ("int8 per-channel narrow", "int8", 1.0, 1.09, 1, 5),
    "int8-dynamic": ("int8 per-channel narrow, int8 dynamic activations", "int8", 1.0, 0.47, 2, 11),
    "int8-static": ("int8 per-channel narrow, int8 static activations (minmax)", "int8", 1.0, 0.41, 16, 38),
    "int16x8": ("int8 per-channel narrow, int16 static activations (minmax)", "int8", 1.0, 1.62, 0, 3),
    "int4-group32": ("int4 group-32 qmax, bfloat16 scales", "int4", 0.5625, 0.88, 7, 34),
}
RUNTIMES = {  # exporter, suffix, milliseconds of float32
    "litert": ("litert", ".tflite", 31.0),
    "onnxruntime": ("onnx", ".onnx", 24.2),
    "torch": ("torch", ".pt2", 29.4),
    "torch-compiled": ("torch", ".pt2", 26.8),
}
DECODED = {
    ("litert", "float16"): "XNNPACK expands half floats to float32 at load",
    ("onnxruntime", "float16"): "a Cast to float32 stands before every MatMul",
    ("onnxruntime", "int8-weight-only"): "DequantizeLinear runs before every MatMul",
    ("torch", "int8-weight-only"): "the eager kernel dequantizes the weight on each call",
}
SIMULATED = {("torch", "int8-static"): "the x86 quantizer matched no pattern here, so the float kernel runs on values of the int8 grid"}
INT16_REASON = "no kernel here computes with int16 activations and int8 weights; LiteRT has one (runtime litert)"


def results() -> Results:
    random = Random(7)
    arms = tuple(arm(recipe, runtime, random) for runtime in RUNTIMES for recipe in RECIPES)
    return Results(
        study="sentiment",
        created="2026-03-02T09:41:07+00:00",
        command="compresskit compare examples/sentiment/study.yaml --out report",
        environment={
            "CPU": "Intel Xeon Platinum 8481C, 2 of 2 cores, avx512f avx512_vnni amx_int8",
            "Governor": "not readable in this container",
            "CPU quota": "none",
            "Affinity": "0, 1",
            "Load average at start": "0.42",
            "Python": "3.11.7",
            "Versions": "litert 2.3.0, onnxruntime 1.32.0, torch 2.13.0",
            "Thread variables": "OMP_NUM_THREADS=2 MKL_NUM_THREADS=2",
        },
        protocol={
            "Latency": "one spawned process per arm, batch 1, 2 threads, warm-up until 5 runs lie within 2%, 6 interleaved blocks, median of each block",
            "Speedup": "ratio of paired block medians to float32 on the same runtime, 95% interval from 2,000 bootstrap resamples of blocks",
            "Memory": "peak resident memory in a run of its own, less a process that only imports the runtime",
            "Accuracy": "600 held-out reviews, the same for every arm; Wilson interval, paired bootstrap, exact McNemar",
        },
        arms=arms,
        wall_seconds=431.7,
    )


def arm(recipe: str, runtime: str, random: Random) -> Arm:
    exporter, suffix, base_ms = RUNTIMES[runtime]
    head = {"id": f"minilm/{recipe}/{runtime}/cpu", "model": "minilm", "recipe": recipe, "recipe_id": f"{abs(hash_of(recipe)):012x}"[:12]}
    head |= {"exporter": exporter, "runtime": runtime, "target": "cpu"}
    if recipe == "int16x8" and runtime != "litert":
        return Arm(**head, status="refused", cause=INT16_REASON)
    if (recipe, runtime) == ("int4-group32", "torch-compiled"):
        cause = "BackendCompilerFailed: backend='inductor' raised: LoweringException: aten._weight_int4pack_mm_for_cpu has no lowering for bfloat16"
        return Arm(**head, status="failed", cause=cause, trace=f"Traceback (most recent call last):\n  ...\n{cause}", seconds={"export": 9.1})
    tensors = constants(recipe, runtime)
    return Arm(
        **head,
        status="done",
        size=size(tensors, runtime),
        latency=latency(recipe, runtime, base_ms, random),
        memory=Memory(peak_bytes=random.randint(150, 190) * 1_000_000 + sum(t.size_bytes for t in tensors), baseline_bytes=112_000_000),
        accuracy=accuracy(recipe),
        artifact=f"artifacts/minilm-{recipe}-{runtime}{suffix}",
        sha256=f"{abs(hash_of(recipe + runtime)):016x}" * 4,
        tensors=tensors,
        operators={"FULLY_CONNECTED": 38, "BATCH_MATMUL": 12, "ADD": 37, "MUL": 26, "SOFTMAX": 6, "GATHER": 3, "TANH": 1},
        notes=notes(recipe, runtime),
        seconds={"export": 6.2, "latency": 5.9, "memory": 2.8, "accuracy": 4.4},
    )


def hash_of(text: str) -> int:
    return sum(ord(c) * 1_000_003**i for i, c in enumerate(text)) % (1 << 63)


def constants(recipe: str, runtime: str) -> tuple[TensorRow, ...]:
    shapes = {"embeddings.word_embeddings.weight": (30522, HIDDEN), "embeddings.position_embeddings.weight": (512, HIDDEN)}
    shapes |= {"embeddings.LayerNorm.weight": (HIDDEN,)}
    for layer in range(LAYERS):
        at = f"encoder.layer.{layer}"
        for part in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            shapes |= {f"{at}.{part}.weight": (HIDDEN, HIDDEN), f"{at}.{part}.bias": (HIDDEN,)}
        shapes |= {f"{at}.intermediate.dense.weight": (4 * HIDDEN, HIDDEN), f"{at}.intermediate.dense.bias": (4 * HIDDEN,)}
        shapes |= {f"{at}.output.dense.weight": (HIDDEN, 4 * HIDDEN), f"{at}.output.dense.bias": (HIDDEN,), f"{at}.output.LayerNorm.weight": (HIDDEN,)}
    shapes |= {"classifier.weight": (2, HIDDEN), "classifier.bias": (2,)}
    return tuple(constant(name, shape, recipe, runtime) for name, shape in shapes.items())


def constant(name: str, shape: tuple[int, ...], recipe: str, runtime: str) -> TensorRow:
    planned, dtype, width, *_ = RECIPES[recipe]
    values = shape[0] * (shape[1] if len(shape) > 1 else 1)
    if len(shape) < 2 or not planned:
        return TensorRow(name, shape, "float32", "float", "a bias or norm stays in float: recipes compress layer weights" if planned else "", 4 * values, "")
    key = (runtime, recipe)
    if key in SIMULATED:
        return TensorRow(name, shape, "float32", "simulated", SIMULATED[key], 4 * values, planned)
    if runtime == "torch" and recipe == "int4-group32" and name.startswith("embeddings"):
        return TensorRow(name, shape, "float32", "float", "torch has no int4 embedding kernel on CPU; the recipe says allow_float", 4 * values, planned)
    return TensorRow(name, shape, dtype, "decoded" if key in DECODED else "native", DECODED.get(key, ""), int(width * values), planned)


def size(tensors: tuple[TensorRow, ...], runtime: str) -> Size:
    small = sum(t.size_bytes for t in tensors if t.placement in ("native", "decoded"))
    in_float = sum(t.size_bytes for t in tensors if t.placement in ("float", "simulated"))
    scales, zero, graph = small // 96, 0, {"litert": 61_000, "onnxruntime": 148_000}.get(runtime, 412_000)
    whole = small + scales + in_float + graph
    float32 = sum(4 * t.shape[0] * (t.shape[1] if len(t.shape) > 1 else 1) for t in tensors) + graph
    return Size(whole, int(0.91 * whole), small, scales, zero, in_float, graph, float32 / whole)


def latency(recipe: str, runtime: str, base_ms: float, random: Random) -> Latency:
    factor = 1.0 if (runtime, recipe) in SIMULATED else RECIPES[recipe][3]
    blocks = tuple(base_ms * factor * random.gauss(1.0, 0.006) for _ in range(6))
    median, wobble = sorted(blocks)[3], 0.009
    speedup = Estimate(base_ms / median, base_ms / median * (1 - wobble), base_ms / median * (1 + wobble))
    shown = speedup.low > 1 and speedup.value > 1.01, speedup.high < 1 and speedup.value < 0.99
    verdict = "baseline" if recipe == "float32" else "faster" if shown[0] else "slower" if shown[1] else "no difference shown"
    middle = Estimate(median, median * 0.995, median * 1.006)
    tails = {"p50": middle, "p90": Estimate(median * 1.04, median * 1.03, median * 1.06), "p95": Estimate(median * 1.07, median * 1.05, median * 1.11)}
    cold = (210.0 if runtime != "torch-compiled" else 8_400.0) * random.uniform(0.9, 1.1)
    return Latency(blocks, 300, 2, middle, tails, cold, median * 2.4, 11, speedup, verdict, Estimate(0.998, 0.988, 1.009))


def accuracy(recipe: str) -> Score:
    lost, changed = RECIPES[recipe][4:]
    worse = (changed + lost) // 2
    better, correct = changed - worse, BASE_CORRECT - lost
    spread = sqrt(max(changed, 1)) / SAMPLES
    if recipe == "float32":
        return Score(TOP1, SAMPLES, wilson(correct), *[None] * 7)
    difference = Estimate((better - worse) / SAMPLES, (better - worse) / SAMPLES - 1.96 * spread, (better - worse) / SAMPLES + 1.96 * spread)
    p, before = mcnemar(worse, better), BASE_CORRECT / SAMPLES
    return Score(TOP1, SAMPLES, wilson(correct), before, difference, p, worse, better, changed / SAMPLES, smallest=0.006 + 2.8 * spread, holm_p=min(1.0, 6 * p))


def wilson(correct: int, z: float = 1.96) -> Estimate:
    p, n = correct / SAMPLES, SAMPLES
    middle, half = (p + z * z / (2 * n)) / (1 + z * z / n), z * sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return Estimate(p, middle - half, middle + half)


def mcnemar(worse: int, better: int) -> float:
    n = worse + better
    return min(1.0, 2 * sum(comb(n, k) for k in range(min(worse, better) + 1)) / 2**n)


def notes(recipe: str, runtime: str) -> tuple[str, ...]:
    if (runtime, recipe) == ("torch", "int4-group32"):
        return ("embeddings.word_embeddings.weight stayed in float: torch has no int4 embedding kernel on CPU", "activations are computed in bfloat16")
    if recipe == "int8-dynamic":
        return ("activation ranges are chosen by the runtime's kernel for each batch",)
    return ()


def whole(page: str) -> str:
    """The page, and behind it what it holds packed of each arm."""
    told = json.loads(gzip.decompress(base64.b64decode(re.search(r'<script type="text/plain" id="packed">([^<]*)<', page)[1])))
    return page + "".join(told["pages"].values())
