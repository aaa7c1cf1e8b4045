"""Texts as samples: packed into full blocks without a token to spare, or padded one by one."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from compress.errors import InputError
from compress.finetune.batches import Samples
from compress.finetune.losses import IGNORED


def pack(texts: Sequence[str], tokenizer: Any, tokens: int) -> Samples:
    """Blocks [n, tokens] filled with documents, each ended by the end token; what does not fill a last block is left out.

    position_ids start again with every document: transformers then lets attention see the own document only, where there is neither an attention_mask nor
    a cache (masking_utils.find_packed_sequence_indices). A document that a block cuts goes on in the next as one of its own. No label asks for a
    document's first token. InputError for a tokenizer without an end token, and texts that do not fill a block.
    """
    if tokenizer.eos_token_id is None:
        raise InputError("packing puts the tokenizer's end token between documents, and it has none: set tokenizer.eos_token")
    documents = [[*ids, tokenizer.eos_token_id] for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]] if len(texts) else []
    lengths = np.array([len(ids) for ids in documents], np.int64)
    blocks = int(lengths.sum()) // tokens
    if not blocks:
        raise InputError(f"{len(documents)} texts of {int(lengths.sum())} tokens together do not fill one block of {tokens}: give more text, or smaller blocks")
    ids, starts = np.concatenate(documents), np.repeat(np.cumsum(lengths) - lengths, lengths)
    ids, within = (array[: blocks * tokens].reshape(blocks, tokens) for array in (ids, np.arange(len(ids)) - starts))
    positions = np.minimum(within, np.arange(tokens))
    return Samples({"input_ids": ids, "position_ids": positions}, np.where(positions == 0, IGNORED, ids))


def pad(texts: Sequence[str], tokenizer: Any, tokens: int, labels: np.ndarray | None = None) -> Samples:
    """input_ids and attention_mask [texts, at most `tokens`], filled up on the right; longer texts are cut.

    labels  of the texts; None: the tokens themselves, for a language model, -100 where there are none

    InputError for a tokenizer without a padding token.
    """
    if tokenizer.pad_token_id is None:
        raise InputError("the tokenizer has no padding token: set one (tokenizer.pad_token = tokenizer.eos_token does), or pack the texts")
    found = tokenizer(list(texts), truncation=True, max_length=tokens, padding="longest", padding_side="right", return_tensors="np")
    ids, mask = found["input_ids"].astype(np.int64), found["attention_mask"].astype(np.int64)
    return Samples({"input_ids": ids, "attention_mask": mask}, np.where(mask == 1, ids, IGNORED) if labels is None else np.asarray(labels))
