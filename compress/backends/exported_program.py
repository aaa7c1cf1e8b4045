"""Programs of torch.export as PyTorch models: the layers of their flat graph are modules again, so that recipes know them."""

import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from compress.backends.archives import check_archive
from compress.errors import InputError

aten = torch.ops.aten
TRUST = "if you trust the file, name a function that returns torch.export.load(path)"
STORED = ("weight_", "tensor_")  # what raw tensors of an archive are called
SYMBOL = re.compile(r"[A-Za-z_]\w*")
KNOWN_SYMBOL = re.compile(
    r"(s|u|zuf)\d+|Symbol|Integer|Rational|Add|Mul|Pow|Max|Min|(Python)?Mod|(Floor|Clean|Ceil)Div|ModularIndexing|positive|nonnegative|integer|True"
)


def load(path: Path) -> torch.export.ExportedProgram:
    """The program of a .pt2 file, without unpickling anything. InputError for files that hold pickles or compiled code."""
    check_archive(path)
    try:
        with zipfile.ZipFile(path) as archive:
            reason = next(dangers(archive), None)
        if reason is None:
            return torch.export.load(path)
    except Exception as error:  # torch's readers have no class of their own
        raise InputError(f"{path} cannot be opened as a program of torch.export: {' '.join(str(error).split())[:300]}") from error
    raise InputError(f"{path} {reason}: save it again with torch.export.save, or {TRUST}")


def dangers(archive: zipfile.ZipFile) -> Iterator[str]:
    """Why torch.export.load would run code of this archive."""
    names = {name.partition("/")[2]: name for name in archive.namelist()}
    if "models/model.json" not in names or "archive_format" not in names:
        yield "is not an archive that torch 2.8 or later wrote, and older ones are pickles"
        return
    if any(name.startswith("data/aotinductor/") for name in names):
        yield "holds compiled code"
    for name, member in names.items():
        if name.startswith(("data/weights/", "data/constants/")) and name.endswith(".pt"):
            yield "holds pickled weights"
        if name.startswith(("data/weights/", "data/constants/")) and name.endswith("_config.json"):
            entries = json.loads(archive.read(member))["config"].values()
            if any(entry["use_pickle"] or not entry["path_name"].startswith(STORED) for entry in entries):
                yield "holds pickled tensors or objects"
        if name.startswith("data/sample_inputs/") and not is_plain(archive.read(member)):
            yield "holds pickled example inputs that are no tensors"
        if name.startswith("models/") and not all(map(is_expression, expressions(json.loads(archive.read(member))))):
            yield "holds sizes that are no arithmetic"


def is_plain(data: bytes) -> bool:
    """Whether torch's restricted unpickler takes these bytes."""
    try:
        return not data or torch.load(io.BytesIO(data), weights_only=True) is not None
    except Exception:  # whatever is wrong with it, torch.export.load would go on with the unrestricted one
        return False


def expressions(node: Any) -> Iterator[str]:
    """Symbolic sizes, which torch gives to sympy, which gives them to eval."""
    if isinstance(node, dict):
        if isinstance(node.get("expr_str"), str):
            yield node["expr_str"]
        for child in node.values():
            yield from expressions(child)
    elif isinstance(node, list):
        for child in node:
            yield from expressions(child)


def is_expression(text: str) -> bool:
    return re.fullmatch(r"[\w\s+\-*/(),='\"]*", text) is not None and all(KNOWN_SYMBOL.fullmatch(name) for name in SYMBOL.findall(text))


def example(program: torch.export.ExportedProgram) -> dict[str, np.ndarray] | None:
    """One sample of zeros in the shapes that the program was exported with; None where it leaves axes besides the batch open. InputError for larger batches."""
    taken = set(program.graph_signature.user_inputs)
    found = {}
    for node in program.graph.find_nodes(op="placeholder"):
        if node.name not in taken or not isinstance(node.meta.get("val"), torch.Tensor):
            continue
        value = node.meta["val"]
        batch, *rest = value.shape or (0,)
        if isinstance(batch, int) and batch != 1:
            raise InputError(
                f"input {node.name} {list(value.shape)} has no batch axis that takes one sample: export the program with a batch of 1, or an open one"
            )
        if not all(isinstance(size, int) for size in rest):
            return None
        found[node.name] = torch.zeros((1, *rest), dtype=value.dtype).numpy()
    return found


def layered(program: torch.export.ExportedProgram) -> nn.Module:
    """The program as a module of positional tensors, its linear layers, convolutions, embeddings and batch norms under their own names."""
    flat = program.module(check_guards=False)
    graph, root = flat.graph, nn.Module()
    output = next(node for node in graph.nodes if node.op == "output")
    output.args = (tuple(node for node in torch.utils._pytree.tree_leaves(output.args[0]) if isinstance(node, fx.Node)),)
    graph.set_codegen(fx.graph.CodeGen())
    for node in list(graph.nodes):
        build = LAYERS.get(node.target)
        if build is not None:
            insert(flat, root, node, build)
    for node in graph.find_nodes(op="get_attr"):
        if node.users:
            put(root, node.target, value_of(flat, node))
        else:
            graph.erase_node(node)
    return fx.GraphModule(root, graph, "ExportedProgram")


