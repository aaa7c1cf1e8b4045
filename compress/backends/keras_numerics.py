"""The core's formats inside TensorFlow graphs: common symmetric integers as operators with the bits of the NumPy oracle, the others by calling it."""

from math import prod

import numpy as np
import tensorflow as tf

from compress.errors import InputError
from compress.formats import Format, IntFormat
from compress.numerics import encode, reach
from compress.numerics.given_scales import unlearnable
from compress.numerics.scales import LEAST_MAGNITUDE, REPLACED, TINY

ABOVE = {"narrow": 0.0, "qmax": 0.0, "half": 0.5}
"""Rules by which the largest magnitude meets the largest code plus this much."""


def rounded(values: tf.Tensor, fmt: Format) -> tf.Tensor:
    """Canonical float32 values as the format holds them; gradients pass straight through (Bengio et al. 2013)."""
    compute = symmetric if native(fmt) else by_core
    return tf.grad_pass_through(lambda x: compute(x, fmt))(values)


def native(fmt: Format) -> bool:
    """Whether `symmetric` computes the format."""
    return unlearnable(fmt) is None and fmt.rule in ABOVE and fmt.fit == "minmax"


def by_core(values: tf.Tensor, fmt: Format) -> tf.Tensor:
    def decoded(array: np.ndarray) -> np.ndarray:
        try:
            return encode(array, fmt).decode()
        except InputError:
            return array  # not finite, or beyond float16: the loss or the encoding says so

    return tf.ensure_shape(tf.numpy_function(decoded, [values], tf.float32), values.shape)


def symmetric(values: tf.Tensor, fmt: IntFormat) -> tf.Tensor:
    # TensorFlow multiplies by the reciprocal of a divisor that it knows: this one it does not
    divisor = tf.compat.v1.placeholder_with_default(np.float32(fmt.code_range[1] + ABOVE[fmt.rule]), ())
    largest = tf.reduce_max(tf.abs(tf.reshape(values, [prod(reach.scale_shape(values.shape, fmt.granularity)), -1])), 1)
    if fmt.small_scale in LEAST_MAGNITUDE:
        least = LEAST_MAGNITUDE[fmt.small_scale]
        largest = tf.where((largest > 0) & (largest < least), least, largest)
    return at_scales(values, stored(largest / divisor, fmt), fmt)


def at_scales(values: tf.Tensor, scales: tf.Tensor, fmt: IntFormat) -> tf.Tensor:
    """Canonical values as integers hold them by these stored scales [n]; with the gradients of LSQ (Esser et al. 2020, equations 2 to 4) for both."""
    rows, scale = tf.reshape(values, [scales.shape[0], -1]), scales[:, None]
    codes = tf.grad_pass_through(tf.round)(tf.clip_by_value(rows / scale, *map(float, fmt.code_range)))
    return tf.reshape(codes * scale, values.shape)


def stored(scale: tf.Tensor, fmt: IntFormat) -> tf.Tensor:
    """Positive float32 scales as the format stores them: one below 2^-126 becomes a typical one, another at least the storage's smallest normal number."""
    smallest = float(np.finfo(np.float16).smallest_normal) if fmt.scale_dtype == "float16" else TINY
    kept = tf.cast(tf.cast(scale, fmt.scale_dtype), tf.float32)
    if fmt.small_scale == "litert" and fmt.scale_dtype == "bfloat16":
        kept = tf.cast(tf.cast(kept, tf.float16), tf.float32)
        return tf.where(kept == 0, REPLACED[fmt.small_scale], kept)
    return tf.where(scale < TINY, REPLACED[fmt.small_scale], tf.maximum(kept, smallest))
