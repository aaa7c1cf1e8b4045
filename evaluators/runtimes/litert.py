"""LiteRT's interpreter on the CPU, with XNNPACK."""

from importlib.metadata import version

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
        made = {detail["name"]: detail["index"] for detail in self.interpreter.get_output_details()}
        used = [spec for spec in artifact.contents.inputs if spec.file_name]  # the converter drops inputs that nothing reads
        self.inputs = [(spec.name, given[spec.file_name]["index"], given[spec.file_name]["dtype"]) for spec in used]
        self.outputs = [made[spec.file_name] for spec in artifact.contents.outputs]

    def run(self, inputs: Inputs) -> list[np.ndarray]:
        for name, index, dtype in self.inputs:
            self.interpreter.set_tensor(index, np.ascontiguousarray(inputs[name], dtype))
        self.interpreter.invoke()
        return [self.interpreter.get_tensor(index) for index in self.outputs]


def load(artifact: Artifact, threads: int) -> LitertSession:
    return LitertSession(artifact, threads)


def versions() -> dict[str, str]:
    return {"ai-edge-litert": version("ai-edge-litert"), "kernels": "XNNPACK delegate, its default; built-in kernels for what it does not take"}
