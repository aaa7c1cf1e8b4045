"""Reads and checks the flatbuffer of a .tflite file: constants, quantization, operators, metadata."""

import copy
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

from compress.errors import BrokenFile
from compress.numerics.packing import unpack_low_first
from exporters import tflite_sparse

TYPE_NAMES = {code: name.lower() for name, code in vars(schema.TensorType).items() if isinstance(code, int)}
OPERATOR_NAMES = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
NUMPY = ("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16", "float32", "float64")
MARK = b"TFL3"
SPARE = 1 << 20  # bytes for all that is not buffers; the builder grows slowly
LARGEST_COMPACTED = 1 << 30  # bytes
LARGEST_SHARED = 1 << 20  # bytes of a vector that is worth comparing with others
STORED_AS = {"bfloat16": "uint16"}  # bit patterns of a type that NumPy lacks
SUB_BYTE = {"int4": 4, "int2": 2}
DAMAGE = (struct.error, IndexError, ValueError, TypeError, OverflowError, AttributeError, MemoryError)
"""What flatbuffers raises where offsets and lengths point out of the file or at something else."""


@dataclass(frozen=True, eq=False)
class Place:
    """A tensor of a model with the graph it is in."""

    graph: Any  # SubGraphT
    index: int  # of the tensor in its graph

    @property
    def tensor(self) -> Any:
        return self.graph.tensors[self.index]

    @property
    def name(self) -> str:
        return text(self.tensor.name)

    @property
    def dtype(self) -> str:
        return TYPE_NAMES[self.tensor.type]

    @property
    def shape(self) -> tuple[int, ...]:
        return shape_of(self.tensor)


def text(name: bytes | str | None) -> str:
    return name.decode() if isinstance(name, bytes) else name or ""


def shape_of(tensor: Any) -> tuple[int, ...]:
    return () if tensor.shape is None else tuple(int(n) for n in tensor.shape)


def parse(data: bytes, name: str) -> Any:
    """The ModelT of a .tflite file, every index and buffer length checked. BrokenFile says what is wrong."""
    if len(data) < 8 or data[4:8] != MARK:
        raise BrokenFile(f"{name}: not a .tflite file ({len(data)} bytes, no TFL3 mark)")
    try:
        model = flatbuffer_utils.read_model_from_bytearray(data)
        for place in all_tensors(model):
            check_tensor(model, place, name)
        for graph in model.subgraphs:
            check_graph(model, graph, name)
    except BrokenFile:
        raise
    except DAMAGE as error:
        raise BrokenFile(f"{name}: damaged or truncated .tflite file: {type(error).__name__}: {error}") from error
    return model


def check_tensor(model: Any, place: Place, name: str) -> None:
    dtype, buffer = TYPE_NAMES.get(place.tensor.type), model.buffers[place.tensor.buffer]
    if dtype is None:
        raise BrokenFile(f"{name}: tensor {place.name} has the unknown type {place.tensor.type}")
    if buffer.data is None or not is_known(place):
        return
    if place.tensor.sparsity is not None:
        values(model, place)
        return
    wanted = payload_bytes(place.shape, dtype)
    if len(buffer.data) != wanted:
        raise BrokenFile(f"{name}: tensor {place.name} {dtype} {list(place.shape)} needs {wanted} bytes, the file holds {len(buffer.data)}")


def is_known(place: Place) -> bool:
    """Whether a constant's bytes are its values, in a type that NumPy knows or that packs into bytes: all of them, or those of compressed rows."""
    if place.tensor.sparsity is not None:
        return place.dtype in NUMPY and tflite_sparse.in_rows(place.tensor)
    return place.dtype in (*NUMPY, *STORED_AS, *SUB_BYTE)


