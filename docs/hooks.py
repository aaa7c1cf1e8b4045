"""What the site says that only the code knows: the command line and the JSON schemas, written when the site is built."""

import json
import subprocess
import sys

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files


def on_files(files: Files, config: MkDocsConfig) -> Files:
    from compress.commands.schemas import Document, json_schema

    files.append(File.generated(config, "cli.md", content=command_line()))
    for name in Document:
        files.append(File.generated(config, f"schemas/{name}.json", content=json.dumps(json_schema(name), indent=2) + "\n"))
    return files


def command_line() -> str:
    """Every command and option as Markdown, from the application itself."""
    words = [sys.executable, "-m", "typer", "compress.__main__", "utils", "docs", "--name", "compresskit", "--title", "Command line"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout
