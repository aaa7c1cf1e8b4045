"""Registries: names, aliases, suggestions and missing extras."""

import pytest

from compress.errors import MissingExtra, UnknownName
from compress.registry import Entry, Registry

TABLE = Registry(
    "thing",
    {"json": Entry("json"), "absent": Entry("a_package_that_is_not_there", "extra"), "broken": Entry("compress.no_such_module", "extra")},
    {"js": "json"},
)


def test_names_and_aliases():
    assert "js" in TABLE and list(TABLE) == ["json", "absent", "broken"]
    assert TABLE.name("js") == "json" and TABLE.load("js").dumps(1) == "1"


def test_unknown_names_suggest():
    with pytest.raises(UnknownName, match="no thing 'jsom': did you mean 'json'?"):
        TABLE.load("jsom")


def test_a_missing_framework_names_the_extra():
    with pytest.raises(MissingExtra, match=r"thing 'absent' needs a_package_that_is_not_there.*pip install 'compresskit\[extra\]'"):
        TABLE.load("absent")


def test_our_own_missing_module_is_not_disguised_as_a_missing_extra():
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        TABLE.load("broken")
