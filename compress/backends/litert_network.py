"""A .tflite file as a Network: LiteRT runs it, and the float32 constants of its layers are the weights. One that is quantized has none: it is what it is."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from ai_edge_litert.tools import flatbuffer_utils

from compress.backends.litert_codes import decoded, encoded
from compress.errors import InputError
from compress.network import Inputs, InputSpec, Weight
from compress.samples import Data

LAYERS = {  # operator: (input that is its weight, kind, axes of the file in canonical order)
    "FULLY_CONNECTED": (1, "linear", (0, 1)),
    "CONV_2D": (1, "conv2d", (0, 3, 1, 2)),
    "DEPTHWISE_CONV_2D": (1, "depthwise_conv2d", (3, 0, 1, 2)),
    "TRANSPOSE_CONV": (1, "conv_transpose2d", (0, 3, 1, 2)),
    "EMBEDDING_LOOKUP": (1, "embedding", (0, 1)),
    "GATHER": (0, "embedding", (0, 1)),
}
FLOAT, HALF = schema.TensorType.FLOAT32, schema.TensorType.FLOAT16
NAMES = {code: name.lower() for name, code in vars(schema.TensorType).items() if isinstance(code, int)}
OPERATORS = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
SMALL = 256  # values of a constant that nobody misses in a note


@dataclass(frozen=True)
class Constant:
    """A float32 constant of the first graph; `axes` are the file's in canonical order."""

    name: str
    kind: str
    buffer: int
    shape: tuple[int, ...]  # in the file
    axes: tuple[int, ...]


class LitertNetwork:
    framework = "litert"

    def __init__(self, model: bytes, inputs: tuple[InputSpec, ...], constants: Mapping[str, Constant], notes: tuple[str, ...]):
        self.model, self.inputs, self.constants, self.notes = model, inputs, constants, notes

    @cached_property
    def parsed(self) -> Any:
        return flatbuffer_utils.read_model_from_bytearray(bytearray(self.model))

    def weights(self) -> dict[str, Weight]:
        return {c.name: Weight(c.name, c.kind, np.ascontiguousarray(self.value(c).transpose(c.axes))) for c in self.constants.values()}

    def value(self, constant: Constant) -> np.ndarray:
        return np.frombuffer(bytes(self.parsed.buffers[constant.buffer].data), np.float32).reshape(constant.shape)

    def with_weights(self, values: Mapping[str, np.ndarray]) -> "LitertNetwork":
        model = flatbuffer_utils.read_model_from_bytearray(bytearray(self.model))
        for name, value in values.items():
            if name not in self.constants:
                raise InputError(f"the file has no float32 tensor {name!r}")
            constant = self.constants[name]
            expected = [constant.shape[axis] for axis in constant.axes]
            if list(np.shape(value)) != expected:
                raise InputError(f"{name}: a value of shape {list(np.shape(value))} does not fit, expected {expected}")
            moved = np.asarray(value, np.float32).transpose(np.argsort(constant.axes))
            model.buffers[constant.buffer].data = np.ascontiguousarray(moved).reshape(-1).view(np.uint8)
        return LitertNetwork(packed(model), self.inputs, self.constants, self.notes)

    @cached_property
    def interpreter(self) -> Interpreter:
        interpreter = Interpreter(model_content=self.model)
        interpreter.allocate_tensors()
        return interpreter

    def run(self, inputs: Inputs) -> list[np.ndarray]:
        for spec, detail in zip(self.inputs, self.interpreter.get_input_details(), strict=True):
            self.interpreter.set_tensor(detail["index"], encoded(np.asarray(inputs[spec.name]), detail))
        self.interpreter.invoke()
        found = [decoded(self.interpreter.get_tensor(detail["index"]), detail) for detail in self.interpreter.get_output_details()]
        return [array.astype(np.float32, copy=False) for array in found]


