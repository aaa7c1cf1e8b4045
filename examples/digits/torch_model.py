"""The digits network of model.py in PyTorch, trained when first asked for (under a minute on 2 cores).

python examples/digits/torch_model.py
"""

import os
from pathlib import Path

import numpy as np
import torch
from data import shifted, test, train
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

TRAINED = Path(__file__).with_name("build") / "digits.safetensors"


def convolution(inputs: int, filters: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, filters, size, stride, size // 2, groups=groups, bias=False), nn.BatchNorm2d(filters), nn.ReLU())


class Digits(nn.Module):
    """Logits [batch, 10] of images [batch, 28, 28, 1] in 0..1."""

    def __init__(self):
        super().__init__()
        separable = [convolution(32, 32, 3, groups=32), convolution(32, 64, 1), convolution(64, 64, 3, 2, groups=64), convolution(64, 64, 1)]
        self.features = nn.Sequential(convolution(1, 32, 3, 2), *separable, nn.AvgPool2d(2, ceil_mode=True), nn.Flatten())
        self.hidden, self.logits = nn.Linear(1024, 64), nn.Linear(64, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.logits(functional.relu(self.hidden(self.features(image.permute(0, 3, 1, 2)))))


def main(epochs: int = 12, batch: int = 64, rate: float = 4e-3) -> None:
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    model, (inputs, labels) = Digits(), train()
    labels = torch.from_numpy(labels)
    optimizer = torch.optim.Adam(model.parameters(), rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * (len(labels) // batch))
    print(f"training the digits network in PyTorch: {sum(p.numel() for p in model.parameters()):,} parameters, {epochs} epochs", flush=True)
    for epoch in range(epochs):
        moved, order = torch.from_numpy(shifted(inputs["image"], generator)), torch.from_numpy(generator.permutation(len(labels)))
        for taken in order[: len(labels) // batch * batch].split(batch):
            loss = functional.cross_entropy(model(moved[taken]), labels[taken])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"  epoch {epoch + 1}: loss of the last batch {loss.item():.3f}", flush=True)
    TRAINED.parent.mkdir(exist_ok=True)
    fresh = TRAINED.with_name(f"{os.getpid()}.safetensors")  # two processes may train at once: the file appears whole
    save_file(model.state_dict(), fresh)
    os.replace(fresh, TRAINED)
    inputs, labels = test()
    found = load()(torch.from_numpy(inputs["image"])).argmax(1).numpy()
    print(f"test accuracy {(found == labels).mean():.4f} (1,000 digits)", flush=True)


def load() -> nn.Module:
    """The trained network; the first call trains it and keeps the file in build/."""
    if not TRAINED.exists():
        main()
    model = Digits()
    model.load_state_dict(load_file(TRAINED))
    return model.eval()


if __name__ == "__main__":
    main()
