"""Puts packed weights into a LiteRT graph: a subgraph of their own decodes them at the first run, into variables that the layers read.

LiteRT folds few operators of constants (no CAST, no ADD), so that a decoder in front of a layer would run every time, at forty times the layer's own cost.
CALL_ONCE runs a subgraph once for each interpreter; what is left at every run is READ_VARIABLE's copy of the float weight.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from compress.numerics import Encoded
from compress.numerics.storing import FORMAT, to_arrays
from exporters import tflite_file
from exporters.litert_given import Given
from exporters.litert_nodes import Nodes
from exporters.litert_unpacking import typed, unpack
from exporters.tflite_file import Place

SUBGRAPH = "compresskit_unpack"
RESOURCE = "resource"


def pack(data: bytes, given: Mapping[str, Given], names: Mapping[str, str]) -> bytes:
    """The file with the given constants, by the file's names, replaced by packed ones. `names` are the plan's, by the file's; a tied weight is packed once."""
    model = tflite_file.parse(data, "the quantized model")
    readers = [place for place in tflite_file.constants(model) if place.name in given]
    nodes, decoded = Nodes(model, subgraph(model)), {}
    for name in dict.fromkeys(place.name for place in readers):
        found, owner = given[name], names[name]
        if owner not in decoded:
            decoded[owner] = canonical(nodes, owner, found.encoded)
        assign(nodes, name, in_file(nodes, decoded[owner], found))
    nodes.graph.operators = nodes.operators
    for graph in list(model.subgraphs):
        read_variables(model, graph, [place for place in readers if place.graph is graph])
    call_once(model)
    tflite_file.empty_unused(model)
    return tflite_file.serialized(model)


def subgraph(model: Any) -> Any:
    graph = schema.SubGraphT()
    graph.name, graph.tensors, graph.operators, graph.inputs, graph.outputs = SUBGRAPH.encode(), [], [], [], []
    model.subgraphs.append(graph)
    return graph


def canonical(nodes: Nodes, owner: str, encoded: Encoded) -> Place:
    arrays = typed(to_arrays(encoded), encoded.format)
    return unpack(nodes, {noun: nodes.stored(f"{owner}/{noun}", *array) for noun, array in arrays.items()}, encoded.format, encoded.shape)


def in_file(nodes: Nodes, decoded: Place, given: Given) -> Place:
    """A canonical tensor in the axes and the shape in which a layer reads it."""
    return nodes.reshape(nodes.transpose(decoded, given.layout.order), given.layout.shape)


def handle(nodes: Nodes, name: str) -> Place:
    return nodes.made("VAR_HANDLE", [], (), RESOURCE, container="", sharedName=name)


def assign(nodes: Nodes, name: str, value: Place) -> None:
    nodes.operator("ASSIGN_VARIABLE", [handle(nodes, name), value], [])


def read_variables(model: Any, graph: Any, places: list[Place]) -> None:
    nodes = Nodes(model, graph)
    for place in places:
        place.tensor.buffer = 0  # no longer a constant
        nodes.operator("READ_VARIABLE", [handle(nodes, place.name)], [place])
    graph.operators = [*nodes.operators, *graph.operators]


def call_once(model: Any) -> None:
    graph = model.subgraphs[0]
    nodes = Nodes(model, graph)
    nodes.operator("CALL_ONCE", [], [], initSubgraphIndex=len(model.subgraphs) - 1)
    graph.operators = [*nodes.operators, *graph.operators]


def about(encoded: Encoded) -> dict[str, Any]:
    """What `stored_arrays` needs to find a packed weight again."""
    return {"format": FORMAT.dump_python(encoded.format, mode="json"), "arrays": list(to_arrays(encoded))}


def stored_arrays(model: Any, name: str, nouns: list[str]) -> dict[str, np.ndarray]:
    """A packed weight's arrays by noun, as `storing.from_arrays` takes them. KeyError where one is missing."""
    graph = next((graph for graph in model.subgraphs if tflite_file.text(graph.name) == SUBGRAPH), None)
    found = {} if graph is None else {graph_place.name: graph_place for i in range(len(graph.tensors)) if (graph_place := Place(graph, i)).name}
    return {noun: tflite_file.values(model, found[f"{name}/{noun}"]) for noun in nouns}
