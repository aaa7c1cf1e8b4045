"""Errors that say what, why and what to do. Bad values raise ValueError subclasses, so a caller can catch either."""


class CompressError(Exception):
    """Base of every error that this project raises on purpose."""


class RecipeError(CompressError, ValueError):
    """A recipe, study or selector that cannot mean anything."""


class UnknownName(CompressError, ValueError):
    """A name that no registry entry has."""


class MissingExtra(CompressError, ImportError):
    """A framework that is not installed; the message names the extra."""


class InputError(CompressError, ValueError):
    """A model, weight or calibration sample that cannot be used."""


class OpenShapes(InputError):
    """A model that leaves axes of its inputs open, without data that tells them. `inputs` are (name, shape with None where it is open, dtype)."""

    def __init__(self, message: str, inputs: tuple[tuple[str, tuple[int | None, ...], str], ...]):
        super().__init__(message)
        self.inputs = inputs


class Refused(CompressError):
    """A runtime or exporter cannot do what the plan asks; the reason is the message. Nothing is written."""


class ExportError(CompressError):
    """The written file does not hold what the plan says; every tensor is named. The file is removed."""


class BrokenFile(CompressError, ValueError):
    """A file that cannot be read as what its name promises."""


class BrokenInvariant(CompressError):
    """A step of a recipe has undone what an earlier one made; tensor and step are named."""


class TrainingError(CompressError):
    """A training that cannot go on: its loss is NaN or infinite. Step and layer are named; the last good checkpoint is kept."""


class Unreachable(CompressError):
    """A target that cannot be set up or reached from here; the message says what is missing."""
