"""The frozen base in formats of the core, its products and their gradients, and texts packed for language models."""

import copy
from functools import partialmethod

import numpy as np
import pytest

from compress.errors import InputError
from compress.formats import CodebookFormat, FloatFormat, Learned, PerAxis
from compress.numerics import encode
from compress.numerics.fast import LOADED, oracle_only
from compress.presets import PRESETS

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors")
transformers = pytest.importorskip("transformers")

from torch import nn  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402

from compress.finetune import Budget, QuantizedLinear, Samples, adapt, finetune, load_method, pack, pad, stored  # noqa: E402
from compress.finetune.lora import LinearWithLoRA  # noqa: E402
from compress.finetune.losses import Objective  # noqa: E402
from compress.finetune.text import IGNORED  # noqa: E402
from compress.finetune.training import Trainer  # noqa: E402

FORMATS = {name: preset.format for name, preset in PRESETS.items()} | {
    "bfloat16": FloatFormat("bfloat16"),
    "kmeans with int8 entries": CodebookFormat(Learned(16, entry_dtype="int8"), PerAxis(), "none"),
}
NF4 = FORMATS["bnb.nf4.dq"]


def linear(outputs: int = 24, inputs: int = 256, bias: bool = True, **where) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs, bias=bias, **where)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_expanded_to_the_oracles_bits_and_comes_back(name):
    for shape in ((24, 256), (7, 150)):
        layer, fmt = linear(*shape), FORMATS[name]
        try:
            with oracle_only():
                expected = encode(layer.weight.detach().numpy(), fmt)
        except InputError:
            with pytest.raises(InputError):
                QuantizedLinear.of(linear(*shape, device="meta"), fmt)
            continue
        found = QuantizedLinear.of(layer, fmt)
        np.testing.assert_array_equal(found.weight.numpy(), expected.decode())
        np.testing.assert_array_equal(found.encoded.codes, expected.codes)
        empty = QuantizedLinear.of(linear(*shape, device="meta"), fmt)
        assert {n: (t.shape, t.dtype) for n, t in empty.state_dict().items()} == {n: (t.shape, t.dtype) for n, t in found.state_dict().items()}


@pytest.mark.parametrize("name", ["bnb.nf4.dq", "bnb.fp4", "tflite.int4.channel", "kmeans.16"])
def test_compiled_loops_and_torch_expand_to_the_same_bits(name):
    pytest.importorskip("numba")
    with oracle_only():
        layer = QuantizedLinear.of(linear(300, 256), FORMATS[name])
        slow = layer.weight
    assert slow.numel() > LOADED
    assert torch.equal(layer.weight, slow)


def test_bitsandbytes_reads_the_same_bytes():
    functional = pytest.importorskip("bitsandbytes").functional
    layer = QuantizedLinear.of(linear(), NF4)
    packed, state = functional.quantize_4bit(linear().weight.detach(), quant_type="nf4", compress_statistics=True)
    assert torch.equal(layer.codes, packed.view(-1)) and torch.equal(layer.scale_codes, state.absmax)
    assert torch.equal(layer.weight, functional.dequantize_4bit(packed, state))
    scales = stored.stored_scales(dict(layer.named_buffers()), NF4, (24, 256))  # as on a GPU
    assert torch.equal(layer.weight, torch.ops.bitsandbytes.dequantize_4bit(layer.codes.view(-1, 1), scales, 64, "nf4", (24, 256), torch.float32))


def test_nf4_double_quantized_takes_4_127_bits_of_a_weight():
    layer = QuantizedLinear.of(linear(256, 1024), NF4)
    assert round(layer.ledger.bits_per_weight, 3) == 4.127
    assert sum(t.nbytes for t in layer.buffers()) == layer.ledger.total


