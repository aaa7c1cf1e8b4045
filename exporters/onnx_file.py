"""What an .onnx file holds, whoever wrote it."""

import json
from collections import Counter
from math import prod
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, numpy_helper

from compress.artifact import Contents, StoredTensor
from compress.errors import BrokenFile
from compress.network import InputSpec
from compress.numerics import unpack_low_first
from exporters import METADATA_KEY

BITS = {"int4": 4, "uint4": 4, "int2": 2, "uint2": 2, "float4e2m1": 4}
MOVING = ("Transpose", "Reshape", "Slice", "Cast", "Identity")
INTEGER = {"QLinearConv", "QLinearMatMul", "MatMulInteger", "ConvInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QGemm"}
INTEGER |= {"MatMulNBits", "MatMulBnb4"}


def read(path: Path) -> Contents:
    """Constants, operators and inputs of a file. BrokenFile for one that is damaged or empty."""
    model = load(path)
    told = metadata(model, path)
    constants = {tensor.name: tensor for tensor in every_constant(model.graph)}
    given = [value for value in model.graph.input if value.name not in constants]
    own, taken = stored_tensors(told, constants, path)
    readers = readers_of(model.graph)
    others = {name: (tensor, readers.get(name, set())) for name, tensor in constants.items() if name not in taken}
    rest = tuple(plain(*pair) for pair in others.values() if is_data(*pair))
    names = [name for name, _, _ in told.get("inputs", [])]
    if len(names) != len(given):
        names = [value.name for value in given]
    return Contents(
        "onnx",
        tuple(spec(value, name) for value, name in zip(given, names, strict=True)),
        tuple(spec(value, value.name) for value in model.graph.output),
        own + rest,
        dict(Counter(node.op_type for node in every_node(model.graph))),
        told,
        len({node.input[1] for node in every_node(model.graph) if node.op_type == "QuantizeLinear" and node.input[1] in constants}),
    )


def load(path: Path) -> onnx.ModelProto:
    try:
        model = onnx.load(str(path), load_external_data=False)
    except (DecodeError, ValueError) as error:
        raise BrokenFile(f"{path.name} is not a whole ONNX file: {error}") from error
    if not model.HasField("graph") or not model.opset_import:
        raise BrokenFile(f"{path.name} holds no ONNX graph")
    return model


def metadata(model: onnx.ModelProto, path: Path) -> dict:
    text = next((entry.value for entry in model.metadata_props if entry.key == METADATA_KEY), None)
    if text is None:
        return {}
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise BrokenFile(f"{path.name}: its compresskit metadata is not JSON: {error}") from error


def every_node(graph: onnx.GraphProto):
    """Nodes of a graph and of the branches and loop bodies inside it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in [attribute.g, *attribute.graphs] if attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) else []:
                yield from every_node(inner)


def every_constant(graph: onnx.GraphProto):
    """Initializers and Constant nodes, those inside branches and loop bodies included."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.type == onnx.AttributeProto.TENSOR:
                tensor = onnx.TensorProto()
                tensor.CopyFrom(attribute.t)
                tensor.name = node.output[0]
                yield tensor
            for inner in [attribute.g, *attribute.graphs] if attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) else []:
                yield from every_constant(inner)


def spec(value: onnx.ValueInfoProto, name: str) -> InputSpec:
    kind = value.type.tensor_type
    shape = tuple(axis.dim_value if axis.HasField("dim_value") else -1 for axis in kind.shape.dim)
    return InputSpec(name, shape, dtype_name(kind.elem_type), value.name)


def dtype_name(code: int) -> str:
    """NumPy's name of an ONNX type."""
    if code == TensorProto.UNDEFINED:
        return "unknown"
    return {"float": "float32", "double": "float64"}.get(name := TensorProto.DataType.Name(code).lower(), name)


