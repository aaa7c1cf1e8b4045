"""What an application needs to know of a model beside its numbers."""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from compress.errors import InputError


class Card(BaseModel):
    """Written into every file, and into a .tflite as TFLite Metadata too, which Android Studio and MediaPipe read.

    labels     of the classes, in the order of the first output's last axis
    mean, std  the first float input is (pixel - mean) / std; one number, or one for each channel
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    description: str = ""
    labels: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @classmethod
    def of(cls, labels: str = "", mean: Sequence[float] = (), std: Sequence[float] = ()) -> "Card | None":
        """From text with a label on each line; None where nothing is said. InputError says what does not fit."""
        lines = [line.strip() for line in labels.splitlines() if line.strip()]
        try:
            return cls(labels=lines, mean=mean, std=std) if lines or mean or std else None
        except ValidationError as error:
            raise InputError("; ".join(e["msg"] for e in error.errors())) from error

    @model_validator(mode="after")
    def whole(self) -> "Card":
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} numbers and std {len(self.std)}: give as many of each")
        if any(value <= 0 for value in self.std):
            raise ValueError("std: every number must be positive")
        broken = [label for label in self.labels if not label.strip() or "\n" in label]
        if broken:
            raise ValueError(f"labels: {broken[0]!r} is no line of text")
        return self
