"""A folder of transformers' `save_pretrained` as a PyTorch model: read from this disk alone, and without running code that lies in it."""

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from compress.errors import InputError, MissingExtra

TOKENS = 128  # of an example sentence, where the model takes as many
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
INDEX = "model.safetensors.index.json"


def load(folder: Path, weights_only: bool = False) -> nn.Module:
    """The model in float32, of the class that config.json names.

    weights_only  also reads a pickled pytorch_model.bin, by torch's unpickler that makes tensors and containers only
    InputError for anything else than a whole model of transformers' own classes.
    """
    transformers = imported()
    settings = read_json(folder / "config.json")
    pickled = not list(folder.glob("*.safetensors"))
    check(folder, settings, pickled, weights_only)
    kind = architecture(transformers, settings, folder)
    disk = {"local_files_only": True, "trust_remote_code": False}
    try:
        model, told = kind.from_pretrained(folder, dtype=torch.float32, use_safetensors=not pickled, weights_only=True, output_loading_info=True, **disk)
    except Exception as error:
        raise InputError(f"{folder} cannot be opened as a {kind.__name__}: {first_line(error)}") from error
    absent = sorted({*told["missing_keys"], *(name for name, *_ in told["mismatched_keys"])})
    if absent:
        raise InputError(f"{folder} lacks weights of a {kind.__name__}, which would be random: {', '.join(absent[:4])}; save the whole model there")
    return model


def imported() -> Any:
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise MissingExtra("Hugging Face folders need transformers, which is not installed: pip install 'compresskit[finetune]'") from error
    return transformers


def check(folder: Path, settings: dict, pickled: bool, weights_only: bool) -> None:
    """InputError for weights that are pickled or quantized, and for shards that lie elsewhere."""
    if pickled and not any((folder / name).exists() for name in PICKLED):
        raise InputError(f"{folder} has a config.json and no *.safetensors: save the model there with save_pretrained")
    if pickled and not weights_only:
        raise InputError(
            f"{folder} holds pickled weights (pytorch_model.bin), which can run code when they are opened: save it again with save_pretrained, "
            "which writes safetensors, or name a function that returns compress.open_model(folder, weights_only=True)"
        )
    if "quantization_config" in settings:
        raise InputError(f"{folder} is quantized already ({settings['quantization_config'].get('quant_method')}): give the float model that it was made from")
    for index in (folder / name for name in (INDEX, *PICKLED) if name.endswith(".index.json") and (folder / name).exists()):
        for shard in set(read_json(index).get("weight_map", {}).values()):
            if Path(shard).name != shard:
                raise InputError(f"{index.name} names a shard outside of its folder, {shard!r}: such a folder is not opened")


def architecture(transformers: Any, settings: dict, folder: Path) -> Any:
    name = (settings.get("architectures") or ["AutoModel"])[0]
    found = getattr(transformers, name, None)
    known = isinstance(found, type) and issubclass(found, transformers.PreTrainedModel) or name == "AutoModel"
    if not known:
        raise InputError(f"{folder}: transformers has no model {name!r}, and code in the folder is not run: write a `file.py:function`")
    return found


def example(model: nn.Module, folder: Path) -> dict[str, np.ndarray]:
    """One sample by input name, from the folder's tokenizer or the config. InputError where neither tells what the model takes."""
    config, takes = model.config, list(inspect.signature(model.forward).parameters)
    if model.main_input_name == "pixel_values" and getattr(config, "image_size", None):
        size = config.image_size if isinstance(config.image_size, list | tuple) else (config.image_size, config.image_size)
        return {"pixel_values": np.zeros((1, getattr(config, "num_channels", 3), *size), np.float32)}
    if model.main_input_name != "input_ids":
        raise InputError(f"{folder}: a {type(model).__name__} takes {model.main_input_name}, in no shape that its config says: give `inputs` or `calibration`")
    length = min(TOKENS, getattr(config, "max_position_embeddings", TOKENS))
    found = tokens(folder, length) or {"input_ids": np.zeros((1, length), np.int64), "attention_mask": np.ones((1, length), np.int64)}
    first = next((i for i, name in enumerate(takes) if name not in found), len(takes))  # data names the first arguments of forward, in their order
    return {name: found[name] for name in takes[:first]}


def tokens(folder: Path, length: int) -> dict[str, np.ndarray] | None:
    """A sentence as the folder's tokenizer gives it, or None without one."""
    if not any((folder / name).exists() for name in ("tokenizer.json", "vocab.txt", "tokenizer.model", "vocab.json")):
        return None
    tokenizer = imported().AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    found = tokenizer("An example sentence.", padding="max_length", truncation=True, max_length=length, return_tensors="np")
    return {name: np.asarray(values, np.int64) for name, values in found.items()}


def read_json(path: Path) -> dict:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {first_line(error)}") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} is not a JSON object")
    return found


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