@pytest.mark.parametrize("lora", [False, True])
def test_gradients_are_those_of_a_dense_frozen_layer(lora):
    stored = QuantizedLinear.of(linear(), NF4)
    dense = linear()
    dense.weight = nn.Parameter(stored.weight, requires_grad=False)
    dense.bias.requires_grad_(False)
    ours = LinearWithLoRA(stored, rank=4, alpha=8) if lora else stored
    x, aim = torch.randn(3, 5, 256, requires_grad=True), torch.randn(3, 5, 24)
    if lora:
        nn.init.normal_(ours.lora.B)
    y = ours(x)
    found = torch.autograd.grad((y * aim).sum(), [x, *([ours.lora.A, ours.lora.B] if lora else [])])
    by_hand = dense(x) + (ours.lora.scale * (x @ ours.lora.A.T @ ours.lora.B.T) if lora else 0)
    expected = torch.autograd.grad((by_hand * aim).sum(), [x, *([ours.lora.A, ours.lora.B] if lora else [])])
    for one, other in zip([y, *found], [by_hand, *expected], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)  # sums of 256 float32 products, in another order


def test_bfloat16_is_expanded_straight_and_what_learns_stays_float32():
    layer = LinearWithLoRA(QuantizedLinear.of(linear(), NF4), rank=4, alpha=8)
    x = torch.randn(6, 256, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16 and layer.lora.B.grad.dtype == x.grad.dtype == torch.float32
    assert torch.equal(layer.linear.stored.expanded(layer.linear.tensors, torch.bfloat16), layer.linear.weight.to(torch.bfloat16))
    torch.testing.assert_close(y.float(), layer(x), rtol=0.02, atol=0.02)  # 8 bits of mantissa


def tiny() -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64
    )
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config)


def test_fake_and_meta_models_adapt_to_the_same_sizes():
    method = load_method("qlora", rank=4)
    sizes = {name: (tuple(t.shape), t.dtype) for name, t in adapt(tiny(), method).model.state_dict().items()}
    with FakeTensorMode():
        fake = adapt(tiny(), method).model.train()
        loss = fake(input_ids=torch.zeros(1, 8, dtype=torch.int64), use_cache=False).logits.sum()
        loss.backward()
    with torch.device("meta"):
        meta = adapt(tiny(), method).model
    for found in (fake, meta):
        assert {name: (tuple(t.shape), t.dtype) for name, t in found.state_dict().items()} == sizes
    assert all(p.grad is not None for p in fake.parameters() if p.requires_grad)


def test_recomputed_activations_give_the_same_gradients():
    model, ids, found = adapt(tiny(), load_method("qlora", rank=4)).model.train(), torch.arange(32).view(2, 16), []
    for recompute in (False, True):
        if recompute:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        found.append([p.grad for p in model.parameters() if p.requires_grad])
        model.zero_grad()
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_compiled_blocks_learn_the_same_and_keep_no_weight(monkeypatch):
    """Two equal calls are one for a compiler, which would keep each expanded weight. All but the C++ code, whose building takes a minute."""
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager_decomp_partition"))
    kept, losses = [], []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    for compiled in (False, True):
        data = Samples({"input_ids": np.arange(64).reshape(4, 16)}, np.arange(64).reshape(4, 16))
        budget = Budget(steps=3, batch=1, compile=compiled)
        trainer = Trainer(adapt(tiny(), load_method("qlora", rank=4)), data, budget, Objective("causal_lm"))
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            trainer.run()
        losses.append([entry["loss"] for entry in trainer.log])
        shapes = {(m.out_features, m.in_features) for m in trainer.adapted.model.modules() if isinstance(m, QuantizedLinear)}
        assert kept and not shapes & {shape[::turn] for shape in kept for turn in (1, -1)}
        kept.clear()
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


def test_codes_move_through_state_dicts_and_copies():
    layer = QuantizedLinear.of(linear(), NF4)
    other = QuantizedLinear.of(nn.Linear(256, 24), NF4)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.weight, layer.weight) and torch.equal(copy.deepcopy(layer).weight, layer.weight)
    assert LinearWithLoRA(layer, 4, 8).linear.codes.data_ptr() == layer.codes.data_ptr()


def test_the_operator_can_be_exported_and_compiled():
    layer, x = QuantizedLinear.of(linear(), NF4), torch.randn(2, 256)
    program = torch.export.export(layer, (x,))
    assert any("compresskit.expand" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(x), layer(x))
    torch.testing.assert_close(torch.compile(layer, backend="eager", fullgraph=True)(x), layer(x))


