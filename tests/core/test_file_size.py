"""Files of the project's own format have exactly the predicted bytes."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from compress import encode
from compress.errors import InputError
from compress.formats import CodebookFormat, DoubleQuantized, FloatFormat, IntFormat, Learned, PerAxis, PerBlock, PerGroup, PerTensor
from compress.numerics.file_size import file_bytes
from compress.presets import PRESETS

UNSIGNED = {"rule": "asymmetric", "signed": False}
FORMATS = [
    *(preset.format for preset in PRESETS.values()),
    *(FloatFormat(dtype) for dtype in ("float16", "bfloat16")),
    *(IntFormat(bits, reach, "signed") for bits in (1, 3, 8) for reach in (PerTensor(), PerAxis())),
    *(IntFormat(bits, reach, "asymmetric") for bits in (1, 3, 4, 8, 16) for reach in (PerTensor(), PerAxis(), PerGroup(32, "short"))),
    *(IntFormat(bits, PerAxis(), **UNSIGNED) for bits in (5, 8, 16)),
    *(IntFormat(4, PerBlock(50), scale_dtype=dtype) for dtype in ("float32", "float16", "bfloat16", "float8_e4m3", "float8_e8m0")),
    *(IntFormat(4, PerBlock(50), zero_point=zero, scale_dtype=dtype, **UNSIGNED) for zero in ("float", "offset") for dtype in ("float32", "bfloat16")),
    *(CodebookFormat(Learned(7, entry_dtype=dtype), PerGroup(32, "short"), "none") for dtype in ("float32", "float16", "int8")),
    CodebookFormat((-1.0, -0.3, 0.0, 0.2, 1.1), PerBlock(50)),
    CodebookFormat("nf4", PerBlock(4), double=DoubleQuantized("linear", 100)),
]


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(FORMATS), st.lists(st.integers(1, 70), min_size=1, max_size=4).filter(lambda shape: np.prod(shape) <= 20_000), st.integers(0, 9))
def test_saved_files_have_the_predicted_bytes(tmp_path_factory, fmt, shape, seed):
    path = tmp_path_factory.mktemp("saved") / "w.safetensors"
    try:
        encoded = encode(np.random.default_rng(seed).normal(size=shape).astype(np.float32), fmt)
    except InputError:
        assume(False)  # groups that this shape does not have
    encoded.save(path)
    assert path.stat().st_size == file_bytes(tuple(shape), fmt) == encoded.ledger.file_bytes


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_every_format_has_the_predicted_bytes(fmt, tmp_path):
    encode(np.random.default_rng(1).normal(size=(6, 256)).astype(np.float32), fmt).save(tmp_path / "w")
    assert (tmp_path / "w").stat().st_size == file_bytes((6, 256), fmt)