def value_of(flat: nn.Module, node: Any) -> Any:
    """A constant of the program, None for anything that is computed."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    for name in node.target.split("."):
        flat = getattr(flat, name)
    return flat


def put(root: nn.Module, path: str, value: Any) -> None:
    """Registers a parameter, tensor or module under its path."""
    *parents, leaf = path.split(".")
    for name in parents:
        if not hasattr(root, name):
            root.add_module(name, nn.Module())
        root = getattr(root, name)
    if isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter):
        root.register_buffer(leaf, value)
    else:
        setattr(root, leaf, value)


def insert(flat: nn.Module, root: nn.Module, node: fx.Node, build: Callable[..., tuple[nn.Module, Any]]) -> None:
    """Calls a module in the place of an operator whose weights are constants."""
    made = build(*(value_of(flat, argument) if isinstance(argument, fx.Node) and argument.op == "get_attr" else argument for argument in node.args))
    if made is None:
        return
    layer, x, weight = made
    name = next(argument.target for argument in node.args if value_of(flat, argument) is weight)
    path = free(root, re.sub(r"[._]?weight$", "", name) or "layer")
    put(root, path, layer)
    with node.graph.inserting_before(node):
        called = node.graph.create_node("call_module", path, (x,))
    called.meta = dict(node.meta)
    node.replace_all_uses_with(called)
    node.graph.erase_node(node)


def free(root: nn.Module, path: str) -> str:
    """The path, with a number where a layer is there already: tied weights."""
    taken = dict(root.named_modules())
    return next(name for name in (path, *(f"{path}_{i}" for i in range(1, len(taken) + 2))) if name not in taken)


def given(layer: nn.Module, **tensors: Any) -> nn.Module:
    """The layer with these tensors for its own."""
    for name, value in tensors.items():
        if name in layer._buffers:
            layer._buffers[name] = value
        else:
            layer.register_parameter(name, value if value is None or isinstance(value, nn.Parameter) else nn.Parameter(value, requires_grad=False))
    return layer


def linear(x: Any, weight: Any, bias: Any = None) -> Any:
    if not constant(weight, bias):
        return None
    return given(nn.Linear(*weight.shape[::-1], bias=bias is not None, device="meta"), weight=weight, bias=bias), x, weight


def convolution(x: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1) -> Any:
    if not constant(weight, bias):
        return None
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[weight.ndim - 3]
    settings = {"stride": many(stride), "padding": padding if isinstance(padding, str) else many(padding), "dilation": many(dilation), "groups": groups}
    layer = kind(weight.shape[1] * groups, weight.shape[0], tuple(weight.shape[2:]), bias=bias is not None, device="meta", **settings)
    return given(layer, weight=weight, bias=bias), x, weight


def transposed(x: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, more: Any = 0, groups: int = 1, dilation: Any = 1) -> Any:
    if not constant(weight, bias):
        return None
    kind = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[weight.ndim - 3]
    settings = {"stride": many(stride), "padding": many(padding), "output_padding": many(more), "dilation": many(dilation), "groups": groups}
    layer = kind(weight.shape[0], weight.shape[1] * groups, tuple(weight.shape[2:]), bias=bias is not None, device="meta", **settings)
    return given(layer, weight=weight, bias=bias), x, weight


def embedding(weight: Any, ids: Any, *rest: Any) -> Any:
    return (given(nn.Embedding(*weight.shape, device="meta"), weight=weight), ids, weight) if constant(weight) else None


def batch_norm(x: Any, weight: Any, bias: Any, mean: Any, variance: Any, training: bool, momentum: float, eps: float, *rest: Any) -> Any:
    if training or not constant(weight, bias) or not constant(mean, variance):
        return None
    kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[x.meta["val"].ndim]
    layer = kind(len(weight), eps, momentum, device="meta")
    return given(layer, weight=weight, bias=bias, running_mean=mean, running_var=variance, num_batches_tracked=torch.zeros((), dtype=torch.int64)), x, weight


def constant(weight: Any, bias: Any = None) -> bool:
    return isinstance(weight, torch.Tensor) and weight.is_floating_point() and (bias is None or isinstance(bias, torch.Tensor))


def many(sizes: Any) -> Any:
    return tuple(sizes) if isinstance(sizes, list | tuple) else sizes


LAYERS = {
    aten.linear.default: linear,
    **{op: convolution for name in ("conv1d", "conv2d", "conv3d") for op in (getattr(aten, name).default, getattr(aten, name).padding)},
    **{op: transposed for op in (aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)},
    aten.embedding.default: embedding,
    aten.batch_norm.default: batch_norm,
}
