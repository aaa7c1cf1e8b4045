"""Which tensor of a file's graph is a layer's output: one rule for every runtime's graph, so that two files show the same tensors."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

INTEGER_PRODUCTS = re.compile(r"(MatMul|Conv)Integer$|_int_mm")
PRODUCTS_WITH_NUMBERS = re.compile(r"^Mul$|aten\.mul\b", re.IGNORECASE)


@dataclass(frozen=True)
class Operator:
    """One operator of a graph; tensors have names that are unique there. Where it makes a tuple, it has several outputs."""

    kind: str  # in the runtime's words
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def layer_outputs(operators: Sequence[Operator], constants: Iterable[str], weights: Mapping[str, str]) -> dict[str, str]:
    """The tensor that holds each layer's output by the layer's name, in the order of computation.

    That is what the first operator gives that reads the layer's weight beside something computed, followed through operators that alone read it, add
    only constants to it (a bias, scales, rounding to codes and back, an activation function) and belong to no other layer.

    operators  in the order in which they run
    constants  tensors that no operator computes
    weights    the layer of every constant that holds a weight
    """
    fixed = {name: {weights[name]} if name in weights else set() for name in constants}
    readers: dict[str, list[Operator]] = defaultdict(list)
    found: dict[str, Operator] = {}
    for operator in operators:
        for name in set(operator.inputs):
            readers[name].append(operator)
        layers = set().union(*(fixed[name] for name in operator.inputs if name in fixed))
        if all(name in fixed for name in operator.inputs):
            fixed |= {name: layers | ({weights[name]} if name in weights else set()) for name in operator.outputs}
            continue
        for layer in sorted(layers):
            found.setdefault(layer, operator)
    return {layer: end(operator, readers, fixed) for layer, operator in found.items()}


def end(operator: Operator, readers: Mapping[str, Sequence[Operator]], fixed: Mapping[str, set[str]]) -> str:
    """The last tensor that is the layer's own."""
    unscaled = bool(INTEGER_PRODUCTS.search(operator.kind))
    while True:
        (name, *_), following = operator.outputs, readers.get(operator.outputs[0], ())
        if len(following) != 1 or len(following[0].outputs) != 1:
            return name
        operator = following[0]
        others = [other for other in operator.inputs if other != name]
        if any(fixed.get(other) for other in others):
            return name
        if not all(other in fixed for other in others):
            if not (unscaled and PRODUCTS_WITH_NUMBERS.search(operator.kind)):
                return name
            unscaled = False  # an integer product times the scale of its activations
