"""The loop of fine-tuning: what it resumes to, what it refuses, and that processes share a batch."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")
from torch import nn  # noqa: E402

from compress.errors import InputError, RecipeError, TrainingError  # noqa: E402
from compress.finetune import training  # noqa: E402
from compress.finetune.adapting import adapt  # noqa: E402
from compress.finetune.batches import Batches, Samples  # noqa: E402
from compress.finetune.budget import Budget  # noqa: E402
from compress.finetune.losses import Objective  # noqa: E402
from compress.finetune.methods import load_method  # noqa: E402
from compress.finetune.training import Trainer  # noqa: E402
from compress.finetune.tuning import finetune  # noqa: E402

ROOT = Path(__file__).parents[1]
STEPS = 12


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.body = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128))
        self.head = nn.Linear(128, 4)

    def forward(self, x):
        return self.head(self.body(x))


def samples(count: int = 96) -> Samples:
    x = np.random.default_rng(0).standard_normal((count, 64)).astype(np.float32)
    return Samples({"x": x}, x[:, :4].argmax(1))


def method(name: str, dropout: float = 0.1):
    return load_method({"name": name, "also": "head"} if name != "full" else name, **({"rank": 4, "dropout": dropout} if "lora" in name else {}))


def budget(**changes) -> Budget:
    return Budget(**{"steps": STEPS, "batch": 8, "learning_rate": 1e-2} | changes)


def trainer(name: str, checkpoint: Path | None = None, dropout: float = 0.1, **changes) -> Trainer:
    return Trainer(adapt(Net(), method(name, dropout), 0), samples(), budget(**changes), Objective("classification"), samples(16), checkpoint)


def learned(one: Trainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in one.adapted.trainable().items()}


def same(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit"])
@pytest.mark.parametrize("name", ["full", "lora", "qlora", "lora+"])
def test_what_was_interrupted_goes_on_to_the_same_bits(name, optimizer, tmp_path, monkeypatch):
    whole = trainer(name, optimizer=optimizer)
    whole.run()
    monkeypatch.setattr(training, "SAVE_SECONDS", 0.0)
    first = trainer(name, tmp_path / "c.safetensors", optimizer=optimizer)
    first.progress = lambda entry: (_ for _ in ()).throw(KeyboardInterrupt) if entry["step"] == 7 else None
    with pytest.raises(KeyboardInterrupt):
        first.run()
    second = trainer(name, tmp_path / "c.safetensors", optimizer=optimizer)
    second.run()
    same(learned(whole), learned(second))
    assert [e["loss"] for e in whole.log if "loss" in e] == [e["loss"] for e in second.log if "loss" in e]


def test_kill_9_loses_at_most_the_last_interval(tmp_path):
    checkpoint = tmp_path / "c.safetensors"
    code = f"""
        import sys, time; sys.path.insert(0, {str(Path(__file__).parent)!r})
        from pathlib import Path
        import test_finetune as t
        t.training.SAVE_SECONDS = 0.0
        one = t.trainer("lora", Path({str(checkpoint)!r}))
        one.progress = lambda entry: time.sleep(60) if entry["step"] == 5 else None
        one.run()
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT)
    end = time.monotonic() + 600
    while time.monotonic() < end and done(checkpoint) < 4:
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert done(checkpoint) == 4
    whole, again = trainer("lora"), trainer("lora", checkpoint)
    whole.run()
    again.run()
    same(learned(whole), learned(again))


def done(checkpoint: Path) -> int:
    """Steps that a checkpoint holds; -1 without one."""
    from safetensors import safe_open

    if not checkpoint.exists():
        return -1
    with safe_open(checkpoint, "pt") as file:
        return int(file.metadata()["step"])


def test_a_batch_in_parts_is_the_same_step():
    """The gradient of the mean is the sum of the parts' gradients over the count, whatever their sizes; float32 sums in another order."""
    whole, parts = trainer("full"), trainer("full", accumulate=4)
    for one in (whole, parts):
        one.step(0)
    for name, value in learned(whole).items():
        torch.testing.assert_close(learned(parts)[name], value, rtol=1e-4, atol=1e-6)


def test_the_checkpoint_of_another_fine_tuning_is_refused(tmp_path):
    trainer("lora", tmp_path / "c.safetensors").run()
    with pytest.raises(InputError, match="another method, budget, data or model"):
        trainer("lora", tmp_path / "c.safetensors", learning_rate=1e-3).run()


def test_the_checkpoint_of_another_model_is_refused(tmp_path):
    """A weight that does not learn is another model too: the adapter learned beside it."""
    trainer("lora", tmp_path / "c.safetensors").run()
    other = Net()
    with torch.no_grad():
        other.body[0].weight[0, 0] += 1
    adapted = adapt(other, method("lora"), 0)
    with pytest.raises(InputError, match="another method, budget, data or model"):
        Trainer(adapted, samples(), budget(), Objective("classification"), samples(16), tmp_path / "c.safetensors").run()


def test_a_loss_that_is_no_number_names_the_layer_and_keeps_the_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "SAVE_SECONDS", 0.0)
    one = trainer("full", tmp_path / "c.safetensors")

    def spoil(entry):
        if entry["step"] == 3:
            with torch.no_grad():
                one.adapted.model.body[2].weight[0] = float("inf")

    one.progress = spoil
    with pytest.raises(TrainingError, match=r"step (3|4)"):
        one.run()
    assert done(tmp_path / "c.safetensors") == 2