def open_model(path: Path | str, inputs: Data | None) -> LitertNetwork:
    """The model of a .tflite file. InputError where it cannot be read or does not run."""
    path = Path(path)
    data = path.read_bytes()
    if data[4:8] != b"TFL3":
        raise InputError(f"{path} is not a .tflite file ({len(data):,} bytes, no TFL3 mark)")
    try:
        interpreter = Interpreter(model_content=data)
        interpreter.allocate_tensors()
        model = flatbuffer_utils.read_model_from_bytearray(bytearray(data))
    except Exception as error:  # what LiteRT and flatbuffers raise has no base of its own
        raise InputError(f"{path} does not load in LiteRT: {' '.join(str(error).split())[:300]}") from error
    quantized, constants = kinds_of_numbers(model), list(float_constants(model))
    notes = []
    if quantized:
        constants = []
        listed = ", ".join(f"{count} {name}" for name, count in quantized.most_common())
        notes.append(f"the file is quantized already (constants: {listed}): it is measured as it is, by recipe float32, and no recipe changes it")
    if len({c.name for c in constants}) < len(constants) or any(not c.name for c in constants):
        constants = renamed(model, constants)
        data = packed(model)
    unknown = [c.name for c in constants if c.kind == "parameter" and np.prod(c.shape) > SMALL]
    if unknown:
        notes.append(f"constants of operators whose weights recipes do not know stay in float: {', '.join(unknown)}")
    return LitertNetwork(data, tuple(map(spec_of, interpreter.get_input_details())), {c.name: c for c in constants}, tuple(notes))


def spec_of(detail: Mapping[str, Any]) -> InputSpec:
    """An input as samples give it: codes are made of floats."""
    shape, codes = tuple(int(n) for n in detail["shape"]), detail["quantization"][0]
    if not shape or shape[0] != 1:
        raise InputError(f"input {detail['name']} {list(shape)} has no batch axis that takes one sample: convert the model with a batch of 1")
    return InputSpec(detail["name"], shape, "float32" if codes else np.dtype(detail["dtype"]).name)


def kinds_of_numbers(model: Any) -> Counter:
    """How many constants of each quantized type there are."""
    found: Counter = Counter()
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            scales = tensor.quantization.scale if tensor.quantization is not None else None
            if model.buffers[tensor.buffer].data is not None and (tensor.type == HALF or scales is not None and len(scales)):
                found[NAMES[tensor.type]] += 1
    return found


def float_constants(model: Any) -> Iterator[Constant]:
    graph = model.subgraphs[0]
    roles = {index: layer for operator in graph.operators for index, layer in layers_of(model, operator)}
    for index, tensor in enumerate(graph.tensors):
        data, shape = model.buffers[tensor.buffer].data, tuple(int(n) for n in (tensor.shape if tensor.shape is not None else ()))
        if data is None or tensor.type != FLOAT or tensor.sparsity is not None or not np.prod(shape):
            continue
        kind, axes = roles.get(index, ("bias" if len(shape) < 2 else "parameter", tuple(range(len(shape)))))
        kind, axes = (kind, axes) if len(axes) == len(shape) else ("parameter", tuple(range(len(shape))))
        yield Constant((tensor.name or b"").decode(), kind, tensor.buffer, shape, axes)


def layers_of(model: Any, operator: Any) -> Iterator[tuple[int, tuple[str, tuple[int, ...]]]]:
    code = model.operatorCodes[operator.opcodeIndex]
    name = OPERATORS.get(max(code.builtinCode, code.deprecatedBuiltinCode), "")
    if name == "BATCH_MATMUL" and len(operator.inputs) > 1:
        yield operator.inputs[1], ("linear", (0, 1) if operator.builtinOptions.adjY else (1, 0))
    elif name in LAYERS and not (name == "GATHER" and (operator.builtinOptions.axis or operator.builtinOptions.batchDims)):
        slot, kind, axes = LAYERS[name]
        yield operator.inputs[slot], (kind, axes)


def renamed(model: Any, constants: list[Constant]) -> list[Constant]:
    """The constants under names of their own, which their tensors get too, in place."""
    by_place = {(c.buffer, c.shape): Constant(f"{c.name or c.kind}#{i}", c.kind, c.buffer, c.shape, c.axes) for i, c in enumerate(constants)}
    for tensor in model.subgraphs[0].tensors:
        found = by_place.get((tensor.buffer, tuple(int(n) for n in (tensor.shape if tensor.shape is not None else ()))))
        if found:
            tensor.name = found.name.encode()
    return list(by_place.values())


def packed(model: Any) -> bytes:
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))
