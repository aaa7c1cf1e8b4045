"""Undoes what a converter folded into a weight: y = (f w) x + f b becomes y = f (w x + b), so that the file holds w itself."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from compress.network import Weight
from exporters import tflite_file
from exporters.litert_matching import Layout, orders

BIAS_INPUT = {"FULLY_CONNECTED": 2, "CONV_2D": 2, "DEPTHWISE_CONV_2D": 2, "TRANSPOSE_CONV": 3}
TOLERANCE = 1e-5


def unfold(model: Any, weights: Mapping[str, Weight]) -> dict[str, tuple[Layout, ...]]:
    """Finds weights that the file holds times a factor for each output channel, and gives them back their own values, in place."""
    found = {}
    for name, weight in weights.items():
        for place, layout, factor in scaled(model, weight.value):
            if unscale(model, place, layout.to_file(weight.value), factor):
                found[name] = (*found.get(name, ()), layout)
    return found


def flatten_biases(model: Any) -> bool:
    """Gives every constant bias one axis, in place; whether there was anything to do. The converter leaves [1, n] where it folded an addition."""
    changed = False
    for graph in model.subgraphs:
        for operator in graph.operators:
            position = BIAS_INPUT.get(tflite_file.operator_name(model, operator), len(operator.inputs))
            if position < len(operator.inputs) and operator.inputs[position] >= 0:
                bias = tflite_file.Place(graph, operator.inputs[position])
                if len(bias.shape) != 1:
                    bias.tensor.shape = [int(np.prod(bias.shape))]
                    changed = True
    return changed


def scaled(model: Any, value: np.ndarray) -> Iterable[tuple[tflite_file.Place, Layout, np.ndarray]]:
    """Constants that equal `value` times one factor for each output channel, with the factors [out]."""
    rows = value.reshape(value.shape[0], -1)
    norms = np.einsum("oi,oi->o", rows, rows, dtype=np.float64)
    if rows.shape[1] < 2 or not norms.all():
        return  # any row is a multiple of any other
    for place in tflite_file.constants(model):
        if place.dtype != "float32" or np.prod(place.shape) != value.size:
            continue
        stored = tflite_file.values(model, place)
        for order in orders(value.shape, stored.shape):
            layout = Layout(place.name, place.shape, order, value.shape)
            theirs = layout.to_canonical(stored).reshape(rows.shape)
            factor = (np.einsum("oi,oi->o", rows, theirs, dtype=np.float64) / norms).astype(np.float32)
            if factor.all() and np.allclose(theirs, rows * factor[:, None], rtol=TOLERANCE, atol=TOLERANCE * float(np.abs(theirs).max())):
                yield place, layout, factor
                break


def unscale(model: Any, place: tflite_file.Place, value: np.ndarray, factor: np.ndarray) -> bool:
    """Puts `value` into the file and a MUL by the factors behind every operator that reads it; False, and no change, where one has no such form."""
    readers = tflite_file.consumers(place)
    if not readers or any(tflite_file.operator_name(model, operator) not in BIAS_INPUT for operator in readers):
        return False
    uniform = np.allclose(factor, factor[0], rtol=TOLERANCE, atol=0)
    factors = np.asarray(factor[0] if uniform else factor, np.float32)
    place.tensor.buffer = tflite_file.add_buffer(model, value.astype(np.float32))
    for operator in readers:
        divide_bias(model, place.graph, operator, factor)
        multiply_output(model, place.graph, operator, factors)
    return True


def divide_bias(model: Any, graph: Any, operator: Any, factor: np.ndarray) -> None:
    position = BIAS_INPUT[tflite_file.operator_name(model, operator)]
    if len(operator.inputs) <= position or operator.inputs[position] < 0:
        return
    bias = tflite_file.Place(graph, operator.inputs[position])
    values = (tflite_file.values(model, bias).ravel() / factor).astype(np.float32)
    operator.inputs[position] = tflite_file.add_tensor(graph, f"{bias.name}_unscaled{len(graph.tensors)}", values.shape, tflite_file.add_buffer(model, values))


def multiply_output(model: Any, graph: Any, operator: Any, factors: np.ndarray) -> None:
    """Inserts MUL behind an operator; a fused activation moves to it."""
    output = tflite_file.Place(graph, operator.outputs[0])
    constant = tflite_file.add_tensor(graph, f"{output.name}_factor", factors.shape, tflite_file.add_buffer(model, factors))
    between = tflite_file.add_tensor(graph, f"{output.name}_unscaled", output.shape, 0)
    multiply, options = schema.OperatorT(), schema.MulOptionsT()
    options.fusedActivationFunction = operator.builtinOptions.fusedActivationFunction
    operator.builtinOptions.fusedActivationFunction = schema.ActivationFunctionType.NONE
    multiply.opcodeIndex = tflite_file.operator_code(model, "MUL")
    multiply.builtinOptionsType, multiply.builtinOptions = schema.BuiltinOptions.MulOptions, options
    multiply.inputs, multiply.outputs = [between, constant], [output.index]
    operator.outputs = [between]
    graph.operators.insert(graph.operators.index(operator) + 1, multiply)
