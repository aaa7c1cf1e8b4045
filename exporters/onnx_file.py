"""What an .onnx file holds, whoever wrote it."""

import json
from collections import Counter
from math import prod
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, numpy_helper

from compress.artifact import Contents, StoredTensor, spread
from compress.errors import BrokenFile, RecipeError
from compress.formats import FloatFormat, Format, IntFormat
from compress.network import InputSpec
from compress.numerics.layouts import LAYOUTS
from compress.numerics.scaling import ScaleCodes
from compress.numerics.sparse import filled, from_mask
from compress.numerics.storing import FORMAT
from exporters import METADATA_KEY
from exporters import onnx_packing as packing

BITS = {"int4": 4, "uint4": 4, "int2": 2, "uint2": 2, "float4e2m1": 4}
MOVING = ("Transpose", "Reshape", "Slice", "Cast", "Identity")
INTEGER = {"QLinearConv", "QLinearMatMul", "MatMulInteger", "ConvInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QGemm"}
INTEGER |= {"MatMulNBits", "MatMulBnb4"}
CODES = ("codes", "mask", "blocks", "bnb4", "rows")  # the parts of a tensor, by what the ledger calls them; tables that all tensors share count for none
SCALES = ("scales", "kernel_scales", "global_scale", "scale_codes", "scale_factors", "scale_offset", "codebook", "codebook_scales", "levels")
ZERO_POINTS = ("zero_points", "block_zero_points")


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
    except ValueError as error:
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
    facts = spread(numpy_helper.to_array(tensor)) if dtype == "float32" else {}
    return StoredTensor(tensor.name, tensor.name, tuple(tensor.dims), dtype, placement, payload_bytes=byte_size(tensor), **facts)


def stored_tensors(told: dict, constants: dict[str, TensorProto], path: Path) -> tuple[tuple[StoredTensor, ...], set[str]]:
    """The plan's tensors, and the names of all constants that belong to them."""
    found, taken = [], set()
    for name, about in told.get("tensors", {}).items():
        names = [*about.get("constants", {}).values()] or [about["file_name"]]
        missing = [n for n in names if n and n not in constants]
        if missing:
            raise BrokenFile(f"{path.name}: {name} should be in {', '.join(missing)}, which the file does not have")
        taken.update(names)
        try:
            found.append(compressed(name, about, constants) if "constants" in about else in_float(name, about, constants))
        except (KeyError, ValueError, TypeError, IndexError, RecipeError) as error:
            raise BrokenFile(f"{path.name}: what the file has of {name} does not fit together: {error}") from error
    return tuple(found), taken


def in_float(name: str, about: dict, constants: dict[str, TensorProto]) -> StoredTensor:
    if not about["file_name"]:  # the graph does not use it
        return StoredTensor(name, "", (), "none", "float", about["reason"])
    tensor = constants[about["file_name"]]
    facts = spread(numpy_helper.to_array(tensor))
    return StoredTensor(name, tensor.name, tuple(tensor.dims), dtype_name(tensor.data_type), "float", about["reason"], byte_size(tensor), **facts)


def compressed(name: str, about: dict, constants: dict[str, TensorProto]) -> StoredTensor:
    parts = {role: constants[file_name] for role, file_name in about["constants"].items()}
    arrays = {role: numpy_helper.to_array(tensor) for role, tensor in parts.items()}
    sizes, shape = {role: byte_size(tensor) for role, tensor in parts.items()}, tuple(about["shape"])
    if "format" not in about:
        values = whole(arrays["codes"], arrays, shape)
        facts = spread(values) | {"values": values, "filled_in": True}
        return StoredTensor(name, about["file_name"], shape, "float32", about["placement"], about["reason"], sum(sizes.values()), **facts)
    fmt = FORMAT.validate_python(about["format"])
    return StoredTensor(
        name,
        about["file_name"],
        shape,
        dtype_of(fmt),
        about["placement"],
        about["reason"],
        sum(sizes.get(role, 0) for role in CODES),
        sum(sizes.get(role, 0) for role in SCALES),
        sum(sizes.get(role, 0) for role in ZERO_POINTS),
        filled_in="mask" in arrays,
        **numbers(arrays, fmt, shape, tuple(about["scale_shape"] or ())),
    )


def dtype_of(fmt: Format) -> str:
    if isinstance(fmt, FloatFormat):
        return fmt.dtype
    return f"{'int' if isinstance(fmt, IntFormat) and fmt.signed else 'uint'}{fmt.bits}"


def numbers(arrays: dict[str, np.ndarray], fmt: Format, shape: tuple[int, ...], scale_shape: tuple[int, ...]) -> dict[str, np.ndarray | None]:
    """The arrays of a StoredTensor."""
    if isinstance(fmt, FloatFormat):
        return {"codes": whole(arrays["codes"] if fmt.dtype == "float16" else arrays["codes"].view(np.uint16), arrays, shape)}
    zero = zero_points(arrays, fmt, shape, scale_shape) if isinstance(fmt, IntFormat) else None
    return {"codes": codes(arrays, fmt, shape), "scales": scales(arrays, fmt, scale_shape), "zero_points": zero, "codebook": codebook(arrays)}


def codes(arrays: dict[str, np.ndarray], fmt: Format, shape: tuple[int, ...]) -> np.ndarray:
    if "bnb4" in arrays:
        return LAYOUTS["matmulbnb4"].unpack(arrays["bnb4"], 4, shape)
    if "rows" in arrays:
        return packing.unpacked_rows(arrays["rows"], fmt, shape)
    if "blocks" in arrays:
        return packing.unpacked_blocks(arrays["blocks"], fmt, shape)
    stored = (1 + int(np.bitwise_count(arrays["mask"]).sum()),) if "mask" in arrays else shape
    return whole(packing.unpacked_codes(arrays["codes"], fmt, stored), arrays, shape)


def whole(values: np.ndarray, arrays: dict[str, np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """The tensor, its most frequent value filled in where the file leaves that out."""
    return filled(values, from_mask(arrays["mask"], prod(shape))).reshape(shape) if "mask" in arrays else values


def scales(arrays: dict[str, np.ndarray], fmt: Format, shape: tuple[int, ...]) -> np.ndarray | None:
    if "scale_codes" in arrays:
        return ScaleCodes(arrays["scale_codes"], arrays["scale_factors"], arrays["scale_offset"]).decode(fmt.double).reshape(shape)
    if "scales" not in arrays:
        return None
    return packing.unpacked_scales(arrays["scales"], fmt.scale_dtype) * arrays.get("global_scale", np.float32(1))


def codebook(arrays: dict[str, np.ndarray]) -> np.ndarray | None:
    if "table" in arrays or "levels" in arrays:
        return arrays.get("table", arrays.get("levels"))
    return arrays["codebook"].astype(np.float32) * arrays.get("codebook_scales", np.float32(1)) if "codebook" in arrays else None


def zero_points(arrays: dict[str, np.ndarray], fmt: IntFormat, shape: tuple[int, ...], scale_shape: tuple[int, ...]) -> np.ndarray | None:
    """int32 or float32 in the shape of the scales; None where the format is symmetric."""
    if "block_zero_points" in arrays:
        block = arrays["blocks"].shape[-1] * 8 // fmt.bits
        return packing.unpacked_block_zero_points(arrays["block_zero_points"], fmt, shape, scale_shape, block)
    if "zero_points" not in arrays:
        return None
    if fmt.zero_point != "integer":
        return packing.unpacked_scales(arrays["zero_points"], fmt.scale_dtype)
    return packing.unpacked_codes(arrays["zero_points"], fmt, scale_shape).astype(np.int32)
