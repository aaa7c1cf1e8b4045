"""The command line `compresskit`."""

import os
import sys
from importlib import import_module

from rich.markup import escape

from compress.commands import GROUPS
from compress.commands.shared import app, errors
from compress.errors import CompressError, ExportError

for group in GROUPS:
    import_module(f"compress.commands.{group}")


def main() -> None:
    """Runs the command line; errors that we raise on purpose become one message and exit code 2 (1 for a failed export), with `--debug` their trace."""
    given = sys.argv[1:]
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime's wheels since 1.32 upload usage otherwise
    try:
        app([word for word in given if word != "--debug"])
    except (CompressError, OSError) as error:
        if "--debug" in given:
            raise
        errors.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        raise SystemExit(1 if isinstance(error, ExportError) else 2) from error


if __name__ == "__main__":
    main()
