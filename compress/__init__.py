"""One compression recipe for every framework and every device. Importing costs milliseconds; names load when first used."""

from importlib import import_module

__version__ = "0.1.0"

PUBLIC = {
    "Recipe": "compress.recipe",
    "compress": "compress.pipeline",
    "Compressed": "compress.pipeline",
    "Training": "compress.training",
    "open_model": "compress.backends",
    "Artifact": "compress.artifact",
    "Encoded": "compress.numerics",
    "encode": "compress.encoding",
    "IntFormat": "compress.formats",
    "FloatFormat": "compress.formats",
    "CodebookFormat": "compress.formats",
    "PerTensor": "compress.formats",
    "PerAxis": "compress.formats",
    "PerGroup": "compress.formats",
    "PerBlock": "compress.formats",
}

__all__ = list(PUBLIC)


def __getattr__(name: str):
    if name not in PUBLIC:
        raise AttributeError(f"module 'compress' has no attribute {name!r}")
    return getattr(import_module(PUBLIC[name]), name)


def __dir__():
    return sorted([*globals(), *PUBLIC])
