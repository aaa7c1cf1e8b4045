"""study.sqlite: every finished piece of a study, kept the moment it is there. Raw samples only; statistics are derived on load."""

import fcntl
import hashlib
import io
import json
import sqlite3
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from compress.errors import InputError

FILE = "study.sqlite"
SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS pieces (
    key TEXT PRIMARY KEY, kind TEXT NOT NULL, owner TEXT NOT NULL, status TEXT NOT NULL, cause TEXT NOT NULL, trace TEXT NOT NULL,
    seconds REAL NOT NULL, created TEXT NOT NULL, facts TEXT NOT NULL, arrays BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS arms (id TEXT PRIMARY KEY, position INTEGER NOT NULL, arm TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS links (arm TEXT NOT NULL, kind TEXT NOT NULL, key TEXT NOT NULL, PRIMARY KEY (arm, kind));
"""


@dataclass(frozen=True, eq=False)
class Piece:
    """One finished or failed piece of work. `key` is a hash of everything that determines its result."""

    key: str
    kind: str  # data, runtime, exporter, target, export, a metric, latency, latency-pair
    owner: str  # the arm or thing it was done for, to read the file by hand
    status: str  # done, refused or failed
    cause: str = ""
    trace: str = ""
    seconds: float = 0.0
    facts: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)


def identity(*parts: Any) -> str:
    """32 hex digits that stand for values; equal values give equal digits on every machine."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class Store:
    """The file of one study. Every method may be called from any thread; a write is there, whole, when it returns."""

    def __init__(self, folder: Path, create: bool = True):
        if not create and not (folder / FILE).is_file():
            raise InputError(f"{folder}: there is no {FILE}; `compresskit compare STUDY.yaml --out {folder}` makes one")
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.guard = folder, threading.Lock()
        self.database = sqlite3.connect(folder / FILE, check_same_thread=False, isolation_level=None)
        try:
            self.database.executescript(f"PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; {SCHEMA}")
        except sqlite3.DatabaseError as error:
            raise InputError(f"{folder / FILE} is not a study's file: {error}") from error

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.database.close()

    def write(self, *statements: tuple[str, tuple]) -> None:
        """All of the statements or none."""
        with self.guard:
            self.database.execute("BEGIN IMMEDIATE")
            try:
                for sql, values in statements:
                    self.database.execute(sql, values)
            except BaseException:
                self.database.execute("ROLLBACK")
                raise
            self.database.execute("COMMIT")

    def read(self, sql: str, values: tuple = ()) -> list[tuple]:
        with self.guard:
            return self.database.execute(sql, values).fetchall()

    def fact(self, name: str, default: Any = None) -> Any:
        rows = self.read("SELECT value FROM facts WHERE name = ?", (name,))
        return json.loads(rows[0][0]) if rows else default

    def keep_facts(self, **facts: Any) -> None:
        self.write(*(("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, json.dumps(value))) for name, value in facts.items()))

    def keep(self, *pieces: Piece) -> None:
        """Pieces, all or none; an earlier failure under the same key is replaced."""
        self.write(*(("INSERT OR REPLACE INTO pieces VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row(piece)) for piece in pieces))

    def piece(self, key: str | None) -> Piece | None:
        rows = self.read("SELECT * FROM pieces WHERE key = ?", (key,))
        return from_row(rows[0]) if rows else None

    def settled(self, key: str) -> Piece | None:
        """A piece that need not be done again: finished, or refused for a reason that has not changed. Failures are tried again."""
        piece = self.piece(key)
        return piece if piece and piece.status != "failed" else None

    def keep_arms(self, arms: Mapping[str, Mapping[str, Any]]) -> None:
        """The study's matrix, in its order; what earlier runs linked to it is linked again as this run finds it."""
        rows = [("INSERT INTO arms VALUES (?, ?, ?)", (name, at, json.dumps(arm))) for at, (name, arm) in enumerate(arms.items())]
        self.write(("DELETE FROM arms", ()), ("DELETE FROM links", ()), *rows)

    def arms(self) -> dict[str, dict[str, Any]]:
        return {name: json.loads(arm) for name, arm in self.read("SELECT id, arm FROM arms ORDER BY position")}

    def link(self, arm: str, kind: str, key: str) -> None:
        self.write(("INSERT OR REPLACE INTO links VALUES (?, ?, ?)", (arm, kind, key)))

    def links(self, arm: str) -> dict[str, str]:
        return dict(self.read("SELECT kind, key FROM links WHERE arm = ?", (arm,)))


def row(piece: Piece) -> tuple:
    packed = io.BytesIO()
    if piece.arrays:
        np.savez_compressed(packed, **piece.arrays)
    head = (piece.key, piece.kind, piece.owner, piece.status, piece.cause, piece.trace, piece.seconds, now())
    return *head, json.dumps(dict(piece.facts)), packed.getvalue()


def from_row(values: tuple) -> Piece:
    key, kind, owner, status, cause, trace, seconds, _, facts, arrays = values
    unpacked = dict(np.load(io.BytesIO(arrays), allow_pickle=False)) if arrays else {}
    return Piece(key, kind, owner, status, cause, trace, seconds, json.loads(facts), unpacked)


class Claim:
    """Held by the one command that works in a folder; the system lets go of it when the process ends, however it ends."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.file = (folder / ".claim").open("w")
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.file.close()
            raise InputError(f"another command is at work in {folder}: wait for it or choose another folder") from error

    def __enter__(self) -> "Claim":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
