"""Undoes what a converter folded into a weight, so that the file holds the weight itself.

Scales behind and in front of a layer, as attention's 1 / sqrt(d) and a layer norm's gamma, end up in its weight as w'[o, i] = f[o] w[o, i] g[i].
The file then computes f (w (g x) + b / f) instead: the model's own operations, in another order. A vector added in front of a linear layer, as a
layer norm's beta, ends up in its bias as w c + b, with the float weight: it has to come out as well, since the file is going to hold another w.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from compress.network import Weight
from exporters import tflite_file
from exporters.litert_matching import Layout, orders

BIAS_INPUT = {"FULLY_CONNECTED": 2, "CONV_2D": 2, "DEPTHWISE_CONV_2D": 2, "TRANSPOSE_CONV": 3}
TOLERANCE = 1e-5  # relative: the converter multiplied in float32
SAMPLED = 97  # minors
ITERATIONS = 20


@dataclass(frozen=True, eq=False)
class Scaled:
    """A constant that holds a weight times factors for its outputs [out] and its inputs [in]."""

    place: tflite_file.Place
    layout: Layout
    outputs: np.ndarray
    inputs: np.ndarray


def unfold(model: Any, weights: Mapping[str, Weight], taken: Iterable[str]) -> dict[str, tuple[Layout, ...]]:
    """Finds weights that the file holds scaled, and gives them back their own values, in place. `taken` are constants that hold other weights."""
    taken, found = set(taken), {}
    for name, weight in weights.items():
        for scaled in candidates(model, weight.value, taken):
            if unscale(model, scaled, scaled.layout.to_file(weight.value)):
                found[name] = (*found.get(name, ()), scaled.layout)
                taken.add(scaled.place.name)
    return found


def flatten_biases(model: Any) -> None:
    """Gives every constant bias one axis, in place. The converter leaves [1, n] where it folded an addition."""
    for graph in model.subgraphs:
        for operator in graph.operators:
            position = BIAS_INPUT.get(tflite_file.operator_name(model, operator), len(operator.inputs))
            if position < len(operator.inputs) and operator.inputs[position] >= 0:
                bias = tflite_file.Place(graph, operator.inputs[position])
                if len(bias.shape) != 1:
                    bias.tensor.shape = [int(np.prod(bias.shape))]


def candidates(model: Any, value: np.ndarray, taken: set[str]) -> Iterable[Scaled]:
    """Constants that equal `value` but for factors of its outputs and, in a linear layer, of its inputs."""
    rows = value.reshape(value.shape[0], -1)
    if rows.shape[1] < 2 or not np.abs(rows).sum(1).all():
        return  # any row is a multiple of any other
    for place in tflite_file.constants(model):
        if place.dtype != "float32" or np.prod(place.shape) != value.size or place.name in taken:
            continue
        stored = tflite_file.values(model, place)
        for order in orders(value.shape, place.shape):
            layout = Layout(place.name, place.shape, order, value.shape)
            factors = rank_one(rows, layout.to_canonical(stored).reshape(rows.shape), with_inputs=value.ndim == 2)
            if factors is not None:
                yield Scaled(place, layout, *factors)
                break


def rank_one(rows: np.ndarray, theirs: np.ndarray, with_inputs: bool) -> tuple[np.ndarray, np.ndarray] | None:
    """Factors f [out] and g [in] with theirs = f rows g; None where there are none."""
    if not maybe_rank_one(rows, theirs):
        return None
    outputs, inputs = least_squares(rows, theirs), np.ones(rows.shape[1], np.float32)
    if with_inputs:
        for _ in range(ITERATIONS):
            before, inputs = outputs, least_squares((rows * outputs[:, None]).T, theirs.T)
            outputs = least_squares(rows * inputs, theirs)
            if np.allclose(outputs, before, rtol=1e-6, atol=0):  # float32 tells no more apart
                break
    fits = outputs.all() and equal(theirs, rows * outputs[:, None] * inputs)
    return (outputs, inputs) if fits else None


def maybe_rank_one(rows: np.ndarray, theirs: np.ndarray) -> bool:
    """Whether a sample of 2 x 2 minors of the ratio theirs / rows vanishes: cheap, and false for two unrelated weights."""
    rng = np.random.default_rng(0)
    o, p = rng.integers(0, rows.shape[0], (2, SAMPLED))
    i, j = rng.integers(0, rows.shape[1], (2, SAMPLED))
    left, right = theirs[o, i] * theirs[p, j] * rows[o, j] * rows[p, i], theirs[o, j] * theirs[p, i] * rows[o, i] * rows[p, j]
    return bool(np.median(np.abs(left - right)) <= 1e-3 * np.median(np.abs(left)))


def least_squares(rows: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """The factor of each row that brings `rows` nearest to `theirs`; 0 for a row of zeros."""
    norms = np.einsum("oi,oi->o", rows, rows, dtype=np.float64)
    return (np.einsum("oi,oi->o", rows, theirs, dtype=np.float64) / np.where(norms == 0, 1, norms)).astype(np.float32)


def equal(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE * float(np.abs(a).max())))


def proportion(a: np.ndarray, b: np.ndarray) -> float | None:
    """k with a = k b, or None."""
    k = float(a.ravel() @ b.ravel() / max(float(b.ravel() @ b.ravel()), np.finfo(np.float32).tiny))
    return k if k and equal(a, b * np.float32(k)) else None


def unscale(model: Any, scaled: Scaled, value: np.ndarray) -> bool:
    """Puts `value` into the file and MULs by the factors around every operator that reads it; False, and no change, where one has no such form."""
    place = scaled.place
    readers = tflite_file.consumers(place)
    plain = proportion(scaled.inputs, np.ones_like(scaled.inputs))
    allowed = BIAS_INPUT if plain else ("FULLY_CONNECTED",)
    if not readers or any(tflite_file.operator_name(model, operator) not in allowed for operator in readers):
        return False
    if not plain and any(tflite_file.Place(place.graph, operator.inputs[0]).shape[-1] != scaled.inputs.size for operator in readers):
        return False
    place.tensor.buffer = tflite_file.add_buffer(model, value.astype(np.float32))
    for operator in readers:
        outputs = scaled.outputs * np.float32(plain or multiply_input(model, place.graph, operator, scaled.inputs))
        if not equal(outputs, np.ones_like(outputs)):
            divide_bias(model, place.graph, operator, outputs)
            multiply_output(model, place.graph, operator, outputs)
    return True


def multiply_input(model: Any, graph: Any, operator: Any, factors: np.ndarray) -> float:
    """Lets a linear layer read its input times the factors; what is left to multiply where a MUL is there that gives a multiple of it."""
    for other, constant in earlier(model, graph, operator, "MUL"):
        rest = proportion(factors, constant) if constant.shape == factors.shape else None
        if rest:
            operator.inputs[0] = other.outputs[0]
            return rest
    insert_before(model, graph, operator, "MUL", factors)
    return 1.0


def restore_biases(model: Any, layers: Iterable[tuple[Layout, np.ndarray]], vectors: Iterable[np.ndarray]) -> frozenset[str]:
    """Undoes w c + b in the biases of linear layers, in place. c and b are among the network's own `vectors`, or c is one number.

    Returns the weights (by the file's names) whose bias is neither the network's own nor explained.
    """
    by_size = defaultdict(list)
    for vector in vectors:
        by_size[vector.size].append(vector)
    weights = {layout.file_name: value for layout, value in layers if value.ndim == 2}
    unclear = set()
    for graph in model.subgraphs:
        for operator in list(graph.operators):
            if tflite_file.operator_name(model, operator) != "FULLY_CONNECTED" or len(operator.inputs) < 3 or operator.inputs[2] < 0:
                continue
            name = tflite_file.Place(graph, operator.inputs[1]).name
            held = tflite_file.values(model, tflite_file.Place(graph, operator.inputs[2])).ravel()
            own = [np.zeros_like(held), *by_size[held.size]]
            if name not in weights or any(equal(held, b) for b in own):
                continue
            if not restore_bias(model, graph, operator, weights[name], held, own, by_size[weights[name].shape[1]]):
                unclear.add(name)
    return frozenset(unclear)


def restore_bias(model: Any, graph: Any, operator: Any, weight: np.ndarray, held: np.ndarray, own: list[np.ndarray], added: list[np.ndarray]) -> bool:
    """Gives one linear layer the b of `own` and the c of `added` with held = w c + b; False where there are none."""
    sizes = np.abs(weight)
    vectors = np.stack([*added, np.zeros(weight.shape[1], np.float32)])  # the last row is for one number
    through, size = vectors @ weight.T, np.abs(vectors) @ sizes.T
    for b in own:
        vectors[-1] = scalar(held - b, weight)
        through[-1], size[-1] = weight @ vectors[-1], sizes @ np.abs(vectors[-1])
        fits = np.all(np.abs(held - through - b) <= TOLERANCE * (size + np.abs(b)), axis=1)  # sums in float32 err by what they add up, not by their result
        if fits.any():
            name = f"{tflite_file.Place(graph, operator.inputs[2]).name}_own{len(graph.tensors)}"
            operator.inputs[2] = tflite_file.add_tensor(graph, name, b.shape, tflite_file.add_buffer(model, b))
            add_input(model, graph, operator, vectors[fits.argmax()].copy())
            return True
    return False


def scalar(through: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The vector of one number repeated that a weight brings nearest to `through`."""
    sums = weight.sum(1)
    return np.full(weight.shape[1], through @ sums / max(sums @ sums, np.finfo(np.float32).tiny), np.float32)


def add_input(model: Any, graph: Any, operator: Any, vector: np.ndarray) -> None:
    """Lets a linear layer read its input plus a vector, from an ADD that is there already or a new one."""
    for other, constant in earlier(model, graph, operator, "ADD"):
        if constant.shape == vector.shape and equal(constant, vector):
            operator.inputs[0] = other.outputs[0]
            return
    insert_before(model, graph, operator, "ADD", vector)


def earlier(model: Any, graph: Any, operator: Any, name: str) -> Iterable[tuple[Any, np.ndarray]]:
    """Operators that apply a float32 constant to what a linear layer reads, and run before it, with their constants."""
    given = operator.inputs[0]
    for other in graph.operators[: graph.operators.index(operator)]:
        if tflite_file.operator_name(model, other) == name and given in other.inputs and not other.builtinOptions.fusedActivationFunction:
            constant = tflite_file.Place(graph, next((i for i in other.inputs if i != given), given))
            if constant.dtype == "float32" and model.buffers[constant.tensor.buffer].data is not None:
                yield other, tflite_file.values(model, constant)


def insert_before(model: Any, graph: Any, operator: Any, name: str, vector: np.ndarray) -> None:
    source = tflite_file.Place(graph, operator.inputs[0])
    constant = tflite_file.add_tensor(graph, f"{source.name}_{name}{len(graph.tensors)}", vector.shape, tflite_file.add_buffer(model, vector))
    made = tflite_file.add_tensor(graph, f"{source.name}_{name}{len(graph.tensors)}", source.shape, 0)
    graph.operators.insert(graph.operators.index(operator), elementwise(model, name, source.index, constant, made))
    operator.inputs[0] = made


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
    factors = factors[:1].reshape(()) if proportion(factors, np.ones_like(factors)) else factors
    constant = tflite_file.add_tensor(graph, f"{output.name}_factor", factors.shape, tflite_file.add_buffer(model, factors))
    between = tflite_file.add_tensor(graph, f"{output.name}_unscaled", output.shape, 0)
    multiply = elementwise(model, "MUL", between, constant, output.index)
    multiply.builtinOptions.fusedActivationFunction = operator.builtinOptions.fusedActivationFunction
    operator.builtinOptions.fusedActivationFunction = schema.ActivationFunctionType.NONE
    operator.outputs = [between]
    graph.operators.insert(graph.operators.index(operator) + 1, multiply)


def elementwise(model: Any, name: str, tensor: int, constant: int, output: int) -> Any:
    """A new MUL or ADD."""
    operator = schema.OperatorT()
    operator.opcodeIndex = tflite_file.operator_code(model, name)
    operator.builtinOptionsType, operator.builtinOptions = {
        "MUL": (schema.BuiltinOptions.MulOptions, schema.MulOptionsT()),
        "ADD": (schema.BuiltinOptions.AddOptions, schema.AddOptionsT()),
    }[name]
    operator.inputs, operator.outputs = [tensor, constant], [output]
    return operator
