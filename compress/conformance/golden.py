"""Golden vectors: weights [out, in] on which libraries part ways. Deterministic, and small but for the last two."""

from collections.abc import Callable

import numpy as np

OUT, IN = 64, 256  # 16,384 values: what torchao's double quantization divides into, and more than the converter's smallest weight


def noise(*shape: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def ties() -> np.ndarray:
    """Values midway between codes of every rule: each row holds one rule's half steps at a scale of 1, its largest value in each group of 16."""
    rng = np.random.default_rng(5)
    rows = []
    for largest, lowest in ((127, -127), (7, -7), (7.5, -7.5), (8, -7.5), (-8, -7.5), (15, 0), (255, 0), (6, -6)):
        steps = rng.integers(2 * lowest, 2 * abs(largest) + 1, (OUT // 8, IN)) / 2
        steps[:, ::16] = largest
        steps[:, 1::16] = min(lowest, 0)
        rows.append(steps)
    return np.concatenate(rows).astype(np.float32)


def level_ties() -> np.ndarray:
    """Values midway between neighbouring levels of NF4, FP4 and E2M1, and one float32 step to either side."""
    from compress.numerics.codebooks import levels

    rng, rows = np.random.default_rng(6), []
    for name in ("nf4", "fp4_bnb", "e2m1", "nf4"):
        table = levels(name)
        ordered = table.values[table.order]
        middle = ((ordered[1:].astype(np.float64) + ordered[:-1]) / 2).astype(np.float32)
        near = np.concatenate([middle, np.nextafter(middle, np.float32(9)), np.nextafter(middle, np.float32(-9))])
        values = rng.choice(near, (OUT // 4, IN))
        values[:, ::16] = table.largest
        rows.append(values)
    return np.concatenate(rows)


def zeros() -> np.ndarray:
    return np.zeros((OUT, IN), np.float32)


def zero_groups() -> np.ndarray:
    """Every other stretch of 128 inputs is zero, and so is every fourth channel."""
    values = noise(OUT, IN)
    values[::2, :128] = values[1::2, 128:] = values[::4] = 0
    return values


def all_negative() -> np.ndarray:
    return -np.abs(noise(OUT, IN)) - np.float32(0.01)


def one_outlier() -> np.ndarray:
    values = noise(OUT, IN)
    values[7, 77] = 3000
    return values


def small_channels() -> np.ndarray:
    """Channels of 1e-3 down to 1e-30, where each library has its own smallest scale: 5e-5 to 2^-126."""
    return noise(OUT, IN) * np.logspace(-3, -30, OUT, dtype=np.float32)[:, None]


def small_tensor() -> np.ndarray:
    return noise(OUT, IN) * np.float32(3e-8)


def subnormal_scale() -> np.ndarray:
    """Values up to 4e-38: normal floats, whose scales are not."""
    return noise(OUT, IN) * np.float32(1e-38)


def odd_length() -> np.ndarray:
    return noise(33, 65)


def ragged_tail() -> np.ndarray:
    """264 inputs: whole groups of 8 only; 16,632 values leave a tail of 56 in blocks of 64."""
    return noise(63, 264)


def amax_of_sign(sign: int) -> np.ndarray:
    """The largest magnitude of every group of 16 has one sign."""
    values = np.clip(noise(OUT, IN), -2, 2)
    values[:, ::16] = sign * np.float32(2.6875)
    return values


def fp16_input() -> np.ndarray:
    return noise(OUT, IN).astype(np.float16)


VECTORS: dict[str, Callable[[], np.ndarray]] = {
    "ties": ties,
    "level ties": level_ties,
    "zeros": zeros,
    "zero groups": zero_groups,
    "all negative": all_negative,
    "one outlier": one_outlier,
    "small channels": small_channels,
    "small tensor": small_tensor,
    "subnormal scale": subnormal_scale,
    "odd length": odd_length,
    "ragged tail": ragged_tail,
    "amax positive": lambda: amax_of_sign(1),
    "amax negative": lambda: amax_of_sign(-1),
    "fp16 input": fp16_input,
    "Gaussian": lambda: noise(128, 1024),
    "Student-t": lambda: np.random.default_rng(9).standard_t(3, (128, 1024)).astype(np.float32),
}
