"""What goes into and comes out of a .tflite file: float32, float16, or the codes of its activations themselves."""

from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from compress.errors import Refused
from exporters import tflite_file
from exporters.tflite_file import Place

SHIFT = 128  # from int8 to uint8: codes and zero points, so the numbers stay


def given(data: bytes, kind: str) -> bytes:
    """The model with float32 inputs and outputs of the first graph, and of its signatures, in another type. Refused, naming the tensor, where not."""
    model = tflite_file.parse(data, "the written model")
    graph = model.subgraphs[0]
    change = to_float16 if kind == "float16" else to_codes
    for places, entering in ((graph.inputs, True), (graph.outputs, False)):
        for position, index in enumerate(places):
            old = Place(graph, index)
            if old.dtype != "float32":  # token ids and masks are what they are
                continue
            new = change(model, old, entering)
            if kind == "uint8":
                new = to_unsigned(model, new, entering)
            places[position] = new.index
            follow(model, entering, index, new.index)
    return tflite_file.serialized(model)


def follow(model: Any, entering: bool, old: int, new: int) -> None:
    """Signatures name the same tensor."""
    for signature in model.signatureDefs or ():
        for entry in signature.inputs if entering else signature.outputs:
            if signature.subgraphIndex == 0 and entry.tensorIndex == old:
                entry.tensorIndex = new


def to_codes(model: Any, old: Place, entering: bool) -> Place:
    """The int8 tensor behind the QUANTIZE of an input, or before the DEQUANTIZE of an output; the operator goes."""
    graph, noun = old.graph, "input" if entering else "output"
    name = "QUANTIZE" if entering else "DEQUANTIZE"
    around = tflite_file.consumers(old) if entering else [op for op in graph.operators if old.index in list(op.outputs)]
    found = [Place(graph, (op.outputs if entering else op.inputs)[0]) for op in around if tflite_file.operator_name(model, op) == name]
    if len(found) != 1 or len(around) != 1 or found[0].dtype != "int8":
        said = ", ".join(dict.fromkeys(tflite_file.operator_name(model, op) for op in around)) or "no operator"
        verb = "is read by" if entering else "is made by"
        raise Refused(f"interface: the {noun} {old.name} {verb} {said}, not by one {name} of int8: codes need static int8 activations there")
    graph.operators.remove(around[0])
    return found[0]


def to_unsigned(model: Any, codes: Place, entering: bool) -> Place:
    """A uint8 tensor of the same numbers, with a QUANTIZE between it and the int8 codes."""
    graph, old = codes.graph, codes.tensor.quantization
    place = Place(graph, tflite_file.add_tensor(graph, f"{codes.name}_uint8", codes.shape, 0, "uint8"))
    quantization = place.tensor.quantization = schema.QuantizationParametersT()
    quantization.scale, quantization.zeroPoint = old.scale, np.asarray(old.zeroPoint, np.int64) + SHIFT
    between(model, "QUANTIZE", place, codes, entering)
    return place


def to_float16(model: Any, old: Place, entering: bool) -> Place:
    graph = old.graph
    place = Place(graph, tflite_file.add_tensor(graph, f"{old.name}_float16", old.shape, 0, "float16"))
    between(model, "CAST", place, old, entering)
    return place


def between(model: Any, name: str, outer: Place, inner: Place, entering: bool) -> None:
    operator = schema.OperatorT()
    operator.opcodeIndex = tflite_file.operator_code(model, name)
    operator.inputs, operator.outputs = ([outer.index], [inner.index]) if entering else ([inner.index], [outer.index])
    outer.graph.operators.insert(0 if entering else len(outer.graph.operators), operator)
