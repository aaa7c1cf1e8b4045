"""This project's numbers beside those of the libraries that own them: the same vectors through both, and how far the answers are apart."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import get_args

from compress.conformance.matrix import Cell, Kind
from compress.conformance.peers import PEERS
from compress.errors import CompressError

LIMIT_S = 300  # for one library
AT_ONCE = 2


@dataclass(frozen=True)
class Row:
    """One preset through one function of a library: a cell for each golden vector, by the vector's name."""

    preset: str
    how: str
    reason: str
    cells: dict[str, Cell]

    @property
    def tally(self) -> str:
        """How many vectors are in each class."""
        counts = Counter(cell.kind for cell in self.cells.values())
        return ", ".join(f"{counts[kind]} {kind}" for kind in get_args(Kind) if counts[kind])


@dataclass(frozen=True)
class Answer:
    """What one library was found to do; `missing` says what to install where it could not be asked."""

    peer: str
    version: str
    rows: tuple[Row, ...]
    missing: str = ""


def conformance(names: Sequence[str] = ()) -> Iterator[Answer]:
    """Every registered library's answer (or those of `names`), in the registry's order. Each runs in a process of its own, two at a time."""
    names = [PEERS.name(name) for name in names] or list(PEERS)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield from pool.map(ask, names)


def ask(name: str) -> Answer:
    """One library's answer. CompressError with the end of its output where its process fails."""
    threads = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "compress.conformance.worker", name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, env={**os.environ, **threads})
    if done.returncode:
        raise CompressError(f"asking {name} failed with exit code {done.returncode}:\n{done.stderr[-2000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    if "missing" in found:
        return Answer(name, "", (), found["missing"])
    rows = (Row(r["preset"], r["how"], r["reason"], {label: Cell(**cell) for label, cell in r["cells"].items()}) for r in found["rows"])
    return Answer(name, found["version"], tuple(rows))
