"""What a study's references are made of, read without running any of it: checks before work, fingerprints for resuming."""

import ast
import hashlib
from importlib.util import find_spec
from pathlib import Path

from compress.artifact import file_hash
from compress.errors import InputError
from compress.references import is_code
from compress.registry import suggest


def check(reference: str, folder: Path) -> None:
    """InputError where a reference cannot mean anything: no such file, no such name in it, not Python."""
    if not is_code(reference):
        if not (folder / reference).exists():
            raise InputError(f"{reference!r}: no such file beside the study; code is named as `file.py:function`")
        return
    place, _, name = reference.rpartition(":")
    path = source_file(place, folder)
    if path is None or not path.is_file():
        raise InputError(f"{reference!r}: {'no such file beside the study' if place.endswith('.py') else f'no module {place!r} is installed'}")
    known = top_level_names(parsed(path))
    if place.endswith(".py") and name not in known:
        raise InputError(f"{reference!r}: {place} defines no {name!r}; {suggest(name, known)}")


def source_file(place: str, folder: Path) -> Path | None:
    """The file behind `file.py` or `package.module`; packages are not imported."""
    if place.endswith(".py"):
        return folder / place
    top, *rest = place.split(".")
    spec = find_spec(top)
    if spec is None or (rest and not spec.submodule_search_locations):
        return None
    if not rest:
        return Path(spec.origin) if spec.origin else None
    base = Path(next(iter(spec.submodule_search_locations))).joinpath(*rest)
    return base / "__init__.py" if base.is_dir() else base.with_suffix(".py")


def parsed(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except SyntaxError as error:
        raise InputError(f"{path.name} is not valid Python, line {error.lineno}: {error.msg}") from error


def top_level_names(tree: ast.Module) -> list[str]:
    """Every name that a module can define: definitions, assignments and imports, wherever they stand."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.append(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.append(node.id)
        elif isinstance(node, ast.alias):
            found.append((node.asname or node.name).split(".")[0])
    return found


def fingerprint(reference: str | None, folder: Path) -> list:
    """What decides the outcome of a reference: contents of its source, of the neighbours it imports and of the neighbouring files it names.

    Without modification times and absolute paths, so a moved or freshly cloned study keeps its fingerprint.
    """
    if reference is None:
        return []
    if not is_code(reference):
        return [reference, tree_hash(folder / reference), *external(folder / reference)]
    path = source_file(reference.rpartition(":")[0], folder)
    seen: dict[str, str] = {}
    follow(path, path.parent, seen)
    return [reference, sorted(seen.items())]


def external(path: Path) -> list[tuple[str, str]]:
    """Names and hashes of the files beside an .onnx file that it names: its weights may lie there."""
    if path.suffix != ".onnx":
        return []
    text = path.read_bytes()
    return [(file.name, file_hash(file)) for file in sorted(path.parent.iterdir()) if file != path and file.is_file() and file.name.encode() in text]


def follow(path: Path, folder: Path, seen: dict[str, str]) -> None:
    name = path.relative_to(folder).as_posix()
    if name in seen:
        return
    seen[name] = file_hash(path)
    if path.suffix == ".py":
        for node in ast.walk(parsed(path)):
            for found in neighbours(node, folder):
                follow(found, folder, seen)


def neighbours(node: ast.AST, folder: Path) -> list[Path]:
    """Files in `folder` that a piece of source imports or names in a string."""
    names: list[str] = []
    if isinstance(node, ast.Import):
        names = [f"{alias.name.replace('.', '/')}.py" for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module:
        names = [f"{node.module.replace('.', '/')}.py"]
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and is_file_name(node.value):
        names = [node.value]
    return [folder / name for name in names if (folder / name).is_file()]


def is_file_name(text: str) -> bool:
    return 0 < len(text) < 200 and text.isprintable() and not text.startswith(("/", ".")) and ".." not in text


def tree_hash(path: Path) -> str:
    """Hash of a file, or of every file below a folder."""
    if path.is_file():
        return file_hash(path)
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(f"{file.relative_to(path).as_posix()} {file_hash(file)}\n".encode())
    return digest.hexdigest()
