"""What a Hugging Face model's checkpoint holds beside its compressed weights."""

import copy
import json
from typing import Any

import numpy as np

from compress.errors import Refused
from exporters.checkpoint_file import DTYPES, Raw


def hugging_face(network: Any) -> Any:
    """The network's transformers model. Refused for one that transformers could not build again from its config."""
    model = network.model
    if not hasattr(model, "save_pretrained"):
        raise Refused(f"transformers loads models that it can build from a config: {type(model).__name__} is no Hugging Face model")
    import torch
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        raise Refused(f"{type(model).__name__} wraps a Hugging Face model: merge it into that first")
    with torch.device("meta"):
        again = type(model)(copy.deepcopy(model.config)).state_dict()
    own = model.state_dict()
    differing = sorted(name for name in again.keys() | own.keys() if name not in again or name not in own or again[name].shape != own[name].shape)
    if differing:
        notes = "; ".join(network.notes)
        raise Refused(f"the model is not what {type(model).__name__} builds from its config, it differs in {', '.join(differing[:6])}{notes and f' ({notes})'}")
    return model


def config_of(model: Any) -> dict[str, Any]:
    """config.json, without the cache's switch, which was turned off when the model was opened."""
    settings = copy.deepcopy(model.config)
    settings.architectures, settings.dtype = [type(model).__name__], model.dtype
    found = json.loads(settings.to_json_string(use_diff=False))
    found.pop("use_cache", None)
    return found


def linear_modules(model: Any) -> dict[str, type]:
    """Every module that transformers might take for a linear layer, with its class."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    return {name: type(module) for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}


def float_tensors(model: Any, without: set[str]) -> dict[str, Raw]:
    """The state that no weight of the plan replaces, in the model's own types; tied tensors once, where transformers ties them again."""
    tied = getattr(model, "all_tied_weights_keys", {})
    return {name: to_raw(tensor) for name, tensor in model.state_dict().items() if name not in without and name not in tied}


def to_raw(tensor: Any) -> Raw:
    import torch

    known = {written: (name, held) for name, (written, held) in DTYPES.items()}
    name, held = known[str(tensor.dtype).removeprefix("torch.")]
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return Raw(name, np.ascontiguousarray(flat).view(held).reshape(tuple(tensor.shape)))
