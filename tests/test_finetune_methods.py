"""Laws of the methods of fine-tuning, over every named one and three kinds of model."""

import math

import numpy as np
import peft
import pytest
import torch
from finetune_models import CASES, HIDDEN, batch, made, method_of, run
from torch import nn

from compress import encode
from compress.errors import BrokenFile, InputError, RecipeError
from compress.finetune import Budget, Samples, adapt, finetune, load_adapter, save_adapter, trainable_table
from compress.finetune.methods import NAMED, LoRA, load_method
from compress.finetune.quantized import QuantizedLinear
from compress.finetune.starts import nearest, singular, start
from compress.finetune.targets import linears, output_head

MOVES = {"prompt", "prefix"}  # what the model computes changes as soon as there are vectors before its inputs
STORED = {"qlora", "loftq"}
ROUNDING = 1e-5  # of float32 outputs around 1, after a dozen layers that compute the same in another order
cases = pytest.mark.parametrize(("kind", "name"), CASES)


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def moved(adapted, seed=3):
    """As after some training: no parameter where it started."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapted.trainable().values():
            parameter += 0.1 * torch.randn(parameter.shape, generator=random)
        for name, buffer in adapted.model.named_buffers():
            if name.endswith("running_mean"):
                buffer += 0.1
    return adapted


def decoded(model, adapted):
    """The model with the weights that an adapted base decodes to."""
    model = made(model)
    for name, layer in adapted.model.named_modules():
        if isinstance(layer, QuantizedLinear):
            place = name.removeprefix("base_model.model.").removesuffix(".base_layer").removesuffix(".linear")
            model.get_submodule(place).weight.data = layer.weight
    return model


def lost(kind):
    """Of each layer: how far from its weight LoftQ starts, how far it would after one turn, and how far the codes alone are."""
    model = made(kind)
    loftq, qlora = (adapt(model, method_of(kind, name)).model for name in ("loftq", "qlora"))
    for name, layer in loftq.named_modules():
        if hasattr(layer, "lora") or hasattr(layer, "lora_A"):
            own = hasattr(layer, "lora")
            started = layer.weight if own else layer.base_layer.weight + layer.get_delta_weight("default")
            codes = qlora.get_submodule(name)
            alone = (codes.linear if own else codes.base_layer).weight
            weight = model.get_submodule(name.removeprefix("base_model.model.")).weight
            A, B = nearest((weight - alone).detach(), LoRA())
            yield [torch.dist(weight, near).item() for near in (started, alone + LoRA().scale * B @ A, alone)]


@cases
def test_an_adapter_that_has_not_learned_changes_nothing(kind, name):
    model = made(kind)
    before, after = run(model), run(adapt(model, method_of(kind, name)).model.eval())
    assert before.shape == after.shape
    if name in MOVES:
        assert not torch.equal(before, after)
    elif name == "qlora":
        expected = run(decoded(kind, adapt(model, method_of(kind, name))))
        assert not torch.equal(before, after) and torch.allclose(after, expected, atol=ROUNDING)
    elif name == "loftq":
        found, once, alone = np.transpose([*lost(kind)])
        assert (found < 0.95 * alone).all() and found.mean() < 0.99 * once.mean()
    elif name == "pissa":
        assert torch.allclose(before, after, atol=ROUNDING)  # W - BA + BA
    else:
        assert torch.equal(before, after)


@cases
def test_only_what_learns_changes_and_never_the_callers_model(kind, name):
    model = made(kind)
    before, modes = state(model), [(type(m), m.training) for m in model.modules()]
    adapted = adapt(model, method_of(kind, name))
    learns, held = adapted.trainable(), {n: p.detach().clone() for n, p in adapted.model.named_parameters()}
    codes = {n: m.weight.clone() for n, m in adapted.model.named_modules() if isinstance(m, QuantizedLinear)}
    assert bool(codes) == (name in STORED)
    steps = torch.optim.SGD(adapted.groups(0.1))
    adapted.model.train()
    run(adapted.model).square().mean().backward()
    assert all((p.grad is not None) == (n in learns) for n, p in adapted.model.named_parameters())
    steps.step()
    changed = {n for n, p in adapted.model.named_parameters() if not torch.equal(p, held[n])}
    assert changed and changed <= set(learns)
    assert all(torch.equal(adapted.model.get_submodule(n).weight, weight) for n, weight in codes.items())
    assert same(before, state(model)) and modes == [(type(m), m.training) for m in model.modules()]
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def counted(kind, name):
    """How many parameters learn, by each method's formula."""
    model, method = made(kind), method_of(kind, name)
    shapes = {n: p.shape for n, p in model.named_parameters()}
    head = sum(math.prod(shape) for n, shape in shapes.items() if n.startswith("classifier."))
    layers = {n: model.get_submodule(n) for n in linears(model, ["classifier"]) if n != output_head(model)}
    blocks = [n for n in layers if n.endswith((".outer", ".output.dense", ".down_proj", ".o_proj"))]
    if isinstance(method, LoRA):
        return head + sum(8 * (m.in_features + m.out_features) + (m.out_features if method.magnitude else 0) for m in layers.values())
    if name == "full":
        return sum(map(math.prod, shapes.values()))
    if name == "bitfit":
        return sum(math.prod(shape) for n, shape in shapes.items() if n.endswith("bias")) + head - 3
    if name == "norms":
        return head + {"plain": 3 * 2, "bert": 5 * 2, "llama": 5}[kind] * HIDDEN
    if name == "last1":
        return head + sum(math.prod(shape) for n, shape in shapes.items() if "layer.1." in n or "layers.1." in n)
    if name == "houlsby":
        return head + len(blocks) * (2 * 16 * HIDDEN + 16 + HIDDEN)
    if name == "pfeiffer":
        return head + 2 * (2 * 16 * HIDDEN + 16 + HIDDEN)
    if name == "prompt":
        return head + 16 * HIDDEN
    if name == "prefix":
        return head + 16 * 2 * 2 * (HIDDEN if kind == "bert" else HIDDEN // 2)  # keys and values of two layers; Llama has one head of two
    return head + {"plain": 2 * (64 + 32), "bert": 2 * (32 + 32 + 32 + 64), "llama": 2 * (16 + 16 + 64)}[kind]


@cases
def test_as_many_parameters_learn_as_the_formula_says(kind, name):
    adapted = adapt(made(kind), method_of(kind, name))
    rows = trainable_table(adapted)
    assert sum(p.numel() for p in adapted.trainable().values()) == counted(kind, name) == rows[-1].learn == sum(row.learn for row in rows[:-1])
    assert rows[-1].all == sum(p.numel() for p in made(kind).parameters()) + (
        0 if name in ("full", "bitfit", "norms", "last1") else rows[-1].learn - head(kind)
    )
    assert sum(len(group["params"]) for group in adapted.groups(1.0)) == len(adapted.trainable())
    assert {group["lr"] for group in adapted.groups(1.0)} == ({1.0, 16.0} if name == "lora+" else {1.0})


def head(kind):
    return 0 if kind == "llama" else 3 * HIDDEN + 3


@cases
def test_an_adapter_comes_back_from_its_folder(kind, name, tmp_path):
    adapted = moved(adapt(made(kind), method_of(kind, name)))
    folder = save_adapter(adapted, tmp_path / "adapter")
    back = load_adapter(made(kind), folder)
    assert back.method == adapted.method and same(state(back.model), state(adapted.model))
    assert torch.equal(run(back.model.eval()), run(adapted.model.eval()))
    assert not list(folder.glob("tmp*"))


@pytest.mark.parametrize(("kind", "name"), [(k, n) for k, n in CASES if NAMED[n][0].method in ("lora", "ia3", "prompt") and n != "loftq"])
def test_peft_reads_the_folder(kind, name, tmp_path):
    adapted = moved(adapt(made(kind), method_of(kind, name)))
    base = decoded(kind, adapted) if name in STORED else made(kind)
    theirs = run(peft.PeftModel.from_pretrained(base, save_adapter(adapted, tmp_path)).eval())
    ours = run(adapted.model.eval())
    assert torch.allclose(theirs[:, -ours.shape[1] :] if kind == "llama" else theirs, ours, atol=10 * ROUNDING, rtol=ROUNDING)


class Wrapped(nn.Module):
    """The tiny BERT as a model of one's own, whose layers have the names that they have there."""

    def __init__(self):
        super().__init__()
        self.bert, self.classifier = made("bert").bert, made("bert").classifier

    def forward(self, **inputs):
        return self.classifier(self.bert(**inputs).pooler_output)


@pytest.mark.parametrize("name", ["lora", "rslora", "dora", "pissa", "qlora", "loftq"])
def test_lora_by_hand_and_pefts_start_and_compute_the_same(name):
    hand, theirs = (adapt(model.eval(), method_of("bert", name), seed=5) for model in (Wrapped(), made("bert")))
    assert "own layers" in hand.notes[0] and "PEFT" in theirs.notes[0]
    renamed = {"lora_A.default.weight": "lora.A", "lora_B.default.weight": "lora.B", "lora_magnitude_vector.default.weight": "magnitude"}
    ours = {}
    for place, parameter in theirs.trainable().items():
        short = place.removeprefix("base_model.model.").replace("modules_to_save.default.", "")
        for long, of_ours in renamed.items():
            short = short.replace(long, of_ours)
        ours[place] = hand.trainable()[short]
        assert torch.equal(parameter, ours[place]), place
    assert len(ours) == len(hand.trainable())
    moved(hand)
    with torch.no_grad():
        for place, parameter in theirs.trainable().items():
            parameter.copy_(ours[place])
    assert torch.allclose(run(hand.model.eval()), run(theirs.model.eval()), atol=ROUNDING)


def test_the_start_follows_from_seed_and_name():
    model, method = made("plain"), method_of("plain", "lora")
    few = method_of("plain", "lora", targets="layer.1.*")
    one, again, part, other = adapt(model, method, 1), adapt(model, method, 1), adapt(model, few, 1), adapt(model, method, 2)
    name = "layer.1.inner.lora.A"
    drawn = [adapted.trainable()[name] for adapted in (one, again, part, other)]
    assert torch.equal(drawn[0], drawn[1]) and torch.equal(drawn[0], drawn[2]) and not torch.equal(drawn[0], drawn[3])
    assert not torch.equal(drawn[0], one.trainable()["layer.0.inner.lora.A"])


def test_attention_that_reads_weights_of_its_output_layer_is_adapted_too():
    model = nn.TransformerEncoderLayer(HIDDEN, 2, 64, batch_first=True, dropout=0.0).eval()
    x = torch.randn(2, 5, HIDDEN, generator=torch.Generator().manual_seed(0))
    for name in ("lora", "dora", "ia3", "qlora"):
        adapted = moved(adapt(model, load_method(name, targets="*")))
        assert any("self_attn.in_proj_weight stays as it is" in note for note in adapted.notes)
        adapted.model(x).square().mean().backward()
        assert all(p.grad is not None and p.grad.any() for p in adapted.trainable().values())
        with torch.no_grad():  # where PyTorch has a faster path, which reads weights and calls no layer
            assert torch.allclose(adapted.model(x), adapted.model.train()(x), atol=ROUNDING)
            adapted.model.eval()
    with pytest.raises(InputError, match="reads the weight of self_attn.out_proj"):
        adapt(model, load_method("houlsby", after="self_attn.out_proj"))


def test_a_prompt_leaves_as_many_outputs_as_there_are_labels():
    model = made("llama")
    for name in MOVES:
        assert run(adapt(model, load_method(name)).model).shape == run(model).shape


def test_what_stays_out_of_the_base_is_named():
    tied = adapt(made("llama"), load_method("qlora"))
    assert tied.notes[1].startswith("lm_head stays as it is, not in bnb.nf4.dq") and isinstance(tied.model.get_submodule("base_model.model.lm_head"), nn.Linear)
    for name in ("ia3", "houlsby"):  # layers beside the adapters are stored as well
        stored = [m for m in adapt(made("bert"), method_of("bert", name, base="bnb.nf4.dq")).model.modules() if isinstance(m, QuantizedLinear)]
        assert len(stored) == 2 * 6 + 1
    layer = adapt(made("bert"), method_of("bert", "ia3", base="bnb.nf4.dq")).model.get_submodule("base_model.model.bert.encoder.layer.0.attention.self.key")
    with pytest.raises(InputError, match="stored as codes"):
        layer.merge()


@pytest.mark.parametrize(
    ("kind", "name", "changes", "said"),
    [
        ("plain", "lora", {"targets": "*.iner"}, "targets '.*iner' match no linear layer; the model has layer.0.inner"),
        ("bert", "lora", {"targets": "*.qery"}, "targets '.*qery' match no linear layer"),
        ("plain", "lora", {"rank": 40, "targets": "*.inner"}, "layer.0.inner: rank 40 does not fit a layer of 32 inputs and 64 outputs"),
        ("bert", "lora", {"rank": 33}, "attention.self.query: rank 33 does not fit"),
        ("llama", "dora", {"rank": 17}, "k_proj: rank 17 does not fit"),
        ("bert", "ia3", {"also": "classifer"}, "also: 'classifer' matches no module; did you mean 'classifier'"),
        ("bert", "prompt", {"also": ("classifier", "head")}, "also: 'head' matches no module"),
        ("plain", "bitfit", {"also": "head"}, "also: 'head' matches no module"),
        ("plain", "houlsby", {"after": "block"}, "after: 'block' matches no module"),
        ("plain", "houlsby", {"after": "layer.0"}, "the width of what layer.0, a Block, returns is not known"),
        ("plain", "bitfit", {"train": "layer.2"}, "train: 'layer.2' matches no parameter"),
        ("llama", "bitfit", {}, "train: 'biases' matches no parameter"),
        ("plain", "prompt", {}, "prompt and prefix tuning need a Hugging Face model"),
        ("plain", "ia3", {"targets": None}, "give targets"),
    ],
)
def test_names_that_mean_nothing_are_one_clear_error(kind, name, changes, said):
    method = load_method({**method_of(kind, name).model_dump(), **changes})
    with pytest.raises(InputError, match=said.replace("(", r"\(")):
        adapt(made(kind), method)


def test_loftq_needs_a_base():
    with pytest.raises(RecipeError, match="loftq makes up for what storing the base loses"):
        load_method("lora", start="loftq")


def test_folders_that_cannot_be_read_say_why(tmp_path):
    folder = save_adapter(adapt(made("bert"), method_of("bert", "lora")), tmp_path / "bert")
    wide = made("bert")
    wide.classifier = nn.Linear(HIDDEN, 7)
    with pytest.raises(InputError, match=r"another model: base_model.model.classifier.bias is \(3,\) in the file and \(7,\) in this model"):
        load_adapter(wide, folder)
    for other in ("llama", "plain"):
        with pytest.raises(InputError, match="is the adapter of another model"):
            load_adapter(made(other), folder)
    with pytest.raises(InputError, match="holds no adapter_model.safetensors"):
        load_adapter(made("bert"), tmp_path)
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(BrokenFile, match="cannot be read"):
        load_adapter(made("bert"), folder)
    adapt(made("bert"), method_of("bert", "lora")).model.save_pretrained(folder)
    with pytest.raises(InputError, match="use peft.PeftModel.from_pretrained"):
        load_adapter(made("bert"), folder)


def test_a_layer_in_two_places_is_adapted_in_both():
    model = nn.Sequential(nn.Linear(HIDDEN, HIDDEN), nn.ReLU())
    model.append(model[0])
    adapted = adapt(model, load_method("lora", targets="*"))
    assert adapted.model[0] is adapted.model[2] and trainable_table(adapted)[-1] == ("all", 8 * 2 * HIDDEN, HIDDEN * (HIDDEN + 1) + 8 * 2 * HIDDEN)


def test_only_the_module_named_learns_whole():
    model = made("bert")
    model.bert.pooler.classifier = nn.LayerNorm(1)  # PEFT takes whatever ends with the name
    for name in ("lora", "ia3", "prompt"):
        adapted = adapt(model, method_of("bert", name))
        assert sum("classifier" in n for n in adapted.trainable()) == 2
    model.bert.pooler.classifier = nn.Linear(8, 8)
    with pytest.raises(InputError, match="bert.pooler.classifier: PEFT gives it no adapter"):
        adapt(model, method_of("bert", "lora"))


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (24, 24)])
def test_both_ways_to_the_nearest_matrix_of_a_rank_agree(shape):
    matrix, method = torch.randn(shape, generator=torch.Generator().manual_seed(0)), load_method("lora", rank=5)
    for A, B in (nearest(matrix, method), singular(matrix, method)):
        assert A.shape == (5, shape[1]) and B.shape == (shape[0], 5)
        lost = torch.linalg.svdvals(matrix)[5:].norm()  # Eckart and Young: no matrix of this rank is nearer
        assert torch.dist(matrix, method.scale * B @ A) == pytest.approx(lost.item(), rel=1e-4)
        assert torch.allclose(A.norm(dim=1), B.norm(dim=0), rtol=1e-3)
    A, B = nearest(torch.zeros(shape), method)
    assert torch.isfinite(A).all() and not (B @ A).any()


