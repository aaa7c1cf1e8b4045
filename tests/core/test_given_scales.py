"""Integers by scales that are given: those of a fit give its codes, others are stored as the format stores them."""

import numpy as np
import pytest

from compress.errors import InputError
from compress.formats import IntFormat, PerAxis, PerGroup, PerTensor
from compress.numerics import encode
from compress.numerics.given_scales import encode_at, unlearnable
from compress.presets import preset

VALUES = np.random.default_rng(0).standard_normal((6, 4, 12)).astype(np.float32)


@pytest.mark.parametrize("rule", ["narrow", "qmax", "half", "noclip"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("granularity", [PerTensor(), PerAxis(), PerGroup(12)], ids=str)
def test_the_scales_of_a_fit_give_its_codes(rule, dtype, granularity):
    fmt = IntFormat(4, granularity, rule, scale_dtype=dtype, fit="mse")
    assert unlearnable(fmt) is None
    fitted = encode(VALUES, fmt)
    given = encode_at(VALUES, fmt, fitted.scales)
    np.testing.assert_array_equal(given.codes, fitted.codes)
    np.testing.assert_array_equal(given.scales, fitted.scales)
    third = encode_at(VALUES, fmt, fitted.scales / 3)
    assert (third.codes == fmt.code_range[1]).mean() > 0.05  # values beyond the range take the last code
    np.testing.assert_allclose(third.scales, fitted.scales / 3, rtol=2**-8)  # as bfloat16 holds them


@pytest.mark.parametrize("name", ["tflite.int8.weight", "tflite.int4.channel", "tflite.int4.block32"])
def test_scales_of_litert_can_learn(name):
    fmt, values = preset(name).format, VALUES[:, :1].repeat(8, 1) * np.float32(1e-6)
    assert unlearnable(fmt) is None
    fitted = encode(values, fmt)
    np.testing.assert_array_equal(encode_at(values, fmt, fitted.scales).decode(), fitted.decode())


def test_scales_of_another_shape_are_refused():
    with pytest.raises(InputError, match=r"scales of shape \[6\] do not fit, expected \[6, 4\]"):
        encode_at(VALUES, IntFormat(4, PerGroup(12)), np.ones(6, np.float32))
