"""What training computes with, beside torchao's own fake quantizers."""

import numpy as np
import pytest

from compress.formats import IntFormat, PerAxis, PerGroup
from compress.presets import preset

torch = pytest.importorskip("torch")
qat = pytest.importorskip("torchao.quantization.qat")


@pytest.mark.parametrize(
    ("fmt", "theirs"),
    [
        (preset("torchao.int8wo").format, {"dtype": torch.int8, "granularity": "per_channel"}),
        (preset("torchao.intx4.group32").format, {"dtype": torch.int4, "group_size": 32}),
    ],
    ids=["int8 per channel", "int4 group 32"],
)
def test_rounded_weights_are_those_of_torchao(fmt, theirs):
    from compress.backends.pytorch_parts import Rounded

    fake = qat.IntxFakeQuantizer(qat.IntxFakeQuantizeConfig(**theirs))
    rng = np.random.default_rng(0)
    for size in (1e-3, 0.05, 3):
        ours = torch.from_numpy((size * rng.standard_normal((48, 128))).astype(np.float32)).requires_grad_(True)
        ours.data[5] = ours.data[5].sign() * size  # ties of extremes
        peers = ours.detach().clone().requires_grad_(True)
        found, expected = Rounded.apply(ours, fmt), fake(peers)
        assert torch.equal(found, expected)


@pytest.mark.parametrize(("fmt", "theirs"), [(IntFormat(8, PerAxis()), "per_channel"), (IntFormat(4, PerGroup(32)), None)], ids=["int8", "int4"])
def test_gradients_of_learned_scales_are_those_of_torchao(fmt, theirs):
    from compress.backends.pytorch_parts import at_scales

    config = qat.IntxFakeQuantizeConfig(getattr(torch, f"int{fmt.bits}"), theirs, group_size=None if theirs else 32, is_dynamic=False, range_learning=True)
    fake, rng = qat.IntxFakeQuantizer(config), np.random.default_rng(1)
    values = torch.from_numpy(rng.standard_normal((48, 128)).astype(np.float32))
    fake._initialized = True  # as initialize_fake_quantizers does, before the call that fits the scales
    fake(values)
    fake.scale.data *= 0.6  # some values are cut
    low, high = fmt.code_range
    ratio = values.reshape(fake.scale.numel(), -1) / fake.scale.detach().reshape(-1, 1)
    values[((ratio > high) & (ratio < high + 0.5) | (ratio < low) & (ratio > low - 0.5)).reshape(values.shape)] = 0  # torchao cuts after rounding, LSQ before
    weights = torch.from_numpy(rng.standard_normal((48, 128)).astype(np.float32))
    scales = fake.scale.detach().reshape(-1).clone().requires_grad_(True)
    (at_scales(values, scales, fmt) * weights).sum().backward()
    (fake(values) * weights).sum().backward()
    torch.testing.assert_close(scales.grad, fake.scale.grad.reshape(-1), rtol=1e-3, atol=1e-3)
