"""Formats inside TensorFlow graphs have the bits of the NumPy oracle."""

import numpy as np
import pytest

from compress.formats import CodebookFormat, FloatFormat, IntFormat, PerAxis, PerGroup, PerTensor
from compress.numerics import encode

tf = pytest.importorskip("tensorflow")
pytest.importorskip("keras")

HALF_SCALES = (IntFormat(2, PerGroup(7), scale_dtype="float16"), IntFormat(4, PerGroup(16), scale_dtype="bfloat16", small_scale="litert"))
NATIVE = (
    IntFormat(8, PerAxis(), "narrow"),
    IntFormat(16, PerTensor(), "narrow"),
    IntFormat(4, PerGroup(16), scale_dtype="bfloat16"),
    IntFormat(3, PerAxis(), "half"),
    IntFormat(8, PerAxis(), "narrow", small_scale="converter"),
    *HALF_SCALES,
)
OTHER = (IntFormat(4, PerGroup(16, "short")), IntFormat(8, PerAxis(), "asymmetric"), CodebookFormat("nf4", PerTensor()), FloatFormat("bfloat16"))


@pytest.mark.parametrize("fmt", [*NATIVE, *OTHER], ids=str)
def test_values_in_a_graph_are_the_decoded_ones(fmt):
    from compress.backends.keras_numerics import native, rounded

    shape = (24, 16, 7) if fmt in NATIVE else (24, 5, 7)
    assert native(fmt) == (fmt in NATIVE)
    compiled, rng = tf.function(lambda x: rounded(x, fmt)), np.random.default_rng(0)
    for power in range(-30, 4 if fmt in HALF_SCALES else 30, 3):  # float16 scales end at 65504
        values = (rng.standard_normal(shape) * 10.0**power).astype(np.float32)
        values[3] = 0
        values[4] = np.float32(10.0**power) * np.sign(values[4])  # every value is an extreme
        np.testing.assert_array_equal(compiled(tf.constant(values)), encode(values, fmt).decode())


def test_gradients_pass_straight_through():
    from compress.backends.keras_numerics import rounded

    for fmt in (NATIVE[0], OTHER[1]):
        values = tf.Variable(np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32))
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(3 * rounded(values + 0.0, fmt))
        np.testing.assert_array_equal(tape.gradient(loss, values), np.full((4, 8), 3, np.float32))
