"""Activation ranges of a .tflite file: LiteRT runs it, the core decides."""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from compress.calibration import Range, observe
from compress.formats import StaticActivations
from exporters import tflite_file
from exporters.litert_given import Given

LOWEST = np.finfo(np.float32).min
MASK = -9e3  # activations below this are attention masks (-1e4, -3.4e38, -inf): in 8 or 16 bits nothing else of the tensor would be left


@dataclass(frozen=True)
class Calibrated:
    """Ranges of the tensors that the float model computes, by name, and which of them hold masks."""

    activations: StaticActivations
    ranges: Mapping[str, Range]
    masks: frozenset[str]

    def statistics(self) -> dict[str, dict[str, np.ndarray]]:
        """In litert-quantizer's form. Always 0, which any scale holds, counts as up to 1: XNNPACK refuses the tiny scale that would follow."""
        ends = {name: (found.low, found.high if found.high > found.low else 1.0) for name, found in self.ranges.items()}
        return {name: {"min": np.float32(low), "max": np.float32(high)} for name, (low, high) in ends.items()}


def with_decoded(model: Any, given: Mapping[str, Given]) -> bytes:
    """The float model (ModelT) holding the decoded weights: its ranges are those that the quantized model meets."""
    model = tflite_file.copied(model)
    for place in tflite_file.all_tensors(model):
        if place.name in given:
            found = given[place.name]
            place.tensor.buffer = tflite_file.add_buffer(model, found.layout.to_file(found.encoded.decode()))
    tflite_file.empty_unused(model)
    return tflite_file.serialized(model)


def calibrate(data: bytes, batches: Iterable[list[np.ndarray]], activations: StaticActivations) -> Calibrated:
    """The range of every float tensor that the model computes, over batches of the file's inputs in their order."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES  # a delegate hides the tensors between its operators
    threads = os.cpu_count() or 1
    interpreter = Interpreter(model_content=data, num_threads=threads, experimental_preserve_all_tensors=True, experimental_op_resolver_type=plain)
    interpreter.allocate_tensors()
    graph = tflite_file.parse(data, "the float model").subgraphs[0]
    made = {i for operator in graph.operators for i in operator.outputs} | set(graph.inputs)
    watched = {place.name: place.index for i in sorted(made) if (place := tflite_file.Place(graph, i)).dtype == "float32"}
    masks = set()

    def batches_of_activations() -> Iterator[dict[str, np.ndarray]]:
        for arrays in batches:
            for index, array in zip(graph.inputs, arrays, strict=True):
                interpreter.set_tensor(index, array)
            interpreter.invoke()
            found = {name: interpreter.get_tensor(index) for name, index in watched.items() if allocated(interpreter, index)}
            masks.update(name for name, array in found.items() if array.size and array.min() < MASK)
            yield {name: np.maximum(array, LOWEST) if name in masks else array for name, array in found.items()}

    ranges = observe(batches_of_activations(), activations)
    return Calibrated(activations, ranges, frozenset(masks))


def allocated(interpreter: Any, index: int) -> bool:
    """Whether a tensor has memory of its own; those that an operator hands on, as WHILE does, have none."""
    try:
        interpreter.tensor(index)()
    except ValueError:  # the only way that the interpreter says so
        return False
    return True
