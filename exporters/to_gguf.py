"""GGUF files with the core's own codes and scales: Llama models as llama.cpp loads them, other networks under their own names."""

from pathlib import Path
from typing import Any

import numpy as np

from compress.artifact import Contents
from compress.errors import Refused
from compress.formats import FloatFormat
from compress.pipeline import Compressed
from compress.plan import Decision
from exporters import Placed, gguf_llama, metadata, placements
from exporters.gguf_file import BLOCK, METADATA_KEY, library, read_contents, to_bytes, type_of

SUFFIX = ".gguf"
SOURCES = ("pytorch", "keras", "onnx", "litert")
RUNTIME = ""  # other programs load these files
OWN_NUMBERS = False
MATRICES = ("linear", "attention", "embedding")
REASON = "llama.cpp multiplies Llama's blocks by activations that it rounds to 8 bits itself; other programs expand them to float"
UNKNOWN = "llama.cpp does not know this network: who reads the file expands the values to float"
LARGEST_DIMENSIONS = 4  # ggml's


def place(decision: Decision, framework: str) -> Placed:
    """ggml's types are blocks of 32 with float16 scales, and half floats. Refused for all else."""
    fmt = decision.format
    if decision.activations is not None:
        raise Refused(f"GGUF stores weights: whoever runs them decides about activations, not the recipe with its {decision.activations}")
    if type_of(fmt) is None:
        raise Refused(f"GGUF has no type for {fmt}: it takes blocks of {BLOCK} as in presets gguf.q4_0, gguf.q4_1 and gguf.q8_0, and half floats")
    if isinstance(fmt, FloatFormat):
        return Placed("native")
    if decision.kind not in MATRICES or decision.shape[-1] % BLOCK:
        raise Refused(f"GGUF's blocks of {BLOCK} lie along the inputs of matrices, not in a {decision.kind} of shape {list(decision.shape)}")
    return Placed("native", REASON)


def write(small: Compressed, path: Path) -> tuple[str, ...]:
    """Writes the file. Refused for tensors that GGUF or llama.cpp has no place for."""
    gguf = library()
    weights = small.network.weights()
    placed = placements(small.plan, "gguf", small.network.framework, small.recipe.allow_float)
    too_many = [name for name, weight in weights.items() if weight.value.ndim > LARGEST_DIMENSIONS]
    if too_many:
        raise Refused(f"GGUF's tensors have at most {LARGEST_DIMENSIONS} dimensions: {', '.join(too_many)}")
    config = None
    if gguf_llama.is_llama(small.network.model):
        config, saved = small.network.model.config, small.network.model.state_dict()
        weights = {name: weight for name, weight in weights.items() if name in saved}  # llama.cpp computes the frequencies of its rotations itself
    names, heads = names_and_heads(config, list(weights))
    writer = gguf.GGUFWriter(path, "llama" if config else type(small.network.model).__name__.lower())
    if config:
        gguf_llama.describe(writer, config)
    writer.add_quantization_version(2)
    writer.add_string(METADATA_KEY, metadata(small, "gguf", entries(placed, names, heads, known=bool(config))))
    for name, weight in weights.items():
        if name in placed and placed[name].placement != "float":
            kind = gguf.GGMLQuantizationType[type_of(small.encoded[name].format)]
            writer.add_tensor(names[name], to_bytes(small.encoded[name], heads[name]), raw_dtype=kind)
        else:
            writer.add_tensor(names[name], float32(weight.value, heads[name]))
    save(writer)
    return notes(small, known=bool(config))


def names_and_heads(config: Any, names: list[str]) -> tuple[dict[str, str], dict[str, int | None]]:
    """The file's name of every tensor, and the attention heads that order its rows."""
    if config is None:
        return {name: name for name in names}, dict.fromkeys(names)
    gguf_llama.check(config)
    return gguf_llama.file_names(config, names), {name: gguf_llama.heads(config, name) for name in names}


def float32(value: np.ndarray, heads: int | None) -> np.ndarray:
    ordered = value if heads is None else value[gguf_llama.row_order(len(value), heads)]
    return np.ascontiguousarray(np.atleast_1d(ordered), np.float32)


def entries(placed: dict[str, Placed], names: dict[str, str], heads: dict[str, int | None], known: bool) -> dict[str, dict[str, Any]]:
    """What `read` needs to know of the planned tensors."""
    ways = {name: how if known or how.placement == "float" else Placed("decoded", UNKNOWN) for name, how in placed.items()}
    return {name: {"file_name": names[name], "placement": how.placement, "reason": how.reason, "heads": heads[name]} for name, how in ways.items()}


def save(writer: Any) -> None:
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def notes(small: Compressed, known: bool) -> tuple[str, ...]:
    if known:
        return ("the file holds no vocabulary: llama.cpp takes and gives token ids", "query and key rows are in llama.cpp's order")
    return (f"tensors have the network's own names: llama.cpp runs Llama models only, not {type(small.network.model).__name__}",)


def read(path: Path) -> Contents:
    return read_contents(path)
