"""Puts packed weights into a LiteRT graph: a subgraph of their own decodes them at the first run, into variables that the layers read.

LiteRT folds few operators of constants (no CAST, no ADD), so that a decoder in front of a layer would run every time, at forty times the layer's own cost.
CALL_ONCE runs a subgraph once for each interpreter; what is left at every run is READ_VARIABLE's copy of the float weight.
A table that is only looked up stays packed: its rows are decoded as they are needed.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from compress.numerics import Encoded
from compress.numerics.storing import FORMAT, to_arrays
from exporters import litert_lookups, litert_products, tflite_file
from exporters.litert_given import Given
from exporters.litert_nodes import Nodes
from exporters.litert_unpacking import Packed, factors, typed, unpack
from exporters.tflite_file import Place

SUBGRAPH = "compresskit_unpack"


def pack(data: bytes, given: Mapping[str, Given]) -> bytes:
    """The file with the given constants, by the file's names, replaced by packed ones; a tied weight is packed once."""
    model = tflite_file.parse(data, "the quantized model")
    readers = [place for place in tflite_file.constants(model) if place.name in given]
    nodes = Nodes(model, subgraph(model))
    packed = {found.name: stored(nodes, found.name, found.encoded) for found in {given[place.name].name: given[place.name] for place in readers}.values()}
    looked_up, decoded = set(), {}
    for graph in model.subgraphs[:-1]:
        here = [place for place in readers if place.graph is graph]
        looked_up |= litert_lookups.rewrite(model, graph, {place.index: packed[given[place.name].name] for place in here})
        read_variables(model, graph, here)
    for name in dict.fromkeys(place.name for place in readers if is_read(place)):
        found = packed[given[name].name]
        if found.owner not in decoded:
            decoded[found.owner] = unpack(nodes, found.codes, found.factors, found.encoded.format, found.encoded.shape)
        assign(nodes, name, in_file(nodes, decoded[found.owner], given[name]))
    for owner in sorted(looked_up):
        for noun, place in packed[owner].factors.items():
            assign(nodes, f"{owner}/{noun}", place)
    nodes.graph.operators = nodes.operators
    call_once(model)
    tflite_file.empty_unused(model)
    return tflite_file.serialized(model)


def subgraph(model: Any) -> Any:
    graph = schema.SubGraphT()
    graph.name, graph.tensors, graph.operators, graph.inputs, graph.outputs = SUBGRAPH.encode(), [], [], [], []
    model.subgraphs.append(graph)
    return graph


def stored(nodes: Nodes, owner: str, encoded: Encoded) -> Packed:
    arrays = {noun: nodes.stored(f"{owner}/{noun}", *array) for noun, array in typed(to_arrays(encoded), encoded.format).items()}
    return Packed(owner, encoded, arrays["codes"], factors(nodes, arrays, encoded.format))


def in_file(nodes: Nodes, decoded: Place, given: Given) -> Place:
    """A canonical tensor in the axes and the shape in which a layer reads it."""
    return nodes.reshape(nodes.transpose(decoded, given.layout.order), given.layout.shape)


def assign(nodes: Nodes, name: str, value: Place) -> None:
    nodes.operator("ASSIGN_VARIABLE", [nodes.variable(name), value], [])


def is_read(place: Place) -> bool:
    return bool(tflite_file.consumers(place)) or place.index in place.graph.outputs


def read_variables(model: Any, graph: Any, places: list[Place]) -> None:
    nodes = Nodes(model, graph)
    for place in places:
        place.tensor.buffer = 0  # no longer a constant
        if is_read(place):
            nodes.operator("READ_VARIABLE", [nodes.variable(place.name)], [place])
    litert_products.rewrite(model, graph, {place.index for place in places})
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
    places = {} if graph is None else {place.name: place for i in range(len(graph.tensors)) if (place := Place(graph, i)).name}
    return {noun: tflite_file.values(model, places[f"{name}/{noun}"]) for noun in nouns}
