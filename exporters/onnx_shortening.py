"""Makes an ONNX file smaller without a change to what it computes: what decodes weights takes short names, equal shapes are stored once."""

from collections.abc import Iterable, Mapping
from itertools import count

import onnx

from exporters.onnx_file import every_node


def shorten(graph: onnx.GraphProto, owners: Iterable[str], kept: set[str]) -> None:
    """Changes the graph in place. `owners` are the tensors whose nodes, all named "owner/...", are renamed; `kept` are constants that keep their names.

    Shapes of intermediate tensors go as well: every runtime infers them.
    """
    ours = tuple(f"{name}/" for name in owners)
    taken = {name for node in every_node(graph) for name in (*node.input, *node.output)} | {tensor.name for tensor in graph.initializer}
    fresh = (name for number in count() if (name := f"w{number}") not in taken)
    outputs = {value.name for value in graph.output}
    renamed = {name: next(fresh) for node in graph.node for name in node.output if name.startswith(ours) and name not in outputs}
    renamed |= merged(graph, ours, kept | outputs, fresh)
    for node in graph.node:
        if node.name.startswith(ours):
            node.name = ""
    for node in every_node(graph):
        rename(node.input, renamed)
        rename(node.output, renamed)
    del graph.value_info[:]


def merged(graph: onnx.GraphProto, ours: tuple[str, ...], kept: set[str], fresh: Iterable[str]) -> dict[str, str]:
    """New names of the shapes and positions that our nodes read; of equal ones the graph keeps one."""
    renamed: dict[str, str] = {}
    first: dict[tuple, str] = {}
    others = []
    for tensor in graph.initializer:
        if tensor.data_type != onnx.TensorProto.INT64 or tensor.name in kept or not tensor.name.startswith(ours):
            others.append(tensor)
            continue
        content = tuple(tensor.dims), onnx.numpy_helper.to_array(tensor).tobytes()
        if content not in first:
            first[content] = next(fresh)
            others.append(tensor)
        renamed[tensor.name] = first[content]
        tensor.name = first[content]
    if len(others) < len(graph.initializer):
        whole = onnx.GraphProto(initializer=others)
        del graph.initializer[:]
        graph.initializer.MergeFrom(whole.initializer)
    return renamed


def rename(names, renamed: Mapping[str, str]) -> None:
    for position, name in enumerate(names):
        names[position] = renamed.get(name, name)
