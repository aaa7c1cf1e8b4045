"""Measures artifacts where they run and says honestly what was seen."""

from importlib import import_module

PUBLIC = {"compare": "evaluators.study", "Study": "evaluators.study", "write_reports": "evaluators.report", "load_results": "evaluators.derive"}
__all__ = list(PUBLIC)


def __getattr__(name: str):
    if name not in PUBLIC:
        raise AttributeError(f"module 'evaluators' has no attribute {name!r}")
    return getattr(import_module(PUBLIC[name]), name)
