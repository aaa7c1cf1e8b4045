"""A study of a tiny model on random data, for tests of what is done with studies."""

from pathlib import Path

MODEL = """
import os, signal, torch
from torch import nn

def load():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)).eval()

def crashing():
    os.kill(os.getpid(), signal.SIGSEGV)

def broken():
    raise RuntimeError("the weights are gone")

def poisoned():
    model = load()
    model[0].weight.data[3, 4] = float("nan")
    return model
"""
DATA = """
import numpy as np

def part(seed, count):
    x = np.random.default_rng(seed).standard_normal((count, 64)).astype(np.float32)
    return {"input": x}, (x[:, :10]).argmax(1)

def calibration():
    return part(1, 16)

def test(limit):
    return part(2, limit)
"""
STUDY = """
name: tiny
models: {mlp: "model.py:load"}
calibration: "data.py:calibration"
test: "data.py:test"
samples: 40
recipes: [float32, int8-weight-only, int16x8]
runtimes: [onnxruntime]
latency: {processes: 1, blocks: 5, runs: 9, seconds: 0, warmup_seconds: 0}
"""


def written(folder: Path, study: str = STUDY, width: int = 64) -> Path:
    """The study's file in `folder`, with its model of `width` inputs and its data."""
    model = MODEL.replace("Linear(64, 128)", f"Linear({width}, {2 * width})").replace("Linear(128, 10)", f"Linear({2 * width}, 10)")
    for name, text in (("model.py", model), ("data.py", DATA.replace("(count, 64)", f"(count, {width})")), ("study.yaml", study)):
        (folder / name).write_text(text)
    return folder / "study.yaml"
