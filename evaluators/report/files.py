"""Writes files whole or not at all."""

import os
from pathlib import Path


def write(path: Path, text: str) -> Path:
    """`path`, replaced in one step. OSError names what cannot be written; what was there before stays."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8", newline="\n")
        os.replace(temporary, path)
    except OSError as error:
        discard(temporary)
        raise OSError(error.errno, f"the report cannot write {str(path)!r}: {error.strerror}; choose a folder that can be written") from error
    return path


def discard(path: Path) -> None:
    """Removes what an interrupted write left. Its folder may be what is missing or read-only, so a second refusal says nothing new."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return