def test_early_stopping_ends_where_evaluations_no_longer_improve():
    one = trainer("lora", evaluate_every=1, patience=2, learning_rate=3.0, steps=40)
    one.run()
    assert max(e["step"] for e in one.log) < 40


def test_dropout_draws_for_the_step_and_the_model_of_the_caller_stays():
    model = Net()
    before = {name: p.clone() for name, p in model.named_parameters()}
    tuned = [finetune(model, method("lora"), samples(), budget(), test=samples(16)) for _ in range(2)]
    same({"": torch.tensor(tuned[0].log[-2]["loss"])}, {"": torch.tensor(tuned[1].log[-2]["loss"])})
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) and p.requires_grad, name


@pytest.mark.parametrize(
    ("data", "changes", "said"),
    [
        (lambda: Samples({"x": np.zeros((0, 64), np.float32)}, np.zeros(0, np.int64)), {}, "empty"),
        (lambda: Samples({"x": np.zeros((4, 64), np.float32)}, np.array([0, 1, 2, 4])), {}, "classes 0 to 3"),
        (lambda: Samples({"x": np.zeros((4, 64), np.float32)}, np.zeros(4)), {}, "class indices"),
        (lambda: Samples({"x": np.zeros((4, 64), np.float32)}, np.zeros(3, np.int64)), {}, "4 samples of input x for 3 labels"),
        (samples, {"recompute": True}, "no gradient checkpointing"),
    ],
)
def test_bad_data_is_one_clear_error(data, changes, said):
    with pytest.raises(InputError, match=said):
        Trainer(adapt(Net(), method("lora"), 0), data(), budget(**changes), Objective("classification"))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"steps": 1, "epochs": 1}, "epochs or steps"),
        ({"steps": 1, "batch": 8, "accumulate": 3}, "equal parts"),
        ({"steps": 1, "patience": 2}, "evaluate_every"),
    ],
)
def test_bad_budgets(fields, said):
    with pytest.raises(ValueError, match=said):
        Budget(**fields)


@pytest.mark.parametrize(
    ("given", "changes", "error", "said"),
    [
        ("lora", {"rank": 65}, InputError, "body.0: rank 65"),
        ("lora", {"targets": "nothing.*"}, InputError, "match no linear layer"),
        ({"name": "lora", "also": "hed"}, {}, InputError, "did you mean 'head'"),
        ({"method": "selective", "train": "nothing"}, {}, InputError, "matches no parameter"),
        ({"name": "lora", "base": "bnb.nf5"}, {}, RecipeError, "did you mean 'bnb.nf4'"),
        ({"name": "lora", "rnk": 4}, {}, RecipeError, "rnk"),
    ],
)
def test_bad_methods(given, changes, error, said):
    with pytest.raises(error, match=said):
        adapt(Net(), load_method(given, **changes))


@pytest.mark.parametrize("bucket", [True, False])
def test_every_epoch_sees_every_sample_once_and_batches_are_as_long_as_their_longest(bucket):
    lengths = np.random.default_rng(1).integers(3, 40, 64)
    mask = (np.arange(40) < lengths[:, None]).astype(np.int64)
    data = Samples({"input_ids": mask * 7, "attention_mask": mask}, np.arange(64))
    batches = Batches(data, budget(batch=8, bucket=bucket))
    assert sorted(np.concatenate([batches.rows(step) for step in range(8)])) == list(range(64))
    widths = [data.take(batches.rows(step))[0]["input_ids"].shape[1] for step in range(8)]
    assert widths == [lengths[batches.rows(step)].max() for step in range(8)]
    assert bucket == (sum(widths) * 8 < 1.2 * lengths.sum())


SHARED = """
    import sys; sys.path.insert(0, {tests!r})
    import torch, test_finetune as t
    from safetensors.torch import save_file
    from compress.finetune.checkpoint import WHOLE
    from torch.distributed.checkpoint.state_dict import get_model_state_dict
    one = t.trainer("qlora", dropout=0.0)
    one.run()
    state = get_model_state_dict(one.model, options=WHOLE)
    if one.accelerator.is_main_process:
        save_file({{n: v.contiguous() for n, v in state.items()}}, {out!r})
    torch.distributed.destroy_process_group()
"""


@pytest.mark.parametrize("how", [{}, {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}], ids=["ddp", "fsdp2"])
def test_two_processes_learn_what_one_does(how, tmp_path):
    """Over gloo. Gradients are summed in another order: float32 rounding, which Adam's first steps turn into a small share of the rate."""
    script, out = tmp_path / "shared.py", tmp_path / "out.safetensors"
    script.write_text(textwrap.dedent(SHARED.format(tests=str(Path(__file__).parent), out=str(out))))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = os.environ | how | {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    found = subprocess.run(launch, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr[-3000:]
    from safetensors.torch import load_file

    together, alone = load_file(out), trainer("qlora", dropout=0.0)
    alone.run()
    for key, value in learned(alone).items():
        torch.testing.assert_close(together[key], value, rtol=1e-3, atol=1e-4)
