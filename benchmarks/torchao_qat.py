"""A step of quantization-aware training in PyTorch, beside torchao's QAT of the same linear layers."""

import numpy as np

from benchmarks.ratio import interleaved
from compress import open_model
from compress.formats import IntFormat, PerAxis, PerGroup
from compress.training import Budget, Constraint, Course, Training

STEPS, BATCH, ROUNDS = 60, 32, 7
FORMATS = {
    "int8 per channel": (IntFormat(8, PerAxis(), "half", division="reciprocal", small_scale="eps"), {"dtype": "int8", "granularity": "per_channel"}),
    "int4 in groups of 32": (IntFormat(4, PerGroup(32), "half", division="reciprocal", small_scale="normal"), {"dtype": "int4", "group_size": 32}),
}


def model():
    from torch import nn

    return nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))


def run():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((STEPS * BATCH, 256)).astype(np.float32), rng.integers(0, 10, STEPS * BATCH)
    for name, (fmt, config) in FORMATS.items():
        network = open_model(model(), x[:1])
        constraints = {weight: Constraint(format=fmt) for weight in network.weights() if weight.endswith("weight")}
        course = Course(name, constraints, Budget(steps=STEPS, batch=BATCH), Training(x, y))
        theirs = torchao_training(config, x, y)
        theirs()
        ratio = interleaved(lambda network=network, course=course: network.train(course), theirs, ROUNDS)
        yield f"QAT in PyTorch, {name}: time of {STEPS} steps / torchao's", ratio, "at most 1.1", ratio.value <= 1.1


def torchao_training(config: dict, x: np.ndarray, y: np.ndarray):
    """Trains a prepared model for one epoch, with Adam."""
    import torch
    from torchao.quantization import quantize_
    from torchao.quantization.qat import IntxFakeQuantizeConfig, QATConfig

    weights = IntxFakeQuantizeConfig(**config | {"dtype": getattr(torch, config["dtype"])})
    prepared = model()
    quantize_(prepared, QATConfig(weight_config=weights, step="prepare"))

    def train():
        adam = torch.optim.Adam(prepared.parameters(), 1e-3)
        for batch in np.split(np.random.default_rng(0).permutation(len(x)), STEPS):
            adam.zero_grad()
            loss = torch.nn.functional.cross_entropy(prepared(torch.from_numpy(x[batch])), torch.from_numpy(y[batch]))
            loss.backward()
            adam.step()

    return train
