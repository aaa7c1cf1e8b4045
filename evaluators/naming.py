"""How an arm is named on a command line: `model/recipe/runtime/target`, a part of that, or a glob."""

from fnmatch import fnmatch

WHOLE = 3  # slashes in an arm's whole name


def fits(name: str, pattern: str) -> bool:
    """Whether the arm `name` fits a glob, or holds `pattern` where that is only a part of a name."""
    return fnmatch(name, pattern) or (pattern.count("/") < WHOLE and pattern in name)
