"""What is installed, what is live on this machine, and what each missing extra would add."""

import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version

from compress.errors import MissingExtra
from evaluators.runtimes import RUNTIMES

BRINGS = {
    "tensorflow": "Keras models; LiteRT files and their runtime",
    "torch": "PyTorch models, .pt2 files, torch runtimes; LiteRT files from PyTorch",
    "onnx": "ONNX files and ONNX Runtime",
    "executorch": "ExecuTorch's .pte files and their runtime",
    "ssh": "boards that are reached over ssh",
    "kernels": "compiled loops for large tensors, the same bits faster",
    "checkpoints": "what loads the checkpoints that are written: bitsandbytes and compressed-tensors in transformers; GGUF files",
    "adb": "Android phones as targets, where adb is installed",
    "peers": "libraries that `compresskit conformance` and benchmarks compare with",
    "examples": "the sentiment example",
}

Table = tuple[str, list[str], list[tuple[str, ...]]]


def examine() -> Iterator[Table]:
    """Titles, columns and rows of everything worth knowing before a bug report."""
    from evaluators.environment import environment

    yield "Extras", ["extra", "state", "brings", "packages"], [extra_row(extra, brings) for extra, brings in BRINGS.items()]
    yield "Runtimes", ["runtime", "state"], [runtime_row(name) for name in RUNTIMES]
    yield "This machine", ["what", "value"], list(environment().items())


def packages(extra: str) -> list[str]:
    """Names of the packages that an extra asks for."""
    wanted = [line for line in requires("compresskit") or [] if f'extra == "{extra}"' in line]
    return [re.split(r"[ ;<>=!\[]", line, maxsplit=1)[0] for line in wanted]


def extra_row(extra: str, brings: str) -> tuple[str, str, str, str]:
    found, missing = [], []
    for package in packages(extra):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            missing.append(package)
    state = f"missing {', '.join(missing)}: pip install 'compresskit[{extra}]'" if missing else "installed"
    return extra, state, brings, ", ".join(found)


def runtime_row(name: str) -> tuple[str, str]:
    try:
        facts = RUNTIMES.load(name).versions()
    except MissingExtra as error:
        return name, str(error)
    return name, ", ".join(f"{key} {value}" for key, value in facts.items())
