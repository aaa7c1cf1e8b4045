"""Sums of int16 activations times weights in 32 bits where they provably fit.

litert-quantizer gives such layers int64 biases, and LiteRT then runs its reference kernel, which sums in 64 bits. With int32 biases it runs Ruy's
16x8 matrix product instead, some twenty times faster (tensorflow/lite/kernels/fully_connected.cc, conv.cc and transpose_conv.cc: quantized_bias_type).
A sum of 32 bits must not overflow for any input: |bias| + 32768 * sum |codes| of every output channel has to stay below 2^31.
"""

from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from exporters import tflite_file

ACTIVATION_INPUT = {"TRANSPOSE_CONV": 2}  # 0 elsewhere
BIAS_INPUT = {"FULLY_CONNECTED": 2, "CONV_2D": 2, "TRANSPOSE_CONV": 3}
LARGEST_ACTIVATION = 2**15
LIMIT = 2**31


def narrow_sums(data: bytes) -> tuple[bytes, tuple[str, ...]]:
    """The file with 32-bit sums where none can overflow, and a note on the layers that keep sums of 64 bits."""
    model = tflite_file.parse(data, "the quantized model")
    wide = []
    for graph in model.subgraphs:
        for operator in graph.operators:
            name = tflite_file.operator_name(model, operator)
            if computes_in_int16(graph, operator, name) and not narrow(model, graph, operator, name):
                wide.append(tflite_file.Place(graph, operator.inputs[1]).name)
    notes = (f"{len(wide)} layers keep sums of 64 bits, in LiteRT's slow reference kernels: in 32 bits they could overflow",) if wide else ()
    return tflite_file.serialized(model), notes


def computes_in_int16(graph: Any, operator: Any, name: str) -> bool:
    return name in BIAS_INPUT and tflite_file.Place(graph, operator.inputs[ACTIVATION_INPUT.get(name, 0)]).dtype == "int16"


def narrow(model: Any, graph: Any, operator: Any, name: str) -> bool:
    """Gives one operator an int32 bias, in place; False, and no change, where a sum could overflow."""
    codes = tflite_file.values(model, tflite_file.Place(graph, operator.inputs[1])).astype(np.int64)
    bounds = LARGEST_ACTIVATION * np.abs(codes).sum(tuple(range(1, codes.ndim)))
    position = BIAS_INPUT[name]
    bias = tflite_file.Place(graph, operator.inputs[position]) if len(operator.inputs) > position and operator.inputs[position] >= 0 else None
    values = 0 if bias is None else tflite_file.values(model, bias)
    if (bounds + np.abs(values)).max() >= LIMIT:
        return False
    if bias is not None and bias.dtype == "int64":  # shared with a layer that is done already, it is int32
        bias.tensor.type = schema.TensorType.INT32
        bias.tensor.buffer = tflite_file.add_buffer(model, values.astype(np.int32))
    operator.builtinOptions.quantizedBiasType = schema.TensorType.INT32
    return True
