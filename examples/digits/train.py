"""Trains the digits network and writes build/digits.keras (under a minute on 2 cores).

python examples/digits/train.py
"""

import argparse
import os

import keras
import numpy as np
from data import shifted, test, train
from model import TRAINED, untrained


def accuracy(model: keras.Model) -> float:
    inputs, labels = test()
    return float((model.predict(inputs["image"], batch_size=250, verbose=0).argmax(1) == labels).mean())


def main(epochs: int = 12, batch: int = 64, rate: float = 4e-3) -> None:
    keras.utils.set_random_seed(0)
    generator = np.random.default_rng(0)
    model = untrained()
    inputs, labels = train()
    steps = epochs * (len(labels) // batch)
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(rate, steps)), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    print(f"training the digits network: {model.count_params():,} parameters, {len(labels):,} images, {epochs} epochs", flush=True)
    for epoch in range(epochs):
        history = model.fit(shifted(inputs["image"], generator), labels, batch, verbose=0)
        print(f"  epoch {epoch + 1}: loss {history.history['loss'][0]:.3f}", flush=True)
    print(f"test accuracy {accuracy(model):.4f} (1,000 digits)", flush=True)
    TRAINED.parent.mkdir(exist_ok=True)
    fresh = TRAINED.with_name(f"{os.getpid()}.keras")  # two processes may train at once: the file appears whole
    model.save(fresh)
    os.replace(fresh, TRAINED)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=4e-3)
    main(**vars(parser.parse_args()))
