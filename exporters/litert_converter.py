"""LiteRT .tflite files of Keras models, quantized by TFLiteConverter with numbers of its own: an arm to compare with."""

from pathlib import Path

from compress.errors import Refused
from compress.formats import FloatFormat, PerGroup, StaticActivations
from compress.pipeline import Compressed
from compress.plan import Decision
from exporters import Placed, refuse_exotic
from exporters.to_litert import EXPANDED, read

__all__ = ["OWN_NUMBERS", "RUNTIME", "SOURCES", "SUFFIX", "place", "read", "write"]

SUFFIX = ".tflite"
RUNTIME = "litert"
SOURCES = ("keras",)
OWN_NUMBERS = True

OWN_SCALES = "TFLiteConverter picks the scales itself"


def place(decision: Decision, framework: str) -> Placed:
    """How TFLiteConverter stores one tensor. Refused where it has no such mode."""
    fmt, activations = decision.format, decision.activations
    if isinstance(fmt, FloatFormat):
        if fmt.dtype != "float16" or activations is not None:
            raise Refused(f"TFLiteConverter has float16 weights with float activations, not {fmt} with {activations or 'float activations'}")
        return Placed("decoded", EXPANDED)
    refuse_exotic(fmt, "TFLiteConverter")
    if fmt.bits != 8 or isinstance(fmt.granularity, PerGroup) or not fmt.symmetric:
        raise Refused(f"TFLiteConverter has symmetric int8 weights per channel or tensor only, not {fmt}")
    if activations is None and decision.kind != "embedding":
        raise Refused("TFLiteConverter has no int8 weights with float activations")
    if decision.kind == "recurrent" and isinstance(activations, StaticActivations):
        raise Refused("TFLiteConverter's calibration of a recurrent layer's loop crashes; use dynamic activations")
    return Placed("native", OWN_SCALES)


def write(small: Compressed, path: Path) -> tuple[str, ...]:
    """Converts and quantizes in one go. ExportError where nothing was quantized."""
    from exporters import litert_converting

    return litert_converting.write(small, path)
