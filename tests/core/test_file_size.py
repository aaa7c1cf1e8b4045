"""Files of the project's own format have exactly the predicted bytes."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from compress import encode
from compress.errors import BrokenFile, InputError
from compress.formats import CodebookFormat, DoubleQuantized, FloatFormat, IntFormat, Learned, PerAxis, PerBlock, PerGroup, PerTensor
from compress.numerics import Encoded
from compress.numerics.coding import stored_codes
from compress.numerics.file_size import file_bytes
from compress.numerics.storing import checksum, to_arrays
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


shapes = st.lists(st.integers(1, 70), min_size=1, max_size=4).filter(lambda shape: np.prod(shape) <= 20_000)


def encoded_or_none(fmt, shape, zeros: float, seed: int):
    rng = np.random.default_rng(seed)
    try:
        return encode(np.where(rng.random(shape) < zeros, 0, rng.normal(size=shape)).astype(np.float32), fmt)
    except InputError:
        return None  # groups that this shape does not have


def same(one: Encoded, other: Encoded) -> bool:
    arrays, others = to_arrays(one), to_arrays(other)
    return arrays.keys() == others.keys() and all(arrays[name].tobytes() == others[name].tobytes() for name in arrays)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(FORMATS), shapes, st.sampled_from([0, 0.5, 0.8, 0.95, 1]), st.integers(0, 9))
def test_saved_files_have_the_predicted_bytes(tmp_path_factory, fmt, shape, zeros, seed):
    path = tmp_path_factory.mktemp("saved") / "w.safetensors"
    encoded = encoded_or_none(fmt, shape, zeros, seed)
    assume(encoded is not None)
    encoded.save(path)
    size = path.stat().st_size
    assert size == file_bytes(tuple(shape), fmt, stored_codes(encoded.codes)) == encoded.ledger.file_bytes <= file_bytes(tuple(shape), fmt)
    assert same(Encoded.load(path), encoded)


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_every_format_has_the_predicted_bytes(fmt, tmp_path):
    encoded = encode(np.random.default_rng(1).normal(size=(6, 256)).astype(np.float32), fmt)
    encoded.save(tmp_path / "w")
    assert (tmp_path / "w").stat().st_size == encoded.ledger.file_bytes <= file_bytes((6, 256), fmt)


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_entropy_coded_files_are_small_and_exact(fmt, tmp_path):
    encoded = encoded_or_none(fmt, (64, 512), 0.8, 1)
    encoded.save(tmp_path / "plain")
    encoded.save(tmp_path / "coded", entropy=True)
    assert same(Encoded.load(tmp_path / "coded"), encoded)
    plain, coded = ((tmp_path / name).stat().st_size for name in ("plain", "coded"))
    assert coded <= plain + 100  # what cannot be coded has a frame around it
    bound = encoded.ledger.shannon_bytes + encoded.ledger.total - encoded.ledger.payload
    assert coded <= 1.35 * bound + 1200  # Huffman's whole bits, in bytes of two codes where they are short; the header and the tables


@pytest.mark.parametrize(("zeros", "names"), [(0, {"codes"}), (0.8, {"codes", "mask"}), (0.95, {"codes", "counts", "places"})])
def test_zeros_are_left_out_where_that_is_smaller(zeros, names, tmp_path):
    from safetensors import safe_open

    encoded = encoded_or_none(IntFormat(8, PerAxis(), "narrow"), (64, 512), zeros, 1)
    encoded.save(tmp_path / "w")
    with safe_open(tmp_path / "w", "numpy") as file:
        assert set(file.keys()) == names | {"scales"}
        assert file.metadata()["compresskit.encoded"] == ("1" if zeros == 0 else "2")
    if zeros:
        assert encoded.ledger.file_bytes < 0.5 * file_bytes((64, 512), encoded.format)


@pytest.mark.parametrize("entropy", [False, True])
def test_damaged_codes_are_named(entropy, tmp_path):
    """Also where the checksum was made to fit: lengths and frames are checked."""
    from safetensors import safe_open
    from safetensors.numpy import load_file, save_file

    encoded_or_none(IntFormat(8, PerAxis(), "narrow"), (64, 512), 0.8, 1).save(tmp_path / "w", entropy)
    whole = (tmp_path / "w").read_bytes()
    hurt = bytearray(whole)
    hurt[-100] ^= 1
    (tmp_path / "w").write_bytes(hurt)
    with pytest.raises(BrokenFile, match="altered"):
        Encoded.load(tmp_path / "w")
    (tmp_path / "w").write_bytes(whole)
    with safe_open(tmp_path / "w", "numpy") as file:
        told = file.metadata()
    for name in ("codes", "mask"):
        tensors = load_file(tmp_path / "w")
        tensors[name] = tensors[name][:-3].copy()
        told["sha256"] = checksum(tensors, {key: value for key, value in told.items() if key != "sha256"})
        save_file(tensors, tmp_path / "short", told)
        with pytest.raises(BrokenFile):
            Encoded.load(tmp_path / "short")
