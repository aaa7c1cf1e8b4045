"""The next token: the model's first output has scores [tokens, vocabulary], labels are the tokens themselves [samples, tokens], -100 where none is asked for.

A sample is a document. The scores at one token are for the next, as in transformers, so nothing asks for a document's first token. Perplexity is
exp(nats of all tokens / their number), normalised by the model's own tokens: it compares arms of one model, not models with different tokenizers.
Documents are independent, tokens are not, so documents are what is resampled.
"""

import numpy as np

from compress.errors import InputError
from evaluators.results import Metric
from evaluators.tasks import IGNORED, Kept, Scored, classes, finite

PERPLEXITY = Metric("perplexity", "perplexity", higher_is_better=False, noun="document")
NEXT = Metric("next-token accuracy", "mean", "%", noun="document")
ANSWERS = "nats"
ROWS = 32  # of scores in float64 at a time


def check(labels: np.ndarray | None) -> np.ndarray:
    found = classes(labels, ("samples", "tokens"), ignored=True)
    if (found[:, 1:] == IGNORED).all():
        raise InputError("no label behind a first token asks for an answer")
    return found


def keep(outputs: list[np.ndarray], label: np.ndarray) -> dict[str, np.ndarray]:
    """`nats` float64: minus the log likelihood of the tokens asked for; `tokens` int64: how many these are; `right` int64: how many of them scored best."""
    scores = np.asarray(outputs[0])[0]
    if scores.ndim != 2 or len(scores) != len(label):
        raise InputError(f"task causal_lm needs scores [{len(label)} tokens, vocabulary]; the model's first output is {list(scores.shape)}")
    places = np.flatnonzero(label[1:] != IGNORED)
    nats, right = 0.0, 0
    for start in range(0, len(places), ROWS):
        at = places[start : start + ROWS]
        rows, wanted = finite(scores[at].astype(np.float64), PERPLEXITY.title), label[at + 1]
        if wanted.max() >= rows.shape[1]:
            raise InputError(f"the label {wanted.max()} is no token of a vocabulary of {rows.shape[1]}")
        best, own = rows.max(1), rows[np.arange(len(at)), wanted]
        nats += float((np.log(np.exp(rows - best[:, None]).sum(1)) + best - own).sum())
        right += int((own == best).sum())
    return {"nats": np.float64(nats), "tokens": np.int64(len(places)), "right": np.int64(right)}


def scores(kept: Kept, float32: Kept | None, labels: np.ndarray) -> list[Scored]:
    tokens = kept["tokens"].astype(np.float64)
    each = np.maximum(tokens, 1)
    return [Scored(PERPLEXITY, kept["nats"] / each, tokens), Scored(NEXT, kept["right"] / each, tokens)]


def notes(kept: Kept, labels: np.ndarray | None) -> tuple[str, ...]:
    return (f"perplexity over {int(kept['tokens'].sum()):,} tokens of {len(kept['tokens'])} documents",)
