"""Leaves the zeros of weights out of a LiteRT file. DENSIFY puts them back once, when the model loads: XNNPACK then packs the weight like any other.

On processors for which XNNPACK has sparse kernels (ARM; not x86 with AVX), DENSIFY also lets it compute 1x1 convolutions with more than two thirds of
zeros sparse, where a model is a chain of them from a 3x3 convolution with stride 2 to a mean.
"""

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np

from compress.numerics.sparse import worth
from exporters import tflite_file
from exporters.litert_nodes import Nodes
from exporters.tflite_file import Place
from exporters.tflite_sparse import Rows
from exporters.to_litert import sparse_bytes

ITEMS = ("float32", "float16", "int8")
WHOLE = "the file holds every zero of these, as LiteRT runs zeros that it leaves out only in float32 layers and in int8 convolutions with static activations"
REASON = "the file leaves its zeros out, and DENSIFY puts them back when the model loads: in memory it takes its full size"
CONVOLUTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV")
FLOAT = {**dict.fromkeys(("FULLY_CONNECTED", *CONVOLUTIONS, "EMBEDDING_LOOKUP"), 1), "GATHER": 0}
"""Operators that take float32 from DENSIFY, and the input that is their weight.

Not DEQUANTIZE: where XNNPACK leaves the layer behind it alone, it reads before DENSIFY has written. So float16 and expanded int8 stay dense.
"""


def pack(data: bytes, names: Mapping[str, str]) -> tuple[bytes, tuple[str, ...]]:
    """The file with weights sparse where that takes fewer bytes and the runtime computes the very same with them, and a note on those that stay whole.

    names: the plan's, by those of the file.
    """
    model = tflite_file.parse(data, "the dense model")
    graph = model.subgraphs[0]
    nodes = Nodes(model, graph)
    made: dict[tuple, tuple[int, Any]] = {}  # tied weights share their bytes
    whole = []
    for place in [place for place in tflite_file.constants(model) if place.graph is graph and len(place.shape) > 1 and place.dtype in ITEMS]:
        values = tflite_file.values(model, place)
        stored = np.count_nonzero(values)
        if not stored or not worth(sparse_bytes(values.shape, values.itemsize, stored), values.nbytes):
            continue  # a constant without any value is none for LiteRT
        if can_be_sparse(model, place):
            key = place.tensor.buffer, place.shape
            if key not in made:
                rows = Rows.of(values)
                made[key] = tflite_file.add_buffer(model, rows.values), rows.parameters()
            densify(nodes, place, *made[key])
        else:
            whole.append(names.get(place.name, place.name))
    notes = (f"{WHOLE}: {', '.join(dict.fromkeys(whole))}",) if whole else ()
    if not made:
        return data, notes
    graph.operators = [*nodes.operators, *graph.operators]
    tflite_file.empty_unused(model)
    return tflite_file.serialized(model), notes


def densify(nodes: Nodes, place: Place, buffer: int, parameters: Any) -> None:
    output = nodes.shared("", place.shape, 0, place.dtype)
    output.tensor.quantization = copy.copy(place.tensor.quantization)
    for operator in tflite_file.consumers(place):
        operator.inputs = [output.index if index == place.index else index for index in operator.inputs]
    place.tensor.buffer, place.tensor.sparsity = buffer, parameters
    nodes.operator("DENSIFY", [place], [output])


def can_be_sparse(model: Any, place: Place) -> bool:
    """Whether every operator that reads a constant takes it from DENSIFY with the very same result."""
    readers = tflite_file.consumers(place)
    return bool(readers) and place.index not in place.graph.outputs and all(takes(model, place, reader) for reader in readers)


def takes(model: Any, place: Place, operator: Any) -> bool:
    name = tflite_file.operator_name(model, operator)
    if place.dtype == "float32":
        return name in FLOAT and list(operator.inputs).index(place.index) == FLOAT[name]
    if place.dtype != "int8" or name not in CONVOLUTIONS:  # XNNPACK prepares no int8 FULLY_CONNECTED behind DENSIFY
        return False
    moving = operator.inputs[2 if name == "TRANSPOSE_CONV" else 0]
    return moving != place.index and Place(place.graph, moving).dtype == "int8"  # and none with dynamic activations
