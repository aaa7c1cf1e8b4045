"""Tiny models of each kind for tests of fine-tuning, and what each named method says of them."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
import torch
from torch import nn

from compress.finetune.losses import outputs
from compress.finetune.methods import NAMED, load_method

WORDS, HIDDEN = 64, 32


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.inner, self.outer = nn.LayerNorm(HIDDEN), nn.Linear(HIDDEN, 2 * HIDDEN), nn.Linear(2 * HIDDEN, HIDDEN)

    def forward(self, x):
        return x + self.outer(torch.relu(self.inner(self.norm(x))))


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(WORDS, HIDDEN)
        self.layer = nn.ModuleList([Block(), Block()])
        self.batch_norm, self.classifier = nn.BatchNorm1d(HIDDEN), nn.Linear(HIDDEN, 3)

    def forward(self, input_ids, attention_mask):
        x = self.words(input_ids)
        for block in self.layer:
            x = block(x)
        weight = attention_mask[..., None].to(x.dtype)
        return self.classifier(self.batch_norm((x * weight).sum(1) / weight.sum(1)))


def bert():
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"vocab_size": WORDS, "hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return BertForSequenceClassification(BertConfig(**sizes, max_position_embeddings=64, num_labels=3))


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": WORDS, "hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=1, max_position_embeddings=64, tie_word_embeddings=True))


MODELS = {"plain": Plain, "bert": bert, "llama": llama}
CHANGES = {  # what a method needs to be told of a model: names in a model of one's own, and that a new classifier learns whole
    ("plain", "houlsby"): {"after": "layer.*.outer"},
    ("plain", "pfeiffer"): {"after": "layer.*.outer"},
    ("plain", "ia3"): {"targets": "layer.*"},
}
WITHOUT = {
    ("llama", "bitfit"): "has no biases",
    ("plain", "prompt"): "prompts need a Hugging Face model",
    ("plain", "prefix"): "prompts need a Hugging Face model",
}
CASES = [(model, name) for model in MODELS for name in NAMED if (model, name) not in WITHOUT]


def made(kind):
    """The same model each time, its classifier as far from zero as training makes it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MODELS[kind]()
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.2)
    return model.eval()


def method_of(kind, name, **changes):
    also = "classifier" if kind != "llama" and name != "full" else None
    return load_method(name, **CHANGES.get((kind, name), {}) | {"also": also} | changes)


def batch():
    random = torch.Generator().manual_seed(1)
    mask = torch.ones(4, 8, dtype=torch.long)
    mask[1, 5:] = 0
    return {"input_ids": torch.randint(0, WORDS, (4, 8), generator=random), "attention_mask": mask}


def run(model):
    return outputs(model(**batch()))
