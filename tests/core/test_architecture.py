"""The arrows of the design, read from the imports of every file."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import exporters

ROOT = Path(__file__).parents[2]
FRAMEWORKS = {
    "tensorflow", "keras", "tf_keras", "torch", "torchao", "litert_torch", "ai_edge_litert", "litert_quantizer",
    "onnx", "onnxruntime", "onnxscript", "executorch", "transformers", "numba",
}  # fmt: skip
ADAPTERS = ("compress/backends/", "compress/finetune/", "compress/conformance/", "exporters/", "evaluators/runtimes/")
KERNELS = ("compress/numerics/kernels.py", "compress/numerics/kmeans_kernels.py")  # compiled loops, loaded where an array is large


def imports(path: Path, whole: bool = True) -> set[str]:
    """Names that a file imports; only at module level unless `whole`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree) if whole else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [("compress", {"exporters", "evaluators"}), ("exporters", {"evaluators"}), ("evaluators", {"exporters"})],
)
def test_packages_know_only_what_is_to_their_left(package, forbidden):
    wrong = {
        f"{relative(path)} imports {name}"
        for path in files(package)
        for name in imports(path)
        if name.split(".")[0] in forbidden and not relative(path).startswith("compress/commands/")
    }
    assert not wrong


def test_only_adapters_import_frameworks():
    wrong = {
        f"{relative(path)} imports {name}"
        for package in ("compress", "exporters", "evaluators")
        for path in files(package)
        if not relative(path).startswith(ADAPTERS) and relative(path) not in KERNELS
        for name in imports(path)
        if name.split(".")[0] in FRAMEWORKS
    }
    assert not wrong


@pytest.mark.parametrize("exporter", exporters.EXPORTERS)
def test_exporters_can_be_asked_without_their_framework(exporter):
    """`place` answers at planning time, where the framework may not even be installed."""
    code = f"import sys, exporters; exporters.EXPORTERS.load('{exporter}'); print([m for m in {sorted(FRAMEWORKS)} if m in sys.modules])"
    assert run(code) == "[]"


def test_no_file_is_named_like_a_package_that_it_imports():
    for package in ("compress", "exporters", "evaluators"):
        for path in files(package):
            assert path.stem not in FRAMEWORKS, relative(path)


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def test_importing_compress_loads_no_framework():
    names = sorted(FRAMEWORKS)
    assert run(f"import compress, sys; print([m for m in {names} if m in sys.modules])") == "[]"


def test_recipes_and_numbers_need_no_framework():
    code = "import compress, numpy, sys; compress.Recipe.load('int8-static'); compress.encode(numpy.ones((4, 4)), compress.IntFormat(8))"
    assert run(f"{code}; print([m for m in {sorted(FRAMEWORKS)} if m in sys.modules])") == "[]"


def test_a_measuring_process_needs_little_more_than_numpy():
    """It also runs on an emulated machine and on boards, where nothing else is installed."""
    modules = "worker", "metrics.emulated", "metrics.session", "runtimes.litert", "runtimes.ort", "boards.agent", "boards.facts"
    code = f"import sys, {', '.join(f'evaluators.{name}' for name in modules)}"
    assert run(f"{code}; print([m for m in ('pydantic', 'yaml', 'scipy', 'psutil', 'typer', 'rich') if m in sys.modules])") == "[]"


def test_every_public_name_exists():
    assert run("import compress; [getattr(compress, n) for n in compress.__all__ if n not in ()]; print('ok')") == "ok"
