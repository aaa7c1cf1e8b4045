"""Fine-tunes MiniLM on IMDB with LoRA in plain PyTorch and writes adapter.safetensors (about 40 minutes on 2 cores).

python examples/sentiment/train.py --epochs 3
"""

import argparse
import math
import time

import numpy as np
import torch
from data import test, train
from model import ADAPTER, pretrained
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrize


class LowRank(nn.Module):
    """weight + B A * alpha / r (Hu et al. 2021), with B zero at the start."""

    def __init__(self, weight: torch.Tensor, rank: int, alpha: float):
        super().__init__()
        out, inputs = weight.shape
        self.a = nn.Parameter(torch.randn(rank, inputs) / math.sqrt(inputs))
        self.b = nn.Parameter(torch.zeros(out, rank))
        self.scale = alpha / rank

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + self.scale * (self.b @ self.a)


def add_adapters(model: nn.Module, rank: int, alpha: float) -> list[nn.Parameter]:
    model.requires_grad_(False)
    for module in model.encoder.modules():
        if isinstance(module, nn.Linear):
            parametrize.register_parametrization(module, "weight", LowRank(module.weight, rank, alpha))
    model.classifier.requires_grad_(True)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def adapter(model: nn.Module) -> dict[str, torch.Tensor]:
    found = {f"classifier.{name}": value.detach().clone() for name, value in model.classifier.named_parameters()}
    for name, module in model.encoder.named_modules():
        if parametrize.is_parametrized(module, "weight"):
            low_rank = module.parametrizations.weight[0]
            found[f"encoder.{name}.weight.lora_a"] = low_rank.a.detach().half()
            found[f"encoder.{name}.weight.lora_b"] = (low_rank.scale * low_rank.b.detach()).half()
    return found


@torch.no_grad()
def accuracy(model: nn.Module, limit: int) -> float:
    model.eval()
    inputs, labels = test(limit)
    ids, mask = torch.from_numpy(inputs["input_ids"]), torch.from_numpy(inputs["attention_mask"])
    right = 0
    for start in range(0, len(labels), 50):
        rows = slice(start, start + 50)
        right += (model(ids[rows], mask[rows]).argmax(1).numpy() == labels[rows]).sum()
    model.train()
    return right / len(labels)


def main(epochs: int, rank: int, rate: float, batch: int) -> None:
    torch.manual_seed(0)
    model = pretrained()
    parameters = add_adapters(model, rank, alpha=2 * rank)
    inputs, labels = train()
    ids, mask, target = (torch.from_numpy(a) for a in (inputs["input_ids"], inputs["attention_mask"], labels))
    steps = epochs * (len(labels) // batch)
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.06, anneal_strategy="linear")
    print(f"{sum(p.numel() for p in parameters):,} trainable parameters, {len(labels):,} reviews, {steps} steps", flush=True)
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    with Progress(*columns) as progress:
        task = progress.add_task("training", total=steps)
        for epoch in range(epochs):
            started, losses = time.perf_counter(), []
            order = torch.from_numpy(np.random.default_rng(epoch).permutation(len(labels)))
            for rows in order[: len(labels) // batch * batch].view(-1, batch):
                width = int(mask[rows].sum(1).max())
                with torch.autocast("cpu", torch.bfloat16):
                    loss = nn.functional.cross_entropy(model(ids[rows, :width], mask[rows, :width]).float(), target[rows])
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                schedule.step()
                losses.append(loss.item())
                progress.update(task, advance=1, description=f"training, loss {np.mean(losses[-50:]):.3f}")
            save_file(adapter(model), ADAPTER)
            seconds = time.perf_counter() - started
            print(f"epoch {epoch + 1}: loss {np.mean(losses):.3f}, test accuracy {accuracy(model, 1000):.3f} (1,000 reviews), {seconds:.0f} s", flush=True)
    print(f"wrote {ADAPTER.name}, test accuracy {accuracy(model, 5000):.4f} (5,000 reviews)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--batch", type=int, default=32)
    main(**vars(parser.parse_args()))
