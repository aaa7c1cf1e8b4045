"""The matrix of docs/conformance.md, asked again of the live libraries: a class may not get worse."""

import functools
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import compress.conformance as conformance
from compress.conformance.golden import VECTORS
from compress.conformance.matrix import RANK, Cell, Theirs, compare
from compress.conformance.page import classes, markdown, worse
from compress.conformance.peers import PEERS
from compress.formats import IntFormat, PerAxis
from compress.numerics import encode
from compress.presets import PRESETS, preset

PAGE = Path(__file__).parents[1] / "docs" / "conformance.md"
NEEDED = [  # the names that recipes, documents and users rely on
    "bnb.nf4", "bnb.nf4.dq", "bnb.fp4", "tflite.int8.weight", "tflite.int4.block32", "ort.matmulnbits.int4", "onnx.qdq.int8", "torchao.int8wo", "gguf.q4_0",
    "ct.w4a16.g128", "mx.fp4", "nvfp4",
]  # fmt: skip


@functools.cache
def asked() -> dict[str, Future]:
    """Every library at work, two at a time."""
    pool = ThreadPoolExecutor(conformance.AT_ONCE)
    return {name: pool.submit(conformance.ask, name) for name in PEERS}


@functools.cache
def expected() -> dict:
    return classes(PAGE.read_text(encoding="utf-8"))


@pytest.mark.parametrize("peer", list(PEERS))
def test_no_class_is_worse_than_on_the_page(peer):
    answer = asked()[peer].result()
    if answer.missing:
        pytest.skip(answer.missing)
    assert not worse(answer, expected())
    there = {key for key in expected() if key[0] == peer}
    assert there == {(peer, row.preset, row.how, vector) for row in answer.rows for vector in VECTORS}, "write docs/conformance.md again"


@pytest.mark.parametrize("name", NEEDED)
def test_presets_that_a_library_owns_are_exact_or_up_to_ties_on_ordinary_weights(name):
    """On Gaussian weights some function of some library gives the same codes."""
    found = {kind for (_, owned, _, vector), kind in expected().items() if owned == name and vector == "Gaussian"}
    assert found & {"EXACT", "UP TO TIES"}


def test_the_page_covers_every_library_and_vector():
    found = {(peer, vector) for peer, _, _, vector in expected()}
    assert {peer for peer, _ in found} == set(PEERS) and {vector for _, vector in found} == set(VECTORS)
    assert all(preset(name) in PRESETS.values() for _, name, _, _ in expected())


def test_nothing_differs():
    assert not [key for key, kind in expected().items() if kind == "DIFFERS"]


# What the classes mean, on answers made up from our own.


def answer_of(name: str, change, vector: str = "Gaussian") -> Cell:
    values = VECTORS[vector]()
    ours = encode(values, preset(name).format)
    codes, decoded = ours.codes.astype(int), ours.decode()
    return compare(values, preset(name).format, Theirs(*change(values, codes, decoded)))


def test_the_same_answer_is_exact():
    for name in ("tflite.int8.weight", "bnb.nf4", "gguf.q4_1", "hqq.int4.group64", "mx.fp4"):
        assert answer_of(name, lambda values, codes, decoded: (codes, decoded)) == Cell("EXACT")


def test_one_code_off_is_not_a_tie():
    def change(values, codes, decoded):
        at = np.unravel_index(np.abs(decoded - values).argmin(), values.shape)  # in the middle of its cell
        codes[at] += 1 if codes[at] < 0 else -1
        return codes, decoded

    assert answer_of("tflite.int8.weight", change).kind == "±1 CODE"


def test_a_tie_the_other_way_is_up_to_ties():
    def change(values, codes, decoded):
        scale = encode(values, preset("tflite.int8.weight").format).scales[:, None].astype(np.float64)
        tied = np.abs(values / scale - np.trunc(values / scale)) == 0.5
        assert tied.sum() > 100
        return np.where(tied, np.trunc(values / scale) + np.copysign(1, values), codes), decoded

    cell = answer_of("tflite.int8.weight", change, "ties")
    assert cell.kind == "UP TO TIES" and cell.count > 50


def test_two_codes_off_and_another_scale_differ():
    assert answer_of("bnb.nf4", lambda values, codes, decoded: (np.where(codes == 5, 7, codes), decoded)).kind == "DIFFERS"
    assert answer_of("bnb.nf4", lambda values, codes, decoded: (codes, decoded * np.float32(1 + 2.0**-19))).kind == "DIFFERS"
    assert answer_of("bnb.nf4", lambda values, codes, decoded: (codes, decoded * np.float32(1 + 2.0**-22))) == Cell("EXACT", 0, 4)
    assert answer_of("bnb.nf4", lambda values, codes, decoded: (codes, decoded * np.nan)).kind == "DIFFERS"