def test_loftq_is_the_papers_algorithm():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        linear, method = nn.Linear(64, 48), load_method("loftq", rank=4)
    weight, low = linear.weight.detach(), torch.zeros(48, 64)
    for _ in range(5):
        codes = torch.from_numpy(encode((weight - low).numpy(), method.format).decode())
        left, values, right = torch.linalg.svd(weight - codes)
        low = left[:, :4] @ torch.diag(values[:4]) @ right[:4]
    begun = start(linear, method, 0, "layer")
    assert torch.dist(weight, begun.base.weight + method.scale * begun.B @ begun.A).item() == pytest.approx(torch.dist(weight, codes + low).item(), rel=1e-3)


@pytest.mark.parametrize("name", ["full", "prompt", "prefix"])
def test_tied_weights_and_other_names_of_frozen_ones_are_no_trouble_to_a_checkpoint(name, tmp_path):
    inputs = {name: tensor.numpy() for name, tensor in batch().items()}
    data = Samples(inputs, np.where(inputs["attention_mask"] == 1, inputs["input_ids"], -100))
    given = (made("llama"), method_of("llama", name), data, Budget(steps=2, batch=4), "causal_lm", None, tmp_path / "tuned.safetensors")
    tuned, again = finetune(*given), finetune(*given)
    assert same(state(tuned.model), state(again.model)) and again.log == tuned.log
    assert not torch.equal(run(tuned.model), run(adapt(*given[:2]).model))


def test_prefixes_and_gradient_checkpointing_exclude_each_other():
    inputs = {name: tensor.numpy() for name, tensor in batch().items()}
    with pytest.raises(InputError, match="budget.recompute: gradient checkpointing drops the cache"):
        finetune(made("bert"), method_of("bert", "prefix"), Samples(inputs, np.arange(4) % 3), Budget(steps=1, recompute=True))
