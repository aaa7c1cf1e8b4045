"""Matrix products whose weight is computed: XNNPACK takes them as BATCH_MATMUL, and as FULLY_CONNECTED only with constant weights.

LiteRT's built-in FULLY_CONNECTED is ten times slower than XNNPACK's from some ten rows on; for one row it is the faster one, as it packs nothing.
"""

from math import prod
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from exporters import tflite_file
from exporters.litert_nodes import Nodes
from exporters.tflite_file import Place

NONE = schema.ActivationFunctionType.NONE


def rewrite(model: Any, graph: Any, computed: set[int]) -> None:
    """Makes BATCH_MATMUL and ADD of every fully connected layer with a computed weight, by tensor index, and more than one row."""
    operators = []
    for operator in graph.operators or ():
        name = tflite_file.operator_name(model, operator)
        if name != "FULLY_CONNECTED" or operator.inputs[1] not in computed or rows(graph, operator) == 1:
            operators.append(operator)
            continue
        nodes = Nodes(model, graph)
        product(nodes, operator)
        operators += nodes.operators
    graph.operators = operators


def rows(graph: Any, operator: Any) -> int:
    return prod(Place(graph, operator.outputs[0]).shape[:-1])


def product(nodes: Nodes, operator: Any) -> None:
    given, weight = (Place(nodes.graph, i) for i in operator.inputs[:2])
    output, count = Place(nodes.graph, operator.outputs[0]), rows(nodes.graph, operator)
    found = nodes.made("BATCH_MATMUL", [nodes.reshape(given, (count, weight.shape[1])), weight], (count, weight.shape[0]), "float32", adjY=True)
    biased = len(operator.inputs) > 2 and operator.inputs[2] >= 0
    activation = operator.builtinOptions.fusedActivationFunction
    if biased or activation != NONE:
        bias = Place(nodes.graph, operator.inputs[2]) if biased else nodes.constant(np.zeros(1, np.float32))
        found = nodes.made("ADD", [found, bias], found.shape, "float32", fusedActivationFunction=activation)
    nodes.operator("RESHAPE", [found, nodes.integers(output.shape)], [output], newShape=list(output.shape))
