"""Hugging Face configurations, and models from them without weights."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PretrainedConfig

from compress.errors import InputError, UnknownName
from compress.finetune.tasks import Task
from compress.finetune.tracking import blocks
from compress.registry import suggest

FOLDER = Path(__file__).parent / "configs"
CAUSAL = ("ForCausalLM", "LMHeadModel")


def built_in() -> list[str]:
    """Names of the configurations that come along."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def load_config(given: str | Path) -> PretrainedConfig:
    """UnknownName for a name that is neither a file nor built in, InputError for a file that is no model's configuration."""
    path = Path(given)
    if path.is_dir():
        path = path / "config.json"
    elif str(given) in built_in():
        path = FOLDER / f"{given}.json"
    if not path.is_file():
        raise UnknownName(
            f"no model {str(given)!r}: {suggest(str(given), built_in())}give a folder with a config.json, a .json file, or one of {', '.join(built_in())}"
        )
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        return configuration(said)
    except (ValueError, TypeError, KeyError, AttributeError, StrictDataclassError) as error:
        raise InputError(f"{path} is not the configuration of a Hugging Face model: {error}") from error


def configuration(said: dict[str, Any]) -> PretrainedConfig:
    if not isinstance(said, dict) or "model_type" not in said:
        raise ValueError("it has no model_type")
    return AutoConfig.for_model(**said)


def task_of(config: PretrainedConfig) -> Task:
    """What the model is fine-tuned for: language models to predict tokens, encoders to tell classes apart."""
    return "causal_lm" if any(name.endswith(CAUSAL) for name in config.architectures or ()) else "classification"


def blank(config: PretrainedConfig, dtype: torch.dtype) -> nn.Module:
    """A model on the device of the context. InputError where transformers cannot build it."""
    kind = AutoModelForCausalLM if task_of(config) == "causal_lm" else AutoModelForSequenceClassification
    try:
        return kind.from_config(deepcopy(config), dtype=dtype)
    except (ValueError, TypeError, AttributeError, KeyError, ImportError) as error:
        raise InputError(f"no model can be built from this configuration of a {config.model_type}: {error}") from error


def with_blocks(config: PretrainedConfig, count: int) -> PretrainedConfig:
    """The same architecture with fewer blocks."""
    changed = deepcopy(config)
    changed.num_hidden_layers = count
    if getattr(config, "layer_types", None):
        changed.layer_types = config.layer_types[:count]
    return changed


def uniform(config: PretrainedConfig) -> bool:
    """Whether all blocks are alike: the same kind of attention, the same parameters."""
    if len(set(getattr(config, "layer_types", None) or ())) > 1:
        return False
    with torch.device("meta"):
        found = blocks(blank(config, torch.bfloat16))
    shapes = [[(name, p.shape) for name, p in block.named_parameters()] for block in found]
    return len(found) == config.num_hidden_layers and all(one == shapes[0] for one in shapes)
