"""Docstrings of this project as Markdown: rows of a name, two or more spaces and its meaning become a list."""

import re
from typing import Any

import griffe

ROW = re.compile(r"^(\S+(?:, \S+)*) {2,}(\S.*)$")


class Columns(griffe.Extension):
    """Rewrites every docstring when griffe has read it."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(text: str) -> str:
    """Aligned rows as list items, with the lines that go on with them; everything else as it is."""
    lines, width = [], 0  # width: where the meaning of a row begins, 0 outside of rows
    for line in text.splitlines():
        row = ROW.match(line)
        if row:
            if not width and lines and lines[-1]:
                lines.append("")
            width = row.start(2)
            lines.append(f"- `{row[1]}`: {row[2]}")
        elif width and line.startswith(" " * width):
            lines[-1] += " " + line.strip()
        else:
            if width and line:
                lines.append("")
            width = 0
            lines.append(line)
    return "\n".join(lines)
