"""An ONNX network as a torch module, by onnx2torch: how it reaches the files that are made of PyTorch models."""

import importlib
import json
import re
import sys
from functools import cache
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import onnx
import onnx_ir as ir
import onnxscript.optimizer
import torch
from torch import nn

from compress.backends.onnx_fixed import FIXED, Fixed
from compress.backends.onnx_loading import first_line
from compress.backends.pytorch_network import PytorchNetwork, flatten
from compress.errors import MissingExtra, Refused
from compress.network import Network

DOMAIN = "compresskit"
OPSET = 17  # the last that onnx2torch 1.5 knows
TOLERANCE = 1e-4  # of the largest output: another order of sums
CONVERTED: WeakKeyDictionary[Network, PytorchNetwork] = WeakKeyDictionary()


def in_torch(network: Network) -> PytorchNetwork:
    """The network's graph in torch, with the same inputs. Refused names what onnx2torch cannot convert, or computes otherwise."""
    if network not in CONVERTED:
        CONVERTED[network] = convert(network)
    return CONVERTED[network]


def convert(network: Network) -> PytorchNetwork:
    onnx2torch = converter()
    register()
    model = network.model.clone(deep_copy=True)
    onnxscript.optimizer.optimize_ir(model)
    try:
        module = onnx2torch.convert(lowered(model))
    except Exception as error:  # each operator has its own
        unknown = re.search(r"operation_type='(\w+)'", str(error))
        reason = f"it does not know the operator {unknown[1]}" if unknown else first_line(error)
        raise Refused(f"onnx2torch cannot make a torch module of this .onnx file: {reason}; the exporter onnx needs none") from error
    module = module.eval().requires_grad_(False)
    check(module, network)
    return PytorchNetwork(module, network.inputs, example(network, np.zeros), ())


def lowered(model: ir.Model) -> onnx.ModelProto:
    """The model in onnx2torch's opset, operators with constant sizes, axes or indices as `Fixed` ones."""
    for node in model.graph:
        sizes = node.inputs[1].const_value if node.op_type == "Reshape" else None
        if sizes is not None and np.all(sizes.numpy()):
            node.attributes.pop("allowzero", None)  # torch.onnx always sets it; without a size of 0 it means nothing
    proto = onnx.version_converter.convert_version(ir.to_proto(model), OPSET)
    constants = {tensor.name: tensor for tensor in proto.graph.initializer if tensor.data_type == onnx.TensorProto.INT64}
    for node in proto.graph.node:
        given = list(filter(None, node.input[1:]))
        if node.op_type in FIXED and given and all(name in constants for name in given) and not attribute_of(node, "allowzero"):
            node.domain = DOMAIN
            values = [onnx.numpy_helper.to_array(constants[name]).tolist() for name in given]
            node.attribute.append(onnx.helper.make_attribute("given", json.dumps(values)))
            del node.input[1:]
    proto.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
    return proto


def attribute_of(node: onnx.NodeProto, name: str) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), 0)


@cache
def register() -> None:
    """Teaches onnx2torch the operators of `lowered`."""
    from onnx2torch.node_converters.registry import add_converter
    from onnx2torch.utils.common import OperationConverterResult, onnx_mapping_from_node

    def fixed(node: Any, graph: Any) -> Any:
        module = Fixed(node.operation_type, json.loads(node.attributes["given"]), node.attributes.get("axis", 0))
        return OperationConverterResult(torch_module=module, onnx_mapping=onnx_mapping_from_node(node))

    for name in FIXED:
        add_converter(operation_type=name, version=1, domain=DOMAIN)(fixed)


def check(module: nn.Module, network: Network) -> None:
    """Refused where the module does not compute what ONNX Runtime does, on noise."""
    dice = np.random.default_rng(0)
    sample = example(network, lambda shape: np.abs(dice.standard_normal(shape)))
    try:
        with torch.no_grad():
            found = [tensor.float().numpy() for tensor in flatten(module(*sample))]
    except Exception as error:
        raise Refused(f"onnx2torch's module of this .onnx file does not run: {first_line(error)}; the exporter onnx needs none") from error
    wanted = network.run({spec.name: tensor.numpy() for spec, tensor in zip(network.inputs, sample, strict=True)})
    same = len(found) == len(wanted) and all(
        a.shape == b.shape and np.allclose(a, b, rtol=0, atol=TOLERANCE * np.abs(b).max(initial=0), equal_nan=True) for a, b in zip(found, wanted, strict=True)
    )
    if not same:
        raise Refused("onnx2torch's module of this .onnx file computes something else than ONNX Runtime does; the exporter onnx needs none")


def example(network: Network, values: Any) -> tuple[torch.Tensor, ...]:
    return tuple(torch.from_numpy(np.asarray(values(spec.shape)).astype(spec.dtype)) for spec in network.inputs)


def converter() -> Any:
    """onnx2torch, also where torchvision is missing, which it needs for NonMaxSuppression and RoiAlign alone: those fail then."""
    absent = [name for name in ("torchvision", "torchvision.ops") if importlib.util.find_spec("torchvision") is None and name not in sys.modules]
    for name in absent:
        sys.modules[name] = ModuleType(name)
        sys.modules[name].ops = sys.modules[name].roi_align = None
    try:
        return importlib.import_module("onnx2torch")
    except ModuleNotFoundError as error:
        raise MissingExtra("an .onnx file becomes a torch module by onnx2torch, which is not installed: pip install --no-deps onnx2torch") from error
    finally:
        for name in absent:
            del sys.modules[name]