def test_the_summed_loss_of_next_tokens_is_torchs():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 40, 50, requires_grad=True), torch.randint(0, 50, (2, 40))
    labels[0, 5:9] = IGNORED
    expected = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum")
    (gradient,) = torch.autograd.grad(expected / 3, logits)
    given = logits.detach().clone().requires_grad_()
    loss = Objective("causal_lm").total(given * 1, labels)
    (loss / 3).backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(given.grad, gradient)


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"<end>": 0, **{f"w{i}": i for i in range(1, 300)}}
    whole = Tokenizer(models.WordLevel(words, unk_token="w1"))
    whole.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=whole, eos_token="<end>")


def texts(*lengths: int) -> list[str]:
    return [" ".join(f"w{(7 * i + 11 * n) % 299 + 1}" for i in range(n)) for n in lengths]


def test_packed_blocks_are_full_and_labels_stay_within_documents(tokenizer):
    given = texts(5, 3, 20, 1, 9)
    samples = pack(given, tokenizer, 8)
    stream = np.concatenate([[*ids, 0] for ids in tokenizer(given)["input_ids"]])
    ids, positions = samples.inputs["input_ids"], samples.inputs["position_ids"]
    np.testing.assert_array_equal(ids.ravel(), stream[: len(stream) // 8 * 8])
    assert (positions[:, 0] == 0).all() and positions[0].tolist() == [0, 1, 2, 3, 4, 5, 0, 1]
    np.testing.assert_array_equal(samples.labels == IGNORED, positions == 0)
    np.testing.assert_array_equal(positions.ravel()[1:][stream[: ids.size - 1] == 0], 0)


def test_a_packed_documents_logits_are_those_of_the_document_alone(tokenizer):
    given, model = texts(12, 9, 7), tiny().eval()
    samples = pack(given, tokenizer, 31)
    with torch.no_grad():
        packed = model(**{n: torch.tensor(a) for n, a in samples.inputs.items()}, use_cache=False).logits[0]
        alone = model(torch.tensor([[*tokenizer(given[1])["input_ids"], 0]]), use_cache=False).logits[0]
    torch.testing.assert_close(packed[13:23], alone, rtol=1e-4, atol=1e-5)  # float32 sums over masked and missing keys


def test_a_language_model_learns_packed_texts_on_a_quantized_base(tokenizer, tmp_path):
    model, data, budget = tiny(), pack(texts(*[15] * 32), tokenizer, 16), Budget(steps=8, batch=8, learning_rate=2e-2)
    tuned = finetune(model, load_method("qlora", rank=4), data, budget, "causal_lm", checkpoint=tmp_path / "c.safetensors")
    losses = [entry["loss"] for entry in tuned.log]
    assert losses[-1] < 0.9 * losses[0]
    assert not tuned.model.config.use_cache and model.config.use_cache
    with safetensors.safe_open(tmp_path / "c.safetensors", "pt") as file:
        assert not [name for name in file.keys() if name.endswith("codes")]  # noqa: SIM118 (a handle, not a dict)
    again = finetune(model, load_method("qlora", rank=4), data, budget, "causal_lm", checkpoint=tmp_path / "c.safetensors")
    assert again.log == tuned.log
    assert all(torch.equal(again.model.state_dict()[name], tensor) for name, tensor in tuned.model.state_dict().items())


def test_padding_is_masked_and_a_tokenizer_must_be_able_to(tokenizer):
    with pytest.raises(InputError, match="pad_token"):
        pad(texts(3), tokenizer, 8)
    able = copy.deepcopy(tokenizer)
    able.pad_token = able.eos_token
    samples = pad(texts(3, 12), able, 8)
    assert isinstance(samples, Samples) and samples.lengths.tolist() == [3, 8]
    np.testing.assert_array_equal(samples.labels == IGNORED, samples.inputs["attention_mask"] == 0)
    assert pad(texts(3, 12), able, 8, np.array([0, 1])).labels.tolist() == [0, 1]
    with pytest.raises(InputError, match="do not fill one block"):
        pack(texts(3), tokenizer, 8)