def test_codes_that_are_neighbouring_levels_count_as_one_off():
    """E2M1's codes are sign and magnitude: -0.5 is code 9 and 0.5 is code 1, with 0 between them."""
    assert answer_of("mx.fp4", lambda values, codes, decoded: (np.where(codes == 9, 0, codes), decoded)).kind == "±1 CODE"
    assert answer_of("mx.fp4", lambda values, codes, decoded: (np.where(codes == 9, 1, codes), decoded)).kind == "DIFFERS"
    assert answer_of("mx.fp4", lambda values, codes, decoded: (np.where(codes == 0, 8, codes), decoded)).kind == "EXACT"


def test_codes_of_zeros_count_as_the_same_and_other_codes_do_not():
    def shifted(values, codes, decoded):
        return np.where((decoded == 0) if not values.any() else (codes == 0), 7, codes), decoded

    assert answer_of("ct.w4a16.asym", shifted, "zeros") == Cell("EXACT")
    assert answer_of("ct.w4a16.group128", shifted).kind == "DIFFERS"


SMALLER = (127e-10, 127e-12, 127e-39, 0)  # largest magnitudes of four channels of int8


@pytest.mark.parametrize(
    ("small", "scales"),
    [
        ("one", (1e-10, 1e-12, 1, 1)),
        ("typical", (1e-10, 1e-12, 2.0**-12, 2.0**-12)),
        ("keep", (1e-10, 1e-12, 1e-39, 1)),
        ("normal", (1e-10, 1e-12, 2.0**-126, 2.0**-126)),
        ("eps", (2.0**-23,) * 4),
        ("litert", (1e-10, 1e-9 / 127, 1e-9 / 127, 2.0**-12)),
        ("converter", (5e-7 / 127, 5e-7 / 127, 5e-7 / 127, 2.0**-12)),
    ],
)
def test_small_scales(small, scales):
    values = np.array(SMALLER, np.float32)[:, None] * np.float32([1, -0.02, 0, 0])
    found = encode(values, IntFormat(8, PerAxis(), small_scale=small))
    np.testing.assert_allclose(found.scales, scales, rtol=2e-5)
    np.testing.assert_array_equal(found.codes, np.rint(values / found.scales[:, None]))


def test_hqqs_small_ranges():
    values = np.float32([[0, 9e-4], [0, 5e-4], [3e-5, 9e-5]])
    fmt = replace(preset("hqq.int4.group64").format, granularity=PerAxis())
    found = encode(values, fmt)
    np.testing.assert_allclose(found.scales, [6e-5, 5e-5, 1], rtol=1e-6)
    np.testing.assert_allclose(found.decode(), [[0, 9e-4], [0, 5e-4], [3e-5, 3e-5]], rtol=1e-5)


def test_scales_that_litert_stores_are_numbers_of_both_halves():
    """bfloat16's mantissa in a float16, which has fewer digits below 2^-14 and none below 2^-25."""
    fmt = preset("tflite.int4.block32").format
    scales = encode(np.logspace(-9, 4, 512, dtype=np.float32)[:, None] * np.ones(32, np.float32), fmt).scales
    assert np.array_equal(scales, scales.astype(np.float16)) and not (scales.view(np.uint32) & 0xFFFF).any() and (scales > 0).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_torchao_computes_the_scales_of_half_precision_weights_in_their_dtype(dtype):
    """int8 weights of a bfloat16 model are others than those of the same model in float32."""
    torch = pytest.importorskip("torch")
    quantization = pytest.importorskip("torchao.quantization")
    weight = torch.from_numpy(VECTORS["Gaussian"]()).to(getattr(torch, dtype))
    model = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    model.weight = torch.nn.Parameter(weight)
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig(set_inductor_config=False))
    values, theirs = weight.float().numpy(), model.weight.qdata.numpy()
    fmt = preset("torchao.int8wo").format
    np.testing.assert_array_equal(encode(values, replace(fmt, scale_dtype=dtype)).codes, theirs)
    assert (encode(values, fmt).codes != theirs).any()


def test_a_worse_class_is_found():
    row = conformance.Row("bnb.nf4", "f", "", {vector: Cell("EXACT") for vector in VECTORS})
    answer = conformance.Answer("bitsandbytes", "1", (row,))
    known = classes(markdown([answer]))
    assert not worse(answer, known) and len(known) == len(VECTORS)
    for kind in list(RANK)[1:]:
        broken = replace(answer, rows=(replace(row, cells={**row.cells, "ties": Cell(kind, 3)}),))
        assert len(worse(broken, known)) == 1
        assert not worse(answer, classes(markdown([broken])))


def test_a_library_that_is_not_installed_is_said(monkeypatch):
    from compress.conformance import worker
    from compress.registry import Entry

    monkeypatch.setitem(PEERS.entries, "absent", Entry("compress.conformance.peers.bnb", "peers"))
    monkeypatch.setattr("compress.registry.import_module", lambda name: (_ for _ in ()).throw(ModuleNotFoundError(name="bitsandbytes")))
    assert "bitsandbytes, which is not installed" in worker.examine("absent")["missing"]
    assert "NOT INSTALLED" in markdown([conformance.Answer("absent", "", (), "needs it")])
