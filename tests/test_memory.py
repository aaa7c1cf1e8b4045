"""Predictions of memory: against the whole simulation, the arithmetic of the QLoRA paper, torch's own tracker, and a training that was measured."""

import json

import numpy as np
import pytest
import torch
from torch.distributed._tools.mem_tracker import MemTracker
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config
from typer.testing import CliRunner

from compress.__main__ import app
from compress.errors import InputError, UnknownName
from compress.finetune import Budget, Samples, adapt, finetune, load_method, memory, predict_memory
from compress.finetune.architectures import built_in, load_config, uniform
from compress.finetune.losses import Objective, outputs
from compress.finetune.measuring import Measured, unmeasured
from compress.finetune.training import optimizer

TINY = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 500}
LLAMA = LlamaConfig(architectures=["LlamaForCausalLM"], num_hidden_layers=5, **TINY)


@pytest.mark.parametrize(("method", "recompute"), [("full", False), ("lora", True), ("qlora", False)])
def test_few_blocks_tell_of_many(method, recompute, monkeypatch):
    from_few = predict_memory(LLAMA, method, batch=2, seq=48, dtype="float32", recompute=recompute)
    monkeypatch.setattr(memory, "uniform", lambda config: False)
    assert predict_memory(LLAMA, method, batch=2, seq=48, dtype="float32", recompute=recompute) == from_few


def test_blocks_of_two_kinds_are_simulated_all():
    assert uniform(LLAMA)
    assert not uniform(Qwen2Config(num_hidden_layers=4, layer_types=["full_attention", "sliding_attention"] * 2, use_sliding_window=True, **TINY))


def test_65_billion_parameters_as_in_the_qlora_paper():
    """Dettmers et al. 2023: more than 780 GB for 16-bit fine-tuning, under 48 GB for QLoRA, which recomputes activations."""
    full = predict_memory("llama-65b", "full", batch=1, seq=512, recompute=True)
    parameters = full.lines["parameters"] / 2
    assert 65.2e9 < parameters < 65.4e9
    assert full.lines["gradients"] == pytest.approx(2 * parameters, rel=1e-3)
    assert full.lines["first moments"] + full.lines["second moments"] == pytest.approx(8 * parameters, rel=1e-3)
    assert 780e9 < full.total < 790e9
    assert predict_memory("llama-65b", "qlora", rank=16, batch=1, seq=512, recompute=True).total < 48e9


def test_weights_take_what_the_core_says_they_take():
    """0.5 bytes a weight in NF4, 0.127 bits of scales (QLoRA, section 3); embeddings and the output layer stay as they are."""
    found = predict_memory(LLAMA, "qlora", dtype="float32", seq=16)
    linear = 5 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128)
    norms = 11 * 64 * 4
    assert found.lines["parameters"] == pytest.approx(linear / 2 + 2 * 500 * 64 * 4 + norms, abs=1024)  # and frequencies of positions
    assert found.lines["quantization constants"] == pytest.approx(linear * 0.127 / 8, rel=0.3)  # small layers round up
    assert found.lines["adapters"] == found.lines["second moments"]


def test_totals_are_those_of_torchs_tracker():
    torch.manual_seed(0)
    adapted = adapt(AutoModelForCausalLM.from_config(LLAMA, dtype=torch.float32), load_method("full"))
    ids, objective, budget = torch.zeros(2, 48, dtype=torch.int64), Objective("causal_lm"), Budget(steps=1)
    predicted = memory.predict_step(adapted, {"input_ids": ids.numpy(), "attention_mask": np.ones((2, 48), np.int64)}, ids.numpy(), objective, budget)
    adapted.model.config.use_cache = False
    learns = optimizer(adapted, budget, torch.device("cpu"))
    for parameter in adapted.trainable().values():
        parameter.grad = torch.zeros_like(parameter)
    learns.step()
    learns.zero_grad()
    tracker = MemTracker()
    tracker.track_external(adapted.model, learns)
    with tracker:
        objective.total(outputs(adapted.model(input_ids=ids, attention_mask=torch.ones_like(ids))), ids).backward()
        learns.step()
    peak = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]
    assert predicted.total == pytest.approx(peak, rel=0.05)  # transformers gives tensors without data a mask: keys and values are repeated


@pytest.mark.skipif(bool(unmeasured(torch.device("cpu"))), reason="this system does not tell")
def test_a_training_says_what_it_took():
    ids = np.random.default_rng(0).integers(0, 500, (8, 32))
    data = Samples({"input_ids": ids, "attention_mask": np.ones_like(ids)}, ids)
    model, budget = AutoModelForCausalLM.from_config(LLAMA, dtype=torch.float32), Budget(steps=3, batch=2)
    tuned = finetune(model, "qlora", data, budget, "causal_lm")
    predicted = memory.predict_step(adapt(model, load_method("qlora")), *data.take(np.arange(2)), Objective("causal_lm"), budget)
    assert isinstance(tuned.memory, Measured)
    lines = tuned.memory.beside(predicted)["lines"]
    for line in ("parameters", "quantization constants", "adapters", "first moments", "second moments"):
        assert lines[line]["measured"] == lines[line]["predicted"] > 0, line


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"model": "lama-7b"}, UnknownName, "did you mean 'llama-7b'"),
        ({"method": "qlroa"}, UnknownName, "did you mean 'qlora'"),
        ({"batch": 0}, InputError, "batch is 0"),
        ({"seq": -1}, InputError, "seq is -1"),
        ({"dtype": "int8"}, InputError, "float32, bfloat16, float16"),
    ],
)
def test_errors(changes, error, said):
    with pytest.raises(error, match=said):
        predict_memory(**{"model": "llama-7b", "method": "qlora"} | changes)


@pytest.mark.parametrize("content", ["[1]", "{}", "{", '{"model_type": "no such architecture"}', '{"model_type": "llama", "hidden_size": "wide"}'])
def test_what_is_no_configuration_is_refused(content, tmp_path):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match="config"):
        predict_memory(tmp_path, "lora")


def test_every_built_in_config_is_read():
    assert all(load_config(name).num_hidden_layers for name in built_in())


def test_command(tmp_path):
    small = LLAMA.to_dict() | {"num_hidden_layers": 2}
    (tmp_path / "config.json").write_text(json.dumps(small))
    done = CliRunner().invoke(app, ["memory", str(tmp_path), "--seq", "32", "--rank", "4", "--json"])
    methods = json.loads(done.stdout)["methods"]
    assert list(methods) == ["full", "lora", "qlora"]
    for way in ("kept", "recomputed"):
        assert methods["qlora"][way]["total"] < methods["lora"][way]["total"] < methods["full"][way]["total"]


def test_what_fits(monkeypatch):
    monkeypatch.setattr(memory, "built_in", lambda: ["smollm2-135m"])
    done = CliRunner().invoke(app, ["memory", "--fits", "1GB", "--seq", "32", "--json"])
    found = json.loads(done.stdout)["methods"]
    assert found["full"] == []  # 1.6 GB of weights, gradients and moments
    (fits,) = found["qlora"]
    assert fits["model"] == "smollm2-135m" and fits["left"] == 10**9 - fits["total"] > 0
