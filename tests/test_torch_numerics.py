"""The formats on torch tensors: the oracle's bits, on whatever device."""

import numpy as np
import pytest

import compress
from compress.errors import InputError
from compress.formats import IntFormat
from compress.numerics.fast import oracle_only
from compress.presets import PRESETS

torch = pytest.importorskip("torch")

from compress.backends import torch_numerics  # noqa: E402
from compress.conformance.on_device import ON_DEVICE, check  # noqa: E402

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
RNG = np.random.default_rng(3)


def values(shape=(24, 256)) -> np.ndarray:
    found = RNG.standard_t(3, shape).astype(np.float32)
    found[:, :64] = np.round(found[:, :64] * 4) / 4
    found[0] = 0
    found[1] = -np.abs(found[1])
    found[2:7] *= np.logspace(-3, -36, 5, dtype=np.float32)[:, None]
    return found


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ON_DEVICE)
def test_tensors_have_the_oracles_bits(name, device):
    fmt = PRESETS[name].format
    ragged = not (isinstance(fmt, IntFormat) and getattr(fmt.granularity, "ragged", "") == "refuse")
    for shape in ((24, 256), (7, 150)) if ragged else ((24, 256),):
        x = values(shape)
        found = torch_numerics.encode_on_device(torch.from_numpy(x).to(device), fmt)
        with oracle_only():
            expected = compress.encode(x, fmt)
        assert found.codes.device.type == device
        again = found.numpy()
        assert again.codes.dtype == expected.codes.dtype
        np.testing.assert_array_equal(again.codes, expected.codes)
        # torch's mean of the scales may differ in its last digit, which every scale that is quantized twice adds
        slack = 2e-7 * np.abs(expected.scales).max() if getattr(fmt, "double", None) else 0
        np.testing.assert_allclose(again.scales, expected.scales, rtol=0, atol=slack)
        np.testing.assert_array_equal(again.zero_points, expected.zero_points)
        decoded = torch_numerics.decode_on_device(found).cpu().numpy()
        np.testing.assert_allclose(decoded, expected.decode(), rtol=0, atol=slack)


@pytest.mark.gpu
def test_golden_vectors_have_the_oracles_bits_on_a_gpu():
    assert [row for row in check("cuda:0") if row.different] == []


def test_a_device_that_differs_is_named(monkeypatch):
    right = torch_numerics.round_to
    monkeypatch.setattr("compress.conformance.on_device.ON_DEVICE", ("tflite.int8.weight", "gguf.q4_0", "bnb.nf4"))
    assert [row.different for row in check("cpu")] == [{}, {}, {}]
    monkeypatch.setattr(torch_numerics, "round_to", lambda values, rounding: right(values, rounding) + 1)
    int8, q4, nf4 = check("cpu")
    assert "codes" in int8.different["Gaussian"] and "codes" in q4.different["Gaussian"] and not nf4.different and q4.refused


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_one_call_takes_tensors_of_every_float_dtype(dtype, tmp_path):
    x = torch.from_numpy(values()).to(dtype)
    encoded = compress.encode(x, "bnb.nf4.dq")
    assert isinstance(encoded.codes, torch.Tensor) and encoded.nbytes == compress.encode(x.float().numpy(), "bnb.nf4.dq").nbytes
    np.testing.assert_array_equal(encoded.decode().numpy(), compress.encode(x.float().numpy(), "bnb.nf4.dq").decode())
    encoded.save(tmp_path / "w.safetensors")
    np.testing.assert_array_equal(compress.Encoded.load(tmp_path / "w.safetensors").decode(), encoded.decode().numpy())


def test_learned_codebooks_on_the_cpu_and_refused_elsewhere():
    x = torch.from_numpy(values())
    np.testing.assert_array_equal(compress.encode(x, "kmeans.16").decode().numpy(), compress.encode(x.numpy(), "kmeans.16").decode())
    with pytest.raises(InputError, match="CPU only"):
        torch_numerics.encode_on_device(x, PRESETS["kmeans.16"].format)


def test_a_parameter_is_left_alone():
    weight = torch.nn.Parameter(torch.from_numpy(values()))
    before = weight.detach().clone()
    compress.encode(weight, "tflite.int8.weight")
    assert torch.equal(weight, before) and weight.requires_grad


def test_nan_is_named():
    x = torch.from_numpy(values())
    x[3, 4] = float("nan")
    with pytest.raises(InputError, match=r"first at \[3, 4\]"):
        torch_numerics.encode_on_device(x, PRESETS["bnb.nf4"].format)
