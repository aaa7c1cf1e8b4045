"""Docstrings of this project as Markdown: rows of a name, two or more spaces and its meaning become a list, and so do fields with a comment behind them."""

import re
from typing import Any

import griffe

ROW = re.compile(r"^(\S+(?:, \S+)*) {2,}(\S.*)$")
DOCUMENTS = ("BaseModel", "Document", "Settings")  # whose fields a signature does not show


class Columns(griffe.Extension):
    """Rewrites every docstring when griffe has read it."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)

    def on_class_members(self, *, cls: griffe.Class, **kwargs: Any) -> None:
        parts = [cls.docstring.value] if cls.docstring else []
        fields = {name: field for name, field in cls.attributes.items() if is_field(field)}
        if any(str(base).split(".")[-1] in DOCUMENTS for base in cls.bases):
            parts.append("Fields: " + ", ".join(f"`{name}`" for name in fields if not name.startswith("_")) + ".")
        parts.append("\n".join(f"- `{name}`: {said}" for name, field in fields.items() if (said := comment(field))))
        if any(parts):
            cls.docstring = griffe.Docstring("\n\n".join(filter(None, parts)), parent=cls)


def is_field(attribute: griffe.Attribute) -> bool:
    return attribute.annotation is not None and "ClassVar" not in str(attribute.annotation) and "property" not in attribute.labels


def comment(field: griffe.Attribute) -> str:
    """What stands behind a field in its line."""
    found = re.search(r"  # (?!noqa)(.+)$", field.source.splitlines()[-1]) if field.source else None
    return found[1] if found else ""


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
