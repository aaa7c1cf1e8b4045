"""Which tensors a step takes."""

import re
from fnmatch import fnmatchcase

from pydantic import BaseModel, ConfigDict, field_validator

Patterns = str | tuple[str, ...]


class Selector(BaseModel):
    """Tensors that match every given condition; an empty selector takes every layer weight.

    name   glob (or several) over tensor names, as `encoder.layer.*.weight`; `*` crosses dots
    kind   glob (or several) over layer kinds, as `linear`, `conv*`, `embedding`
    regex  Python regular expression that is found anywhere in the name
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: Patterns | None = None
    kind: Patterns | None = None
    regex: str | None = None

    @field_validator("regex")
    @classmethod
    def compiles(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return value

    def matches(self, name: str, kind: str, tied: tuple[str, ...] = ()) -> bool:
        names = (name, *tied)
        return (
            (self.name is None or any(glob(self.name, n) for n in names))
            and (self.kind is None or glob(self.kind, kind))
            and (self.regex is None or any(re.search(self.regex, n) for n in names))
        )

    @property
    def by_name(self) -> bool:
        return self.name is not None or self.regex is not None


def glob(patterns: Patterns, text: str) -> bool:
    return any(fnmatchcase(text, pattern) for pattern in ((patterns,) if isinstance(patterns, str) else patterns))
