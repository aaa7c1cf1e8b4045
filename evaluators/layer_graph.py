"""Which tensor of a file's graph is a layer's output: one rule for every runtime's graph, so that two files show the same tensors."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

INTEGER_PRODUCTS = re.compile(r"(MatMul|Conv)Integer$|_int_mm")
SCALINGS = re.compile(r"^Mul$|aten\.mul\b", re.IGNORECASE)
LOOKUPS = re.compile(r"^Gather$|embedding", re.IGNORECASE)


@dataclass(frozen=True)
class Operator:
    """One operator of a graph; tensors have names that are unique there. Where it makes a tuple, it has several outputs."""

    kind: str  # in the runtime's words
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def layer_outputs(operators: Sequence[Operator], constants: Iterable[str], weights: Mapping[str, str]) -> dict[str, str]:
    """The tensor that holds each layer's output by the layer's name, in the order of computation.

    That is what the first operator gives that reads the layer's weight beside something computed, followed through operators that alone read it, add
    only constants to it (a bias, scales, rounding to codes and back, an activation function) and belong to no other layer. An integer product is
    followed through the product with the scale of its activations, and rows that are looked up through what is looked up for them alone.

    operators  in the order in which they run
    constants  tensors that no operator computes
    weights    the layer of every constant that holds a weight
    """
    graph = Graph(weights, {name: {weights[name]} if name in weights else set() for name in constants})
    for operator in operators:
        graph.add(operator)
    return {layer: graph.end(operator) for layer, operator in graph.first.items()}


class Graph:
    """What an operator's inputs come from, and who reads its outputs."""

    def __init__(self, weights: Mapping[str, str], fixed: dict[str, set[str]]):
        self.weights, self.fixed = weights, fixed  # of every constant, and of what follows from constants alone, the layers that it belongs to
        self.readers: dict[str, list[Operator]] = defaultdict(list)
        self.makers: dict[str, Operator] = {}
        self.first: dict[str, Operator] = {}  # that reads a layer's weight beside something computed

    def add(self, operator: Operator) -> None:
        for name in set(operator.inputs):
            self.readers[name].append(operator)
        self.makers |= dict.fromkeys(operator.outputs, operator)
        layers = set().union(*(self.fixed[name] for name in operator.inputs if name in self.fixed))
        if all(name in self.fixed for name in operator.inputs):
            self.fixed |= {name: layers | ({self.weights[name]} if name in self.weights else set()) for name in operator.outputs}
            return
        for layer in sorted(layers):
            self.first.setdefault(layer, operator)

    def end(self, first: Operator) -> str:
        """The last tensor that is the layer's own."""
        operator, unscaled = first, bool(INTEGER_PRODUCTS.search(first.kind))
        while True:
            name, following = operator.outputs[0], self.readers[operator.outputs[0]]
            if len(following) != 1 or len(following[0].outputs) != 1:
                return name
            operator = following[0]
            others = [other for other in operator.inputs if other != name]
            if any(self.fixed.get(other) for other in others):
                return name
            if not all(other in self.fixed or self.looked_up_for(first, other) for other in others):
                if not (unscaled and SCALINGS.search(operator.kind)):
                    return name
                unscaled = False

    def looked_up_for(self, first: Operator, name: str) -> bool:
        """Whether a tensor follows from constants of no layer and from the indices of a lookup alone, as the scales of its rows do."""
        if not LOOKUPS.search(first.kind):
            return False
        if name in self.fixed:
            return not self.fixed[name]
        maker = self.makers.get(name)
        return name in first.inputs or (maker is not None and maker is not first and all(self.looked_up_for(first, given) for given in maker.inputs))
