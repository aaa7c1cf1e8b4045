"""What merging an adapter makes of a model, and what the report says of it."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")
from test_finetune import Net, samples  # noqa: E402
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM  # noqa: E402

from compress.errors import InputError  # noqa: E402
from compress.finetune.adapting import adapt  # noqa: E402
from compress.finetune.batches import Samples  # noqa: E402
from compress.finetune.config import Finetuning  # noqa: E402
from compress.finetune.losses import Objective  # noqa: E402
from compress.finetune.merging import compare_merges, kl, merged  # noqa: E402
from compress.finetune.methods import load_method  # noqa: E402
from compress.finetune.quantized import QuantizedLinear  # noqa: E402
from compress.pipeline import compress  # noqa: E402
from compress.recipe import Recipe  # noqa: E402
from evaluators.finetuning import rows  # noqa: E402
from evaluators.report import finetuning as pages  # noqa: E402
from evaluators.runtimes import RUNTIMES  # noqa: E402
from evaluators.worker import Outcome  # noqa: E402
from exporters import EXPORTERS, export  # noqa: E402


def bert():
    torch.manual_seed(0)
    config = BertConfig(hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, vocab_size=50)
    return BertForSequenceClassification(config).eval()


def tokens() -> Samples:
    ids = np.random.default_rng(0).integers(0, 50, (8, 6))
    return Samples({"input_ids": ids}, ids[:, 0] % 2)


MODELS = {"by hand": (Net, samples, "head"), "peft": (bert, tokens, "classifier")}
METHODS = {
    "qlora": {"name": "qlora"},
    "dora": {"name": "dora", "base": "bnb.nf4.dq"},
    "ia3": {"name": "ia3", "base": "tflite.int8.weight", "targets": "*"},
    "loftq": {"name": "loftq"},
}


def learned(kind: str, name: str):
    """(the model, it adapted and moved away from the start, samples)."""
    make, data, head = MODELS[kind]
    model = make()
    adapted = adapt(model, load_method(METHODS[name] | {"also": head}))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in adapted.trainable().values():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model, adapted, data()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", MODELS)
def test_merged_models_compute_what_they_say(kind, name):
    model, adapted, data = learned(kind, name)
    before = {n: p.clone() for n, p in adapted.model.named_parameters()}
    found = {row["name"]: row for row in compare_merges(adapted, model, data, "classification")}
    assert list(found) == ["adapter", "decoded", *([] if name == "loftq" else ["original"]), "stored"]
    assert found["decoded"]["kl"] < 1e-6 and found["decoded"]["scores"] == found["adapter"]["scores"]  # float32 sums in another order
    if name != "ia3":  # whose scales of rows are the scales of int8 codes
        assert found["stored"]["kl"] > found["decoded"]["kl"]
    for n, p in adapted.model.named_parameters():
        assert torch.equal(p, before[n]), n


@pytest.mark.parametrize("kind", MODELS)
def test_a_merged_model_has_the_shape_of_the_one_that_was_adapted(kind):
    model, adapted, data = learned(kind, "qlora")
    plain, small = merged(adapted), merged(adapted, stored=True)
    assert {n: p.shape for n, p in plain.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
    stored = {n for n, m in small.named_modules() if isinstance(m, QuantizedLinear)}
    assert stored and stored == {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)} - {MODELS[kind][2]}


FITTING = {"gguf": "float16", "safetensors": "nf4"}  # these write checkpoints, whose formats are their own


@pytest.mark.parametrize(
    "exporter",
    [pytest.param(name, marks=pytest.mark.slow) if name == "executorch" else name for name in EXPORTERS if not EXPORTERS.load(name).OWN_NUMBERS],
)
def test_a_merged_model_goes_to_every_exporter(exporter, tmp_path):
    sizes = {"vocab_size": 64, "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 32}
    torch.manual_seed(0)
    adapted = adapt(LlamaForCausalLM(LlamaConfig(**sizes)), load_method("qlora", rank=4))
    with torch.no_grad():
        for parameter in adapted.trainable().values():
            parameter.add_(0.05)
    recipe = Recipe.load(FITTING.get(exporter, "int8-weight-only")).model_copy(update={"allow_float": True})
    small = compress(merged(adapted), recipe, inputs={"input_ids": np.arange(16)[None]})
    kind = EXPORTERS.load(exporter)
    artifact = export(small, tmp_path / f"model{kind.SUFFIX}", exporter)  # compares the file with the plan, code by code
    session = RUNTIMES.load(kind.RUNTIME).load(artifact, 1) if kind.RUNTIME else None
    if session:
        found, expected = session.run({"input_ids": np.arange(16)[None]})[0], small.simulate().run({"input_ids": np.arange(16)[None]})[0]
        assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max()


def test_padding_is_no_prediction():
    """The divergence of a padded batch is that of its tokens, each predicted from those before it."""
    random = np.random.default_rng(3)
    labels = torch.tensor([[1, 2, 3, -100], [1, 2, -100, -100]])
    a, b = (torch.from_numpy(random.standard_normal((2, 4, 5)).astype(np.float32)) for _ in range(2))
    objective = Objective("causal_lm")
    found = kl(objective.predictions(a, labels), objective.predictions(b, labels))
    p, q = (torch.log_softmax(x, -1) for x in (a, b))
    each = [(p[i, j].exp() * (p[i, j] - q[i, j])).sum() for i, j in ((0, 0), (0, 1), (1, 0))]
    assert found == pytest.approx(float(sum(each) / 3), rel=1e-5) and objective.counted(labels.numpy()) == 3


def test_what_changes_no_weight_cannot_be_merged():
    with pytest.raises(InputError, match="bottleneck"):
        merged(adapt(Net(), load_method({"name": "pfeiffer", "after": "body.0"})))


def test_the_report_compares_runs_sample_by_sample(tmp_path):
    document = Finetuning.model_validate(
        {"name": "n", "model": "m.py:m", "train": "m.py:t", "test": "m.py:t", "budget": {"steps": 2}, "runs": {"full": "full", "lora": "lora", "bad": "lora"}}
    )
    right, outcomes = np.ones(400, np.float32), {}
    for name, wrong in (("full", 0), ("lora", 20)):
        scores = right.copy()
        scores[:wrong] = 0
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "scores.npy", scores)
        log = [{"step": s, "loss": 1.0 / s, "tokens": 10, "seconds": 0.1} for s in (1, 2)] + [
            {"step": 2, "evaluation loss": 0.5, "score": float(scores.mean())}
        ]
        merges = [
            {"name": n, "about": n, "score": 1.0, "scores": s.tolist(), "kl": 0.0} for n, s in (("adapter", right), ("decoded", right), ("stored", scores))
        ]
        facts = {
            "log": log,
            "trainable": 5,
            "parameters": 1000,
            "seconds": 0.2,
            "notes": ["a <note>"],
            "table": [["all", 5, 1000, 0.005]],
            "memory": "not measured",
        }
        outcomes[name] = Outcome("done", facts | {"merges": merges if name == "lora" else []})
    outcomes["bad"] = Outcome("failed", cause="it broke")
    found = rows(document, tmp_path, outcomes)
    lora = found[1]
    assert (lora.comparison.against, lora.comparison.worse, lora.comparison.better) == ("full", 20, 0) and lora.comparison.p < 1e-4
    assert pages.verdict(document, lora).startswith("lora trains 0.50% of the parameters: 95.0%") and "worse than full" in pages.verdict(document, lora)
    assert pages.recommendation(document, lora).startswith("Merge into the decoded base")
    written = pages.write_report(document, found, tmp_path, "compresskit finetune n.yaml")
    page = written["html"].read_text(encoding="utf-8")
    assert "a &lt;note&gt;" in page and "bad failed: it broke" in page and "<svg" in page and "http-equiv" in page
    assert json.loads(written["json"].read_text(encoding="utf-8"))["runs"][1]["comparison"]["worse"] == 20
    assert "| lora | 5 |" in written["markdown"].read_text(encoding="utf-8")
