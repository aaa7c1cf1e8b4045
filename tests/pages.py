"""README and the pages of docs/ as blocks of code, and how they are run."""

import io
import shlex
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOT_RUN = "# not run by the tests: "  # the first line of a block that cannot run, with the reason
IN_COPY = "# in the changed copy"  # the first line of a block that runs where the diffs of its page were applied
COMMANDS = ("compresskit", "make", "python -m benchmarks")


@dataclass(frozen=True)
class Block:
    language: str  # "" for indented ones
    text: str
    line: int

    @property
    def skipped(self) -> bool:
        return self.text.startswith(NOT_RUN)

    @property
    def file(self) -> str:
        """The name of the file that it is, where its first line is that name alone, as in `# study.yaml`."""
        name = self.text.partition("\n")[0].removeprefix("# ")
        return name if name.endswith((".py", ".yaml")) and " " not in name and "/" not in name else ""


def blocks(page: Path) -> list[Block]:
    tokens = MarkdownIt("commonmark").parse(page.read_text(encoding="utf-8"))
    return [Block(t.info.partition(" ")[0], t.content, t.map[0] + 1) for t in tokens if t.type in ("fence", "code_block")]


def commands(page: Path) -> Iterator[tuple[int, list[str]]]:
    """Every command of ours that a page shows, as words, with its line; without comments, redirections and what follows a pipe."""
    for block in blocks(page):
        if block.language not in ("", "bash", "console", "yaml"):
            continue
        for number, line in enumerate(block.text.splitlines()):
            line = line.strip().removeprefix("- ").removeprefix("run: ").removeprefix("$ ")
            if line.startswith(tuple(f"{command} " for command in COMMANDS)) and "[OPTIONS]" not in line:
                words = shlex.split(line, comments=True)
                end = next((i for i, word in enumerate(words) if word in (">", ">>", "|", "&&")), len(words))
                yield block.line + number, [word for word in words[:end] if word != "..."]


def application() -> Any:
    """The command line with commands that parse their words and do nothing."""
    from compress.__main__ import app

    return deaf(typer.main.get_command(app))


def deaf(command: Any) -> Any:
    command.callback = lambda **_: None
    for inner in getattr(command, "commands", {}).values():
        deaf(inner)
    return command


def typed(words: list[str]) -> str:
    """What `compresskit` prints, on both streams, for the words after it."""
    from compress.__main__ import main
    from compress.commands import shared

    heard = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(heard), redirect_stderr(heard):
        patch.setattr(sys, "argv", ["compresskit", *words])
        patch.setenv("COLUMNS", "110")  # of the processes that it starts
        for console in (shared.console, shared.errors):
            patch.setattr(console, "_width", 110)
        try:
            main()
        except SystemExit as end:
            if end.code not in (0, 1, 2, None):
                raise
    return heard.getvalue()


def run(page: Path, folder: Path, examples: str = "", console: Any = None) -> dict[str, Any]:
    """The names that a page's Python leaves behind, run in order in `folder`, where its files are written.

    examples  a folder of examples whose modules the page imports
    console   called with a console block's command and the output that the page shows
    """
    patch, before = pytest.MonkeyPatch(), set(sys.modules)
    patch.chdir(folder)
    for path in filter(None, (folder, examples and ROOT / examples)):
        patch.syspath_prepend(path)
    if not (folder / "examples").exists():
        (folder / "examples").symlink_to(ROOT / "examples")
    names: dict[str, Any] = {}
    try:
        for block in blocks(page):
            if block.skipped or block.text.startswith(IN_COPY):
                continue
            if block.file:
                (folder / block.file).write_text(block.text, encoding="utf-8")
            elif block.language == "python":
                exec(compile("\n" * block.line + block.text, str(page), "exec"), names)
            elif block.language == "console" and console:
                for part in block.text.split("$ ")[1:]:
                    console(*part.split("\n", 1))
    finally:
        patch.undo()
        for name in set(sys.modules) - before:  # other pages and examples have modules of these names
            if (getattr(sys.modules[name], "__file__", None) or "").startswith((str(folder), str(ROOT / "examples"))):
                del sys.modules[name]
    return names
