"""Builds operators in a graph of a .tflite file: each method appends what it needs and returns the tensor that it makes."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from exporters import tflite_file
from exporters.tflite_file import Place

OPTIONS = {"BATCH_MATMUL": "BatchMatMulOptions"}  # the others' follow from the operator's name


@dataclass(frozen=True, eq=False)
class Nodes:
    """A graph under construction. `tables` are constants by content: all weights of a graph share theirs."""

    model: Any  # ModelT
    graph: Any  # SubGraphT
    operators: list = field(default_factory=list)
    tables: dict = field(default_factory=dict)

    def constant(self, array: np.ndarray) -> Place:
        """A constant that holds nothing of a weight: a table, a shape, a shift."""
        key = array.tobytes(), array.shape, str(array.dtype)
        if key not in self.tables:
            self.tables[key] = self.stored("", array, str(array.dtype))
        return self.tables[key]

    def integers(self, numbers: Iterable[int]) -> Place:
        return self.constant(np.array(list(numbers), np.int32))

    def stored(self, name: str, array: np.ndarray, dtype: str) -> Place:
        return self.shared(name, array.shape, tflite_file.add_buffer(self.model, array), dtype)

    def shared(self, name: str, shape: tuple[int, ...], buffer: int, dtype: str) -> Place:
        """A tensor over a buffer of the model: 0 where an operator makes it."""
        return Place(self.graph, tflite_file.add_tensor(self.graph, name, shape, buffer, dtype))

    def operator(self, name: str, inputs: list[Place], outputs: list[Place], **options: Any) -> None:
        made = schema.OperatorT()
        made.opcodeIndex = tflite_file.operator_code(self.model, name)
        made.inputs, made.outputs = [place.index for place in inputs], [place.index for place in outputs]
        if options:
            kind = OPTIONS.get(name) or "".join(word.capitalize() for word in name.split("_")) + "Options"
            made.builtinOptionsType, made.builtinOptions = getattr(schema.BuiltinOptions, kind), getattr(schema, f"{kind}T")()
            vars(made.builtinOptions).update(options)
        self.operators.append(made)

    def made(self, name: str, inputs: list[Place], shape: tuple[int, ...], dtype: str, **options: Any) -> Place:
        """The one output of a new operator."""
        output = self.shared("", shape, 0, dtype)
        self.operator(name, inputs, [output], **options)
        return output

    def cast(self, x: Place, dtype: str) -> Place:
        if x.dtype == dtype:
            return x
        codes = {name: code for code, name in tflite_file.TYPE_NAMES.items()}
        return self.made("CAST", [x], x.shape, dtype, inDataType=codes[x.dtype], outDataType=codes[dtype])

    def bitcast(self, x: Place, dtype: str) -> Place:
        return x if x.dtype == dtype else self.made("BITCAST", [x], x.shape, dtype)

    def reshape(self, x: Place, shape: tuple[int, ...]) -> Place:
        return x if x.shape == shape else self.made("RESHAPE", [x, self.integers(shape)], shape, x.dtype, newShape=list(shape))

    def transpose(self, x: Place, order: tuple[int, ...]) -> Place:
        if order == tuple(range(len(order))):
            return x
        return self.made("TRANSPOSE", [x, self.integers(order)], tuple(x.shape[axis] for axis in order), x.dtype)

    def gather(self, table: Place, indices: Place, axis: int = 0) -> Place:
        shape = (*table.shape[:axis], *indices.shape, *table.shape[axis + 1 :])
        return self.made("GATHER", [table, indices], shape, table.dtype, axis=axis)

    def binary(self, name: str, a: Place, b: Place) -> Place:
        """ADD, SUB, MUL, RIGHT_SHIFT or FLOOR_MOD, broadcast."""
        options = {"fusedActivationFunction": schema.ActivationFunctionType.NONE} if name in ("ADD", "SUB", "MUL") else {}
        return self.made(name, [a, b], np.broadcast_shapes(a.shape, b.shape), a.dtype, **options)

    def range(self, count: int, step: int) -> Place:
        """int32 [count]: 0, step, 2 step, ..."""
        return self.made("RANGE", [self.constant(np.array(n, np.int32)) for n in (0, count * step, step)], (count,), "int32")

    def pad(self, x: Place, length: int) -> Place:
        """Zeros behind the last axis, up to `length`."""
        if x.shape[-1] == length:
            return x
        more = np.zeros((len(x.shape), 2), np.int32)
        more[-1, 1] = length - x.shape[-1]
        return self.made("PAD", [x, self.constant(more)], (*x.shape[:-1], length), x.dtype)

    def first(self, x: Place, length: int) -> Place:
        """The first `length` of the last axis."""
        if x.shape[-1] == length:
            return x
        shape = (*x.shape[:-1], length)
        return self.made("SLICE", [x, self.integers([0] * len(shape)), self.integers(shape)], shape, x.dtype)

    def variable(self, name: str) -> Place:
        """A handle; the variable belongs to the interpreter, so that all its graphs share it."""
        return self.made("VAR_HANDLE", [], (), "resource", container="", sharedName=name)

    def read(self, name: str, shape: tuple[int, ...]) -> Place:
        """A float32 variable's value."""
        return self.made("READ_VARIABLE", [self.variable(name)], shape, "float32")
