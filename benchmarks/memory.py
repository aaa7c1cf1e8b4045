"""A training step's peak memory, measured in a fresh process, beside the prediction: full fine-tuning, LoRA, QLoRA of SmolLM2-135M in float32 on the CPU.

Each twice: with mappings of their own for tensors of 128 KiB and more, which glibc's malloc gives back when they are freed, and with its defaults, which keep
some of what is freed. The prediction is of tensors, so the first is judged.
"""

import json
import os
import subprocess
import sys

METHODS = ("full", "lora", "qlora")
SHAPES = ((1, 256), (2, 128))
BAR = 0.10
GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_MMAP_MAX_": "1000000"}


def run():
    for batch, seq in SHAPES:
        peaks = []
        for method in METHODS:
            facts, defaults = (fresh(method, batch, seq, environment) for environment in (GIVEN_BACK, {}))
            predicted, measured = facts["peak"]["predicted"], facts["peak"]["measured"]
            peaks.append(measured)
            rest = ", ".join(f"{name} {size / 1e6:,.0f}" for name, size in facts["not predicted"].items())
            said = f"{predicted / 1e6:,.0f} MB predicted, {measured / 1e6:,.0f} measured ({predicted / measured - 1:+.1%}; {rest})"
            yield f"{method}, batch {batch} of {seq} tokens", said, f"within {BAR:.0%}", abs(predicted / measured - 1) <= BAR
            more, kept = defaults["peak"]["measured"], defaults["not predicted"]["freed tensors that malloc keeps"]
            said = f"{more / 1e6:,.0f} MB measured ({predicted / more - 1:+.1%}), of it kept by malloc {kept / 1e6:,.0f}"
            yield "  with malloc's defaults", said, "said, not judged", True
            for line, sizes in facts["lines"].items():
                yield f"  {line}", f"{sizes['predicted'] / 1e6:,.1f} MB predicted, {sizes['measured'] / 1e6:,.1f} measured", "said, not judged", True
        yield (
            "QLoRA < LoRA < full",
            " < ".join(f"{peak / 1e6:,.0f} MB" for peak in reversed(peaks)),
            "measured in this order",
            peaks == sorted(peaks, reverse=True),
        )


def fresh(method: str, batch: int, seq: int, environment: dict[str, str]) -> dict:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.memory", method, str(batch), str(seq)]
    done = subprocess.run(command, env=os.environ | environment | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def measure(method: str, batch: int, seq: int) -> dict:
    """Four steps with the trainer on random tokens; weights are random too, which no memory depends on."""
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM

    from compress.finetune import Budget, Samples, adapt, load_method
    from compress.finetune.architectures import load_config
    from compress.finetune.losses import Objective
    from compress.finetune.measuring import Meter
    from compress.finetune.memory import predict_step
    from compress.finetune.training import Trainer

    budget, objective = Budget(steps=4, batch=batch), Objective("causal_lm")
    ids = np.random.default_rng(0).integers(0, 49152, (4 * batch, seq))
    data = Samples({"input_ids": ids, "attention_mask": np.ones_like(ids)}, ids)
    adapted = adapt(AutoModelForCausalLM.from_config(load_config("smollm2-135m"), dtype=torch.float32), load_method(method))
    predicted = predict_step(adapted, *data.take(np.arange(batch)), objective, budget)
    trainer = Trainer(adapted, data, budget, objective)
    meter = Meter(adapted, trainer.optimizer.optimizer)
    trainer.run()
    return meter.measured().beside(predicted)


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
