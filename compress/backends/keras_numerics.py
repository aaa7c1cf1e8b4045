"""The core's formats inside TensorFlow graphs: common symmetric integers as operators with the bits of the NumPy oracle, the others by calling it."""

from math import prod

import numpy as np
import tensorflow as tf

from compress.errors import InputError
from compress.formats import Format, IntFormat, PerBlock
from compress.numerics import encode, reach
from compress.numerics.scales import TINY

ABOVE = {"narrow": 0.0, "qmax": 0.0, "half": 0.5}
"""Rules by which the largest magnitude meets the largest code plus this much."""


def rounded(values: tf.Tensor, fmt: Format) -> tf.Tensor:
    """Canonical float32 values as the format holds them; gradients pass straight through (Bengio et al. 2013)."""
    compute = symmetric if native(values.shape, fmt) else by_core
    return tf.grad_pass_through(lambda x: compute(x, fmt))(values)


def native(shape: tuple[int, ...], fmt: Format) -> bool:
    """Whether `symmetric` computes the format for tensors of this shape."""
    if not isinstance(fmt, IntFormat) or fmt.rule not in ABOVE or not fmt.signed or fmt.scale_dtype not in ("float32", "bfloat16"):
        return False
    usual = IntFormat(fmt.bits)
    same = all(getattr(fmt, what) == getattr(usual, what) for what in ("rounding", "fit", "division", "codes_from", "small_scale", "arithmetic"))
    return same and not isinstance(fmt.granularity, PerBlock) and prod(shape) % prod(reach.scale_shape(shape, fmt.granularity)) == 0


def by_core(values: tf.Tensor, fmt: Format) -> tf.Tensor:
    def decoded(array: np.ndarray) -> np.ndarray:
        try:
            return encode(array, fmt).decode()
        except InputError:
            return array  # not finite, or beyond float16: the loss or the encoding says so

    return tf.ensure_shape(tf.numpy_function(decoded, [values], tf.float32), values.shape)


def symmetric(values: tf.Tensor, fmt: IntFormat) -> tf.Tensor:
    rows = tf.reshape(values, [prod(reach.scale_shape(values.shape, fmt.granularity)), -1])
    low, high = fmt.code_range
    # TensorFlow multiplies by the reciprocal of a divisor that it knows: this one it does not
    divisor = tf.compat.v1.placeholder_with_default(np.float32(high + ABOVE[fmt.rule]), ())
    scale = stored(tf.reduce_max(tf.abs(rows), 1, keepdims=True) / divisor, fmt)
    return tf.reshape(tf.clip_by_value(tf.round(rows / scale), low, high) * scale, values.shape)


def stored(scale: tf.Tensor, fmt: IntFormat) -> tf.Tensor:
    """Positive float32 scales as the format stores them; one below the smallest normal number becomes 1."""
    kept = tf.cast(tf.cast(scale, fmt.scale_dtype), tf.float32)
    return tf.where(scale < TINY, 1.0, tf.maximum(kept, TINY))
