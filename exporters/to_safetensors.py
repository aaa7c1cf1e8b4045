"""Hugging Face checkpoints, a folder of model.safetensors and config.json, with the core's own codes and scales.

NF4 and FP4 go to bitsandbytes, integers, MXFP4 and NVFP4 to compressed-tensors; transformers loads both with `from_pretrained(folder)`.
"""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

from compress.artifact import Contents, StoredTensor, spread
from compress.errors import BrokenFile, InputError, Refused
from compress.network import InputSpec
from compress.numerics import Encoded
from compress.numerics.storing import FORMAT
from compress.pipeline import Compressed
from compress.plan import Decision
from exporters import METADATA_KEY, Placed, checkpoint_bitsandbytes, checkpoint_compressed_tensors, metadata, placements
from exporters.checkpoint_file import Raw, read_file, write_file

SUFFIX = ".safetensors"
SOURCES = ("pytorch",)
RUNTIME = ""  # other programs load checkpoints
OWN_NUMBERS = False
FILE_NAME = "model.safetensors"
NO_TOKENIZER = "the folder holds no tokenizer: save the model's own there, if it has one"
METHODS: dict[str, ModuleType] = {method.METHOD: method for method in (checkpoint_bitsandbytes, checkpoint_compressed_tensors)}


def method_of(decision: Decision) -> ModuleType:
    for method in METHODS.values():
        if method.takes(decision.format):
            return method
    raise Refused(f"no method of transformers stores {decision.format}: bitsandbytes has NF4 and FP4, compressed-tensors integers, MXFP4 and NVFP4")


def place(decision: Decision, framework: str) -> Placed:
    if decision.kind != "linear":
        raise Refused(f"checkpoints store linear layers in few bits, not layers of kind {decision.kind}")
    if decision.activations is not None:
        raise Refused(f"checkpoints are written for weights only, without {decision.activations}")
    method = method_of(decision)
    method.check(decision)
    return Placed("decoded", method.REASON)


def write(small: Compressed, path: Path) -> tuple[str, ...]:
    """Writes the file, and config.json beside it. Refused for models that transformers cannot build again from a config."""
    from exporters.checkpoint_model import config_of, float_tensors, hugging_face, linear_modules

    model = hugging_face(small.network)
    if path.name != FILE_NAME:
        raise Refused(f"transformers looks for {FILE_NAME} in the folder of a model: write FOLDER/{FILE_NAME}, not {path.name}")
    placed = placements(small.plan, "safetensors", small.network.framework, small.recipe.allow_float)
    stored = {name: small.plan.compressed[name] for name, how in placed.items() if how.placement != "float"}
    shared = [name for name, weight in small.network.weights().items() if name in stored and weight.tied]
    if shared:
        raise Refused(f"several layers share {', '.join(shared)}: a checkpoint stores one layer's few bits for itself; leave them out with a selector")
    method = the_method(stored)
    dtype = str(model.dtype).removeprefix("torch.")
    tensors = float_tensors(model, set(stored))
    for name in stored:
        tensors |= method.tensors(name, small.encoded[name], dtype)
    settings, notes = config_of(model), (NO_TOKENIZER,)
    if method:
        formats = {name.removesuffix(".weight"): decision.format for name, decision in stored.items()}
        settings["quantization_config"] = method.config(formats, linear_modules(model), dtype)
        settings["dtype"] = method.loads_as(list(formats.values()), dtype)
        notes += method.notes(list(formats.values()))
    entries = {name: in_float(name, how.reason) if how.placement == "float" else described(name, method, small.encoded[name]) for name, how in placed.items()}
    write_file(path, tensors, {"format": "pt", METADATA_KEY: metadata(small, "safetensors", entries)})
    path.with_name("config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return notes


def the_method(stored: dict[str, Decision]) -> ModuleType | None:
    """The quantization method that all tensors have in common; None where there are none."""
    found = {method_of(decision).METHOD for decision in stored.values()}
    if len(found) > 1:
        raise Refused(f"a checkpoint has one quantization method, and the recipe wants {' and '.join(sorted(found))}: give all layers formats of one of them")
    return METHODS[found.pop()] if found else None


def described(name: str, method: ModuleType, encoded: Encoded) -> dict[str, Any]:
    fmt, whole = FORMAT.dump_python(encoded.format, mode="json"), encoded.global_scale
    rest = {"method": method.METHOD, "format": fmt, "global_scale": None if whole is None else float(whole)}
    return {"file_name": name, "placement": "decoded", "reason": method.REASON, **rest}


def in_float(name: str, reason: str) -> dict[str, Any]:
    return {"file_name": name, "placement": "float", "reason": reason}


def read(path: Path) -> Contents:
    """What a .safetensors file holds, whoever wrote it. BrokenFile for one that is damaged."""
    raws, about = read_file(path)
    try:
        told = json.loads(about.get(METADATA_KEY, "{}"))
        tensors = tuple(stored_tensors(raws, told))
    except (KeyError, ValueError, IndexError, TypeError, InputError) as error:
        raise BrokenFile(f"{path.name}: its tensors are not what its metadata says: {error}") from error
    inputs = tuple(InputSpec(name, tuple(shape), dtype) for name, shape, dtype in told.get("inputs", []))
    return Contents("safetensors", inputs, (), tensors, {}, told)


def stored_tensors(raws: dict[str, Raw], told: dict[str, Any]):
    """The planned tensors, then every other one."""
    entries, parts = told.get("tensors", {}), set()
    for name, entry in entries.items():
        if entry["placement"] != "float":
            parts |= {part for part in raws if part == name or part.startswith((f"{name}.", f"{name}_"))}
            yield METHODS[entry["method"]].read(name, FORMAT.validate_python(entry["format"]), entry["global_scale"], raws)
    for name, raw in raws.items():
        if name not in parts:
            reason = entries.get(name, {}).get("reason", "")
            foreign = not told and raw.name not in ("float32", "float64")
            reason = "not written by compresskit: what its numbers mean is not known" if foreign else reason
            facts = spread(raw.value) if raw.name == "float32" else {}
            yield StoredTensor(name, name, raw.value.shape, raw.name, "decoded" if foreign else "float", reason, raw.value.nbytes, **facts)
