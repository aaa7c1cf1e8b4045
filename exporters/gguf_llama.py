"""Llama models under the names, in the order of rows and with the settings that llama.cpp expects (convert_hf_to_gguf.py)."""

from typing import Any

import numpy as np

from compress.errors import Refused


def is_llama(model: Any) -> bool:
    return type(model).__name__ == "LlamaForCausalLM" and hasattr(model, "config")


def check(config: Any) -> None:
    """Refused for settings that need more than this writes."""
    rope = config.rope_parameters
    for wrong, reason in (
        (rope["rope_type"] != "default", f"rotary embeddings of type {rope['rope_type']!r}"),
        (config.hidden_act != "silu", f"activation {config.hidden_act!r}"),
    ):
        if wrong:
            raise Refused(f"GGUF files of Llama models are written for llama.cpp's plain Llama, not with {reason}")


def file_names(config: Any, names: list[str]) -> dict[str, str]:
    """llama.cpp's name of every tensor. Refused for one that it does not know."""
    from gguf import MODEL_ARCH, get_tensor_name_map

    known = get_tensor_name_map(MODEL_ARCH.LLAMA, config.num_hidden_layers)
    found = {name: known.get_name(name, try_suffixes=(".weight", ".bias")) for name in names}
    unknown = [name for name, given in found.items() if given is None]
    if unknown:
        raise Refused(f"llama.cpp's Llama has no place for {', '.join(unknown)}")
    return found


def heads(config: Any, name: str) -> int | None:
    """Of queries and keys, whose rows llama.cpp wants in another order; None for other tensors."""
    layer = name.rpartition(".")[0]
    return config.num_attention_heads if layer.endswith("q_proj") else config.num_key_value_heads if layer.endswith("k_proj") else None


def row_order(rows: int, heads: int) -> np.ndarray:
    """int [rows]: which row comes where. Hugging Face rotates a head's halves, llama.cpp neighbouring pairs."""
    return np.arange(rows).reshape(heads, 2, -1).swapaxes(1, 2).ravel()


def describe(writer: Any, config: Any) -> None:
    """The settings that llama.cpp's loader asks for, and no vocabulary: it takes and gives token ids."""
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("none")