def check_graph(model: Any, graph: Any, name: str) -> None:
    count = len(graph.tensors)
    for operator in graph.operators or ():
        used = [*(operator.inputs if operator.inputs is not None else ()), *(operator.outputs if operator.outputs is not None else ())]
        if operator.opcodeIndex >= len(model.operatorCodes) or any(not -1 <= i < count for i in used):
            raise BrokenFile(f"{name}: an operator points at a tensor or code that does not exist")
    if any(not 0 <= i < count for i in [*graph.inputs, *graph.outputs]):
        raise BrokenFile(f"{name}: an input or output points at a tensor that does not exist")


def payload_bytes(shape: tuple[int, ...], dtype: str) -> int:
    return -(-prod(shape) * SUB_BYTE[dtype] // 8) if dtype in SUB_BYTE else prod(shape) * np.dtype(STORED_AS.get(dtype, dtype)).itemsize


def all_tensors(model: Any) -> Iterator[Place]:
    for graph in model.subgraphs:
        for index in range(len(graph.tensors)):
            yield Place(graph, index)


def constants(model: Any) -> list[Place]:
    """Tensors with data of their own."""
    return [place for place in all_tensors(model) if model.buffers[place.tensor.buffer].data is not None and prod(place.shape)]


def values(model: Any, place: Place) -> np.ndarray:
    """A constant in the file's layout: its codes, sub-byte ones widened to int8, bfloat16 as bit patterns. Numeric types only."""
    data, dtype = np.frombuffer(model.buffers[place.tensor.buffer].data, np.uint8), place.dtype
    if dtype in SUB_BYTE:
        return unpack_low_first(data, SUB_BYTE[dtype], prod(place.shape)).reshape(place.shape)
    if place.tensor.sparsity is not None:
        return tflite_sparse.rows_of(place.tensor, place.shape, data.view(dtype)).dense()
    return data.view(STORED_AS.get(dtype, dtype)).reshape(place.shape)


def operator_name(model: Any, operator: Any) -> str:
    """As `CONV_2D`, or a custom operator's own name."""
    code = model.operatorCodes[operator.opcodeIndex]
    builtin = max(code.builtinCode, code.deprecatedBuiltinCode)
    return text(code.customCode) if builtin == schema.BuiltinOperator.CUSTOM else OPERATOR_NAMES.get(builtin, f"BUILTIN_{builtin}")


def operators(model: Any) -> dict[str, int]:
    """Operator name to count, over all subgraphs."""
    return dict(Counter(operator_name(model, op) for graph in model.subgraphs for op in graph.operators or ()).most_common())


def consumers(place: Place) -> list[Any]:
    return [op for op in place.graph.operators or () if op.inputs is not None and place.index in list(op.inputs)]


def scales_of(place: Place) -> np.ndarray | None:
    """float32 scales kept with a tensor, or None; those of blocks are a tensor of their own."""
    quantization = place.tensor.quantization
    found = None if quantization is None or quantization.scale is None else np.asarray(quantization.scale, np.float32)
    return found if found is not None and found.size else None


def block_scales(place: Place) -> int | None:
    """Index of the tensor that holds a blockwise quantized tensor's scales, or None."""
    quantization = place.tensor.quantization
    blockwise = quantization is not None and quantization.detailsType == schema.QuantizationDetails.BlockwiseQuantization
    return quantization.details.scales if blockwise else None


def metadata(model: Any, key: str) -> bytes | None:
    """The content of a metadata entry, or None."""
    for entry in model.metadata or ():
        if text(entry.name) == key:
            data = model.buffers[entry.buffer].data
            return b"" if data is None else bytes(data)
    return None


def with_metadata(model: Any, key: str, content: bytes) -> Any:
    """A ModelT with this entry in place of one of its name; it shares all the rest."""
    buffer, entry, more = schema.BufferT(), schema.MetadataT(), copy.copy(model)
    buffer.data = np.frombuffer(content, np.uint8)
    entry.name, entry.buffer = key.encode(), len(model.buffers)
    more.buffers, more.metadata = [*model.buffers, buffer], [*(old for old in model.metadata or () if text(old.name) != key), entry]
    return more


def copied(model: Any) -> Any:
    """A ModelT of its own that shares the buffers' bytes."""
    return copy.deepcopy(model, {id(buffer.data): buffer.data for buffer in model.buffers if buffer.data is not None})


def empty_unused(model: Any) -> None:
    """Empties the buffers that nothing refers to any more, in place."""
    used = {place.tensor.buffer for place in all_tensors(model)} | {entry.buffer for entry in model.metadata or ()}
    for index, buffer in enumerate(model.buffers):
        if index not in used:
            buffer.data = None


class Sharing(flatbuffers.Builder):
    """Writes equal vectors once: the zeros that LiteRT demands beside every scale, shapes, small tables."""

    def __init__(self, size: int):
        super().__init__(size)
        self.written: dict[tuple[str, bytes], int] = {}

    def CreateNumpyVector(self, x: np.ndarray) -> int:  # noqa: N802  flatbuffers' name
        if x.nbytes > LARGEST_SHARED:
            return super().CreateNumpyVector(x)
        key = x.dtype.str, x.tobytes()
        if key not in self.written:
            self.written[key] = super().CreateNumpyVector(x)
        return self.written[key]


def compacted(data: bytes) -> bytes:
    """The same model in fewer bytes: equal vectors are shared, and names and quantization that are empty are left out.

    Files beyond 1 GB stay as they are: a builder holds 2 GB, and larger files keep their buffers behind the flatbuffer.
    """
    if len(data) > LARGEST_COMPACTED:
        return data
    model = parse(data, "the written model")
    for place in all_tensors(model):
        quantization = place.tensor.quantization
        if quantization is not None and scales_of(place) is None and block_scales(place) is None:
            place.tensor.quantization = None
        place.tensor.name = place.tensor.name or None
    forget_unread(model)
    return serialized(model)


def forget_unread(model: Any) -> None:
    """Empties vectors of the first graph that nobody reads, in place: biases that became others when constants around a layer were unfolded."""
    read = {(id(graph), index) for graph in model.subgraphs for operator in graph.operators or () for index in operator.inputs}
    read |= {(id(graph), index) for graph in model.subgraphs for index in graph.outputs}
    first = model.subgraphs[0]
    unread = [p for p in constants(model) if p.graph is first and len(p.shape) == 1 and p.dtype == "float32" and (id(first), p.index) not in read]
    for place in unread:
        place.tensor.buffer = 0
    empty_unused(model)


def serialized(model: Any) -> bytes:
    """A ModelT as a file, buffers inside the flatbuffer."""
    for buffer in model.buffers:
        if buffer.data is not None and not isinstance(buffer.data, np.ndarray):  # bytes would be packed one by one
            buffer.data = np.frombuffer(buffer.data, np.uint8)
    builder = Sharing(sum(len(buffer.data) for buffer in model.buffers if buffer.data is not None) + SPARE)
    builder.Finish(model.Pack(builder), file_identifier=MARK)
    return bytes(builder.Output())


def operator_code(model: Any, name: str) -> int:
    builtin = getattr(schema.BuiltinOperator, name)
    for index, code in enumerate(model.operatorCodes):
        if max(code.builtinCode, code.deprecatedBuiltinCode) == builtin:
            return index
    code = schema.OperatorCodeT()
    code.builtinCode, code.deprecatedBuiltinCode = builtin, min(builtin, schema.BuiltinOperator.PLACEHOLDER_FOR_GREATER_OP_CODES)
    code.version = 1
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1


def add_buffer(model: Any, values: np.ndarray) -> int:
    buffer = schema.BufferT()
    buffer.data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    model.buffers.append(buffer)
    return len(model.buffers) - 1


def add_tensor(graph: Any, name: str, shape: tuple[int, ...], buffer: int, dtype: str = "float32") -> int:
    """A tensor's index."""
    tensor = schema.TensorT()
    tensor.name, tensor.shape, tensor.type, tensor.buffer = name.encode(), list(shape), getattr(schema.TensorType, dtype.upper()), buffer
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1
