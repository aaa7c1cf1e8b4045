"""Reading and rewriting an ONNX graph: which nodes compute with a weight, and a builder for new nodes."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from exporters.onnx_layouts import Layout

MICROSOFT = "com.microsoft"


@dataclass(frozen=True, eq=False)
class Use:
    """A node that computes with a weight. `rows` are the output channels that it sees, None where it sees them in no order that a kernel takes."""

    node: ir.Node
    rows: tuple[int, int] | None


def uses_of(value: ir.Value, layout: Layout, shape: tuple[int, ...]) -> list[Use]:
    """Every node that computes with an initializer, behind whatever only moves its values around. `shape` is the canonical one."""
    index = layout.apply(np.arange(int(np.prod(shape)), dtype=np.int32).reshape(shape))
    return [Use(node, rows_seen(node, slot, seen, shape)) for node, slot, seen in consumers(value, index)]


def consumers(value: ir.Value, index: np.ndarray) -> Iterator[tuple[ir.Node, int, np.ndarray]]:
    for node, slot in value.uses():
        moved = moved_by(node, index) if slot == 0 else None
        if moved is None:
            yield node, slot, index
        else:
            for output, part in zip(node.outputs, moved, strict=True):
                yield from consumers(output, part)


def moved_by(node: ir.Node, index: np.ndarray) -> list[np.ndarray] | None:
    """The outputs of a node that only moves values, or None for one that computes."""
    rest = [None if v is None or v.const_value is None else v.const_value.numpy() for v in node.inputs[1:]]
    if any(r is None for r in rest):
        return None
    if node.op_type == "Identity":
        return [index]
    if node.op_type == "Transpose":
        return [index.transpose(node.attributes["perm"].as_ints())]
    if node.op_type == "Reshape":
        return [index.reshape([index.shape[i] if n == 0 else int(n) for i, n in enumerate(rest[0])])]
    if node.op_type == "Split":
        axis, parts = attribute(node, "axis", 0), len(node.outputs)
        equal = -(-index.shape[axis] // parts)  # all but the last, which takes what is left
        sizes = rest[0] if rest else [equal] * (parts - 1)
        return np.split(index, np.cumsum(sizes)[: parts - 1], axis=axis)
    return None


def attribute(node: ir.Node, name: str, default):
    return node.attributes[name].value if name in node.attributes else default


def rows_seen(node: ir.Node, slot: int, index: np.ndarray, shape: tuple[int, ...]) -> tuple[int, int] | None:
    """The rows [start, stop) of the canonical tensor, where the node reads them in the layout that its kernels take."""
    if node.op_type == "MatMul" and slot == 1 and index.ndim == 2 or node.op_type == "Gemm" and slot == 1 and plain_gemm(node, index):
        index = index if attribute(node, "transB", 0) else index.T
    elif not (node.op_type == "Conv" and slot == 1 or node.op_type == "Gather" and slot == 0 and attribute(node, "axis", 0) == 0):
        return None
    if index.shape[1:] != shape[1:]:
        return None
    width = int(np.prod(shape[1:]))
    start = int(index.flat[0]) // width
    whole = np.array_equal(index.ravel(), np.arange(start * width, start * width + index.size))
    return (start, start + len(index)) if whole and (node.op_type in ("MatMul", "Gemm") or len(index) == shape[0]) else None


def plain_gemm(node: ir.Node, index: np.ndarray) -> bool:
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    outputs = index.shape[0 if attribute(node, "transB", 0) else 1]
    plain = attribute(node, "alpha", 1.0) == 1.0 and attribute(node, "beta", 1.0) == 1.0 and not attribute(node, "transA", 0)
    return plain and (bias is None or tuple(bias.shape or ()) == (outputs,))


class Builder:
    """Adds constants and nodes to a graph; `finish` puts them into order and drops what is no longer used."""

    def __init__(self, graph: ir.Graph):
        self.graph = graph
        self.common: dict[str, ir.Value] = {}
        self.names = {value.name for node in graph for value in node.outputs} | set(graph.initializers) | {value.name for value in graph.inputs}

    def fresh(self, name: str) -> str:
        candidate, number = name, 1
        while candidate in self.names:
            candidate, number = f"{name}_{number}", number + 1
        self.names.add(candidate)
        return candidate

    def constant(self, name: str, value: np.ndarray | ir.TensorProtocol) -> ir.Value:
        name = self.fresh(name)
        tensor = ir.tensor(value, name=name) if isinstance(value, np.ndarray | np.generic) else value
        tensor.name = name
        made = ir.val(name, tensor.dtype, tensor.shape, const_value=tensor)
        self.graph.register_initializer(made)
        return made

    def shared(self, name: str, value: np.ndarray | np.generic) -> ir.Value:
        """A constant that is the same wherever its name is asked for: once in a file."""
        if name not in self.common:
            self.common[name] = self.constant(name, value)
        return self.common[name]

    def integers(self, name: str, *numbers: int) -> ir.Value:
        return self.constant(name, np.array(numbers, np.int64))

    def node(self, op: str, inputs: list[ir.Value | None], name: str, domain: str = "", outputs: int = 1, **attributes):
        made = ir.node(op, inputs, attributes, domain=domain, num_outputs=outputs, name=self.fresh(f"{name}/{op}"))
        for output in made.outputs:
            output.name = self.fresh(name)
        self.graph.append(made)
        return made.outputs[0] if outputs == 1 else made.outputs

    def reshape(self, value: ir.Value, shape: tuple[int, ...], name: str) -> ir.Value:
        return self.node("Reshape", [value, self.integers(f"{name}_shape", *shape)], name)

    def cast(self, value: ir.Value, dtype: ir.DataType, name: str) -> ir.Value:
        return self.node("Cast", [value], name, to=int(dtype))

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        """Every consumer of `old` reads `new`; a graph output keeps its name."""
        if old.is_graph_output():
            name, shape, dtype = old.name, old.shape, old.dtype
            old.name = self.fresh(f"{name}_float")
            new.name, new.shape, new.type = name, shape, ir.TensorType(dtype)
        old.replace_all_uses_with(new, replace_graph_outputs=True)

    def finish(self, model: ir.Model) -> None:
        import onnx_ir.passes.common as passes

        self.graph.sort()
        model.graph.opset_imports.setdefault(MICROSOFT, 1)
        passes.RemoveUnusedNodesPass()(model)
        passes.RemoveUnusedOpsetsPass()(model)
