"""LiteRT's interpreter on the CPU, with XNNPACK."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import numpy as np

from compress.artifact import Artifact
from compress.network import Inputs

EXPORTER = "litert"
SUFFIX = ".tflite"


class LitertSession:
    """A .tflite file with its tensors allocated."""

    def __init__(self, artifact: Artifact, threads: int):
        from ai_edge_litert.interpreter import Interpreter

        self.interpreter = Interpreter(model_path=str(artifact.path), num_threads=threads)
        self.interpreter.allocate_tensors()
        given = {detail["name"]: detail for detail in self.interpreter.get_input_details()}
        made = {detail["name"]: detail for detail in self.interpreter.get_output_details()}
        used = [spec for spec in artifact.contents.inputs if spec.file_name]  # the converter drops inputs that nothing reads
        self.inputs = [(spec.name, given[spec.file_name]) for spec in used]
        self.outputs = [made[spec.file_name] for spec in artifact.contents.outputs]

    def run(self, inputs: Inputs) -> list[np.ndarray]:
        for name, detail in self.inputs:
            self.interpreter.set_tensor(detail["index"], encoded(inputs[name], detail))
        self.interpreter.invoke()
        return [decoded(self.interpreter.get_tensor(detail["index"]), detail) for detail in self.outputs]


def encoded(array: np.ndarray, detail: Mapping[str, Any]) -> np.ndarray:
    """As the file wants it: cast, or the codes of a float array where an input is codes."""
    (scale, zero_point), dtype = detail["quantization"], detail["dtype"]
    if scale and array.dtype.kind == "f" and np.issubdtype(dtype, np.integer):
        limits = np.iinfo(dtype)
        array = np.clip(np.rint(array / np.float32(scale)) + zero_point, limits.min, limits.max)
    return np.ascontiguousarray(array, dtype)


def decoded(array: np.ndarray, detail: Mapping[str, Any]) -> np.ndarray:
    """Numbers, where an output is codes."""
    scale, zero_point = detail["quantization"]
    codes = scale and array.dtype.kind in "iu"
    return (array.astype(np.float32) - np.float32(zero_point)) * np.float32(scale) if codes else array


def load(artifact: Artifact, threads: int) -> LitertSession:
    return LitertSession(artifact, threads)


def versions() -> dict[str, str]:
    return {"ai-edge-litert": version("ai-edge-litert"), "kernels": "XNNPACK delegate, its default; built-in kernels for what it does not take"}
