"""Tables of names that are imported on demand. Adding an entry is one new file and one line here or in the table's package."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import import_module
from types import ModuleType

from compress.errors import MissingExtra, UnknownName


def suggest(name: str, known) -> str:
    close = get_close_matches(name, list(known), n=1)
    return f"did you mean {close[0]!r}? " if close else ""


@dataclass(frozen=True)
class Entry:
    module: str
    extra: str | None = None  # the optional dependency group that brings its framework
    about: str = ""


@dataclass(frozen=True)
class Registry:
    """Names to modules. `aliases` are other spellings that users type."""

    noun: str
    entries: dict[str, Entry]
    aliases: dict[str, str] = field(default_factory=dict)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __contains__(self, name: str) -> bool:
        return self.aliases.get(name, name) in self.entries

    def name(self, name: str) -> str:
        """The registered spelling of a name or alias."""
        found = self.aliases.get(name, name)
        if found not in self.entries:
            raise UnknownName(f"no {self.noun} {name!r}: {suggest(name, [*self.entries, *self.aliases])}known: {', '.join(self.entries)}")
        return found

    def load(self, name: str) -> ModuleType:
        """The module of an entry; MissingExtra names what to install when its framework is absent."""
        entry = self.entries[self.name(name)]
        try:
            return import_module(entry.module)
        except ModuleNotFoundError as error:
            if entry.extra is None or (error.name or "").split(".")[0] in ("compress", "exporters", "evaluators"):
                raise
            raise MissingExtra(f"{self.noun} {name!r} needs {error.name}, which is not installed: pip install 'compresskit[{entry.extra}]'") from error
