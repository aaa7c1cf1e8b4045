"""Lookups in packed tables: the rows that are asked for are decoded, at every run, and nothing else."""

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import Any

from compress.formats import FloatFormat, PerBlock, PerGroup, PerTensor
from exporters import tflite_file
from exporters.litert_nodes import Nodes
from exporters.litert_unpacking import Packed, unpack
from exporters.tflite_file import Place
from exporters.to_litert import rows_are_whole

INDICES = {"EMBEDDING_LOOKUP": 0, "GATHER": 1}  # input of the indices; the table is the other


def rewrite(model: Any, graph: Any, packed: Mapping[int, Packed]) -> set[str]:
    """Replaces the lookups in a graph of the given tables, by tensor index; the names of those whose factors they read."""
    done, operators = set(), []
    for operator in graph.operators or ():
        table = looked_up(model, graph, operator, packed)
        if table is None:
            operators.append(operator)
            continue
        nodes = Nodes(model, graph)
        lookup(nodes, table, Place(graph, operator.inputs[INDICES[tflite_file.operator_name(model, operator)]]), Place(graph, operator.outputs[0]))
        operators += nodes.operators
        done.add(table.owner)
    graph.operators = operators
    return done


def looked_up(model: Any, graph: Any, operator: Any, packed: Mapping[int, Packed]) -> Packed | None:
    """The table whose whole rows an operator picks; None for another operator, and for rows that do not lie in bytes and scales of their own."""
    name = tflite_file.operator_name(model, operator)
    found = packed.get(operator.inputs[1 - INDICES[name]]) if name in INDICES else None
    if found is None or (name == "GATHER" and (operator.builtinOptions.axis or operator.builtinOptions.batchDims)):
        return None
    place = Place(graph, operator.inputs[1 - INDICES[name]])
    return found if place.shape == found.encoded.shape and rows_are_whole(found.encoded.format, found.encoded.shape) else None


def lookup(nodes: Nodes, table: Packed, ids: Place, output: Place) -> None:
    rows, width = table.encoded.shape
    fmt, count = table.encoded.format, prod(ids.shape)
    ids = nodes.reshape(ids, (count,))
    codes = picked_codes(nodes, table.codes, rows, ids)
    factors = {noun: picked_factors(nodes, noun, place, table, ids) for noun, place in table.factors.items()}
    if not isinstance(fmt, FloatFormat) and isinstance(fmt.granularity, PerBlock):
        fmt = replace(fmt, granularity=PerGroup(fmt.granularity.size))
    found = unpack(nodes, codes, factors, fmt, (count, width))
    nodes.operator("RESHAPE", [found, nodes.integers(output.shape)], [output], newShape=list(output.shape))


def picked_codes(nodes: Nodes, codes: Place, rows: int, ids: Place) -> Place:
    """The packed codes of some rows: a gather of bytes, or of 16 bits whatever they mean (GATHER knows neither bfloat16 nor uint16)."""
    wide = codes.dtype in ("bfloat16", "uint16")
    shape = rows, prod(codes.shape) // rows
    table = nodes.shared("", shape, codes.tensor.buffer, "int16" if wide else codes.dtype)
    return nodes.bitcast(nodes.gather(table, ids), codes.dtype)


def picked_factors(nodes: Nodes, noun: str, place: Place, table: Packed, ids: Place) -> Place:
    """float32 factors of some rows, from the variable that holds those of all."""
    found, fmt = nodes.read(f"{table.owner}/{noun}", place.shape), table.encoded.format
    if isinstance(fmt.granularity, PerTensor) or (noun == "codebook" and not fmt.learned):
        return found
    rows = table.encoded.shape[0]
    return nodes.gather(nodes.reshape(found, (rows, prod(place.shape) // rows)), ids)
