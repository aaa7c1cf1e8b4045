"""A .tflite file of one fully connected layer, and what such a file holds."""

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

TYPES = {schema.TensorType.INT8: 8, schema.TensorType.INT4: 4, schema.TensorType.INT2: 2}

FLOATS = {"float32": schema.TensorType.FLOAT32, "float16": schema.TensorType.FLOAT16}


def dense(weight: np.ndarray) -> bytearray:
    """A float file whose only layer's weight is float32 or float16 [out, in]."""
    out, inputs = weight.shape
    model, graph, operator, code = schema.ModelT(), schema.SubGraphT(), schema.OperatorT(), schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.FULLY_CONNECTED
    code.version = 1
    model.version, model.operatorCodes, model.subgraphs = 3, [code], [graph]
    model.buffers = [schema.BufferT(), schema.BufferT()]
    model.buffers[1].data = np.frombuffer(weight.tobytes(), np.uint8)
    graph.tensors = [tensor("x", [1, inputs], 0), tensor("w", [out, inputs], 1), tensor("y", [1, out], 0)]
    graph.tensors[1].type = FLOATS[weight.dtype.name]
    graph.inputs, graph.outputs, graph.operators = [0], [2], [operator]
    operator.inputs, operator.outputs = [0, 1, -1], [2]
    operator.builtinOptionsType, operator.builtinOptions = schema.BuiltinOptions.FullyConnectedOptions, schema.FullyConnectedOptionsT()
    model.signatureDefs = [signature()]
    builder = flatbuffers.Builder(weight.nbytes + 4096)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytearray(builder.Output())


def tensor(name: str, shape: list[int], buffer: int) -> schema.TensorT:
    made = schema.TensorT()
    made.name, made.shape, made.buffer, made.type = name, shape, buffer, schema.TensorType.FLOAT32
    return made


def signature() -> schema.SignatureDefT:
    made, source, result = schema.SignatureDefT(), schema.TensorMapT(), schema.TensorMapT()
    source.name, source.tensorIndex, result.name, result.tensorIndex = "x", 0, "y", 2
    made.signatureKey, made.inputs, made.outputs, made.subgraphIndex = "serving_default", [source], [result], 0
    return made


def stored_codes(data: bytes, size: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Codes int8 [size] and their float32 scales, of the one quantized constant of that many values; None where there is none."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
    for found in model.subgraphs[0].tensors:
        content = content_of(model, found.buffer, data)
        if found.type in TYPES and content.size and int(np.prod(found.shape)) == size:
            return unpacked(content, TYPES[found.type], size), scales_of(model, found, data)
    return None


def content_of(model: schema.ModelT, index: int, data: bytes) -> np.ndarray:
    """uint8: a buffer's bytes; those of large ones lie behind the flatbuffer."""
    buffer = model.buffers[index]
    if buffer.offset > 1:
        return np.frombuffer(data, np.uint8, buffer.size, buffer.offset)
    return np.zeros(0, np.uint8) if buffer.data is None else np.asarray(buffer.data, np.uint8)


def scales_of(model: schema.ModelT, found: schema.TensorT, data: bytes) -> np.ndarray:
    details = found.quantization.details
    if details is None:
        return np.asarray(found.quantization.scale, np.float32)
    return content_of(model, model.subgraphs[0].tensors[details.scales].buffer, data).view(np.float16).astype(np.float32)


def unpacked(content: np.ndarray, bits: int, size: int) -> np.ndarray:
    each = 8 // bits
    fields = (content[:, None] >> (np.arange(each) * bits).astype(np.uint8)) & ((1 << bits) - 1)
    codes = fields.ravel()[:size].astype(np.int16)
    return np.where(codes >= 1 << (bits - 1), codes - (1 << bits), codes).astype(np.int8)


def decoded(data: bytes, shape: tuple[int, int]) -> np.ndarray:
    """What the runtime computes of each unit vector: the weight [out, in] as the file's own operators decode it."""
    interpreter = Interpreter(model_content=bytes(data), num_threads=1)
    given = interpreter.get_input_details()[0]["index"]
    interpreter.resize_tensor_input(given, [shape[1], shape[1]])
    interpreter.allocate_tensors()
    interpreter.set_tensor(given, np.eye(shape[1], dtype=np.float32))
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"]).T