def byte_size(tensor: TensorProto) -> int:
    """Bytes of the values as stored, whether raw or in typed fields."""
    if tensor.data_location == TensorProto.EXTERNAL:
        return 0
    if tensor.raw_data:
        return len(tensor.raw_data)
    name, count = dtype_name(tensor.data_type), prod(tensor.dims)
    if name == "string":
        return sum(map(len, tensor.string_data))
    return -(-count * BITS[name] // 8) if name in BITS else count * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize


def readers_of(graph: onnx.GraphProto) -> dict[str, set[str]]:
    """Operators that read a constant, seen through what only moves or casts it."""
    readers: dict[str, set[str]] = {}
    through: dict[str, str] = {}
    for node in every_node(graph):
        for name in node.input:
            readers.setdefault(name, set()).add(node.op_type)
        if node.op_type in MOVING:
            through[node.input[0]] = node.output[0]
    for name in readers:
        ahead = name
        while ahead in through:
            ahead = through[ahead]
        readers[name] = readers[name] | readers.get(ahead, set())
    return readers


def is_data(tensor: TensorProto, readers: set[str]) -> bool:
    """False for shapes, indices, flags and single numbers: they belong to the graph. int32 counts where it is a quantized bias."""
    name = dtype_name(tensor.data_type)
    integers = name in ("int64", "bool", "string", "uint64") or name == "int32" and not readers & {"DequantizeLinear", "QLinearConv"}
    return prod(tensor.dims) > 1 and not integers


def plain(tensor: TensorProto, readers: set[str]) -> StoredTensor:
    """A constant that no plan names: narrow types count as native where an integer operator reads them, else as decoded."""
    dtype = dtype_name(tensor.data_type)
    narrow = dtype in BITS or dtype in ("int8", "uint8", "int16", "uint16", "int32", "float16", "bfloat16") or dtype.startswith("float8")
    placement = "float" if not narrow else "native" if readers & INTEGER or dtype == "int32" else "decoded"
    return StoredTensor(tensor.name, tensor.name, tuple(tensor.dims), dtype, placement, payload_bytes=byte_size(tensor))


def stored_tensors(told: dict, constants: dict[str, TensorProto], path: Path) -> tuple[tuple[StoredTensor, ...], set[str]]:
    """The plan's tensors, and the names of all constants that belong to them."""
    found, taken = [], set()
    for name, about in told.get("tensors", {}).items():
        names = [*about.get("constants", {}).values()] or [about["file_name"]]
        missing = [n for n in names if n and n not in constants]
        if missing:
            raise BrokenFile(f"{path.name}: {name} should be in {', '.join(missing)}, which the file does not have")
        taken.update(names)
        found.append(compressed(name, about, constants) if "constants" in about else in_float(name, about, constants))
    return tuple(found), taken


def in_float(name: str, about: dict, constants: dict[str, TensorProto]) -> StoredTensor:
    if not about["file_name"]:  # the graph does not use it
        return StoredTensor(name, "", (), "none", "float", about["reason"])
    tensor = constants[about["file_name"]]
    return StoredTensor(name, tensor.name, tuple(tensor.dims), dtype_name(tensor.data_type), "float", about["reason"], byte_size(tensor))


def compressed(name: str, about: dict, constants: dict[str, TensorProto]) -> StoredTensor:
    parts = {role: constants[file_name] for role, file_name in about["constants"].items()}
    arrays = {role: numpy_helper.to_array(tensor) for role, tensor in parts.items()}
    shape, fmt = tuple(about["shape"]), about["format"]
    sizes = {role: byte_size(tensor) for role, tensor in parts.items()}
    if fmt["type"] == "float":
        numbers = {"codes": arrays["codes"] if fmt["dtype"] == "float16" else arrays["codes"].view(np.uint16)}
    else:
        narrow = np.int16 if fmt["bits"] == 16 else np.int8
        codes = unpacked(arrays["blocks"], fmt["bits"], shape) if "blocks" in arrays else arrays["codes"].astype(narrow)
        zero = zero_points(arrays, fmt["bits"], tuple(about["scale_shape"]))
        numbers = {"codes": codes, "scales": arrays["scales"].astype(np.float32), "zero_points": zero}
    return StoredTensor(
        name,
        about["file_name"],
        shape,
        fmt["dtype"] if fmt["type"] == "float" else f"int{fmt['bits']}",
        about["placement"],
        about["reason"],
        sizes.get("codes", 0) + sizes.get("blocks", 0),
        sizes.get("scales", 0) + sizes.get("kernel_scales", 0),
        sizes.get("zero_points", 0) + sizes.get("block_zero_points", 0),
        **numbers,
    )


def unpacked(packed: np.ndarray, bits: int, shape: tuple[int, ...]) -> np.ndarray:
    """int8 codes in canonical shape from MatMulNBits's uint8 [rows, blocks, bytes]."""
    rows = unpack_low_first(packed, bits, packed.size * 8 // bits, signed=False).reshape(len(packed), -1)[:, : prod(shape[1:])]
    return (rows.astype(np.int16) - (1 << (bits - 1))).astype(np.int8).reshape(shape)


def zero_points(arrays: dict[str, np.ndarray], bits: int, scale_shape: tuple[int, ...]) -> np.ndarray | None:
    """int32 in the shape of the scales; None where the format is symmetric."""
    if "zero_points" in arrays:
        return arrays["zero_points"].astype(np.int32)
    if "block_zero_points" not in arrays:
        return None
    packed = arrays["block_zero_points"]
    rows = unpack_low_first(packed, bits, packed.size * 8 // bits, signed=False).reshape(len(packed), -1).astype(np.int32) - (1 << (bits - 1))
    if not scale_shape:
        return rows[0, 0]
    blocks = arrays["blocks"].shape[1]
    columns = scale_shape[1] if len(scale_shape) == 2 else 1
    return rows[:, : blocks : blocks // columns].reshape(scale_shape)
