"""Recipe steps. Adding one is a new file with a frozen pydantic document and its name in `Step`."""

from compress.steps.quantize import Quantize

Step = Quantize

__all__ = ["Quantize", "Step"]
