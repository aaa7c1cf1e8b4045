"""Folders on the board: files by their hash, kept between studies and bounded, and one folder of its own for each measuring process."""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp, mkstemp
from typing import BinaryIO

from compress.errors import BrokenFile
from evaluators.boards.wire import blocks

MOST_BYTES = 2 << 30  # of kept files; those that were used longest ago go first


class Place:
    """A process's folder, and the kept files. What it uses is linked into its folder, so nothing is taken from it when the kept files become too many."""

    def __init__(self, folder: Path, kept: Path):
        self.folder, self.kept = folder, kept

    def lacking(self, files: dict[str, str]) -> list[str]:
        """Of files by name, which need not be unique, with their hashes: names that have to be sent. The others are in the folder now."""
        return [name for name, digest in files.items() if not self.link(name, digest)]

    def link(self, name: str, digest: str) -> bool:
        path, kept = self.folder / name, self.kept / digest
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        try:
            os.link(kept, path)
        except FileNotFoundError:
            return False
        os.utime(path)
        return True

    def keep(self, name: str, digest: str, size: int, stream: BinaryIO) -> None:
        """Takes a file of `size` bytes from a stream, all of them whatever happens. BrokenFile where it is not the one that was announced."""
        given, found = blocks(stream, size), hashlib.sha256()
        descriptor, fresh = mkstemp(prefix=".", dir=self.kept)
        try:
            with open(descriptor, "wb") as file:
                for block in given:
                    file.write(block)
                    found.update(block)
            if found.hexdigest() != digest:
                raise BrokenFile(f"{Path(name).name} changed while it was sent")
            os.replace(fresh, self.kept / digest)
        except BaseException:
            for _ in given:
                pass
            os.unlink(fresh)
            raise
        self.link(name, digest)
        self.bound()

    def bound(self) -> None:
        files = [(file.stat(), file.path) for file in os.scandir(self.kept)]
        left = sum(about.st_size for about, _ in files)
        for about, path in sorted(files, key=lambda file: file[0].st_mtime):
            if left <= MOST_BYTES:
                return
            Path(path).unlink(missing_ok=True)
            left -= about.st_size


@contextmanager
def own_place(cache: Path) -> Iterator[Place]:
    """A place that is removed at the end, or by the next one where its process was killed: a folder is its owner's as long as that holds its lock."""
    kept = cache / "files"
    kept.mkdir(parents=True, exist_ok=True)
    with (cache / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in cache.glob("run-*"):
            if (held := claim(left)) is not None:
                os.close(held)
                shutil.rmtree(left, ignore_errors=True)
        folder = Path(mkdtemp(prefix="run-", dir=cache))
        held = claim(folder)
    try:
        yield Place(folder, kept)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


def claim(folder: Path) -> int | None:
    """A descriptor that holds the folder's lock, None where another process does or has just removed it."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
