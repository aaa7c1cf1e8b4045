"""Which operators of a .tflite file LiteRT's GPU and NNAPI delegates take, by their own published rules; the rest runs on the CPU.

Sources: tensorflow/lite/tools/versioning/gpu_compatibility.cc and tensorflow/lite/delegates/nnapi/nnapi_delegate.cc (`Validate`), TensorFlow 2.16.
The check that LiteRT's own analyzer offers, `gpu_compatibility`, finds every model compatible in the packages of 2026: it is compiled without these rules.
Rules about values of options (strides, crops, align_corners) are left out, and what a phone's driver then refuses shows on the phone only.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from exporters import tflite_file
from exporters.tflite_file import Place

TAKEN_BY_GPU = """
    ABS ADD ADD_N ATAN2 AVERAGE_POOL_2D BATCH_MATMUL CAST CEIL CONCATENATION CONV_2D COS CUMSUM DENSIFY DEPTHWISE_CONV_2D DEPTH_TO_SPACE DEQUANTIZE DIV
    DYNAMIC_UPDATE_SLICE ELU EMBEDDING_LOOKUP EQUAL EXP FLOOR FLOOR_DIV FLOOR_MOD FULLY_CONNECTED GATHER GELU GREATER GREATER_EQUAL HARD_SWISH LEAKY_RELU LESS
    LESS_EQUAL LOG LOGICAL_AND LOGISTIC LSTM MAXIMUM MAX_POOL_2D MEAN MINIMUM MIRROR_PAD MUL NEG NOT_EQUAL ONE_HOT PACK PAD PADV2 POW PRELU QUANTIZE REDUCE_MAX
    REDUCE_MIN REDUCE_PROD RELU RELU6 RELU_N1_TO_1 RESHAPE RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR RSQRT SELECT SELECT_V2 SIGN SIN SLICE SOFTMAX SPACE_TO_DEPTH
    SPLIT SPLIT_V SQRT SQUARE SQUARED_DIFFERENCE STABLEHLO_CLAMP STRIDED_SLICE SUB SUM TANH TILE TRANSPOSE TRANSPOSE_CONV"""
NNAPI = {  # by the Android API level that brought them
    27: """ADD AVERAGE_POOL_2D CONCATENATION CONV_2D DEPTHWISE_CONV_2D DEPTH_TO_SPACE DEQUANTIZE EMBEDDING_LOOKUP FLOOR FULLY_CONNECTED HARD_SWISH
    HASHTABLE_LOOKUP L2_NORMALIZATION L2_POOL_2D LOCAL_RESPONSE_NORMALIZATION LOGISTIC LSH_PROJECTION MAX_POOL_2D MUL RELU RELU6 RELU_N1_TO_1 RESHAPE
    RESIZE_BILINEAR RNN SOFTMAX SPACE_TO_DEPTH TANH""",
    28: "BATCH_TO_SPACE_ND DIV LSTM MEAN PAD PADV2 SPACE_TO_BATCH_ND SQUARED_DIFFERENCE SQUEEZE STRIDED_SLICE SUB SVDF TRANSPOSE",
    29: """ABS ARG_MAX ARG_MIN BIDIRECTIONAL_SEQUENCE_LSTM CAST EQUAL EXP EXPAND_DIMS GATHER GREATER GREATER_EQUAL LEAKY_RELU LESS LESS_EQUAL LOG LOGICAL_AND
    LOGICAL_NOT LOGICAL_OR LOG_SOFTMAX MAXIMUM MINIMUM NEG NOT_EQUAL POW PRELU QUANTIZE REDUCE_ANY REDUCE_MAX REDUCE_MIN REDUCE_PROD RESIZE_NEAREST_NEIGHBOR
    RSQRT SELECT SIN SLICE SPLIT SQRT SUM TILE TOPK_V2 TRANSPOSE_CONV UNIDIRECTIONAL_SEQUENCE_LSTM UNIDIRECTIONAL_SEQUENCE_RNN""",
    30: "DENSIFY ELU FILL PACK SPLIT_V",
}
LEVELS = {name: level for level, names in NNAPI.items() for name in names.split()}
NEWEST = max(NNAPI)

Ends = tuple[list[Place], list[Place]]


def coverage(model: Any) -> dict[str, str]:
    """What each delegate says to a ModelT's first graph: how many operators it takes, and which it leaves to the CPU, with the reason."""
    return {f"{name} delegate": words(list(refusals(model, rule)), len(model.subgraphs[0].operators or ())) for name, rule in DELEGATES.items()}


def words(left: list[str], count: int) -> str:
    said = f"takes {count - len(left)} of {count} operators"
    return f"{said}; leaves {', '.join(f'{times} {what}' for what, times in Counter(left).most_common())}" if left else said


def refusals(model: Any, rule: Callable[[str, Ends], str | None]) -> Iterator[str]:
    graph = model.subgraphs[0]
    for operator in graph.operators or ():
        name = tflite_file.operator_name(model, operator)
        ends = [Place(graph, i) for i in operator.inputs if i >= 0], [Place(graph, i) for i in operator.outputs]
        reason = rule(name, ends)
        if reason is not None:
            yield f"{name} ({reason})"


def on_gpu(name: str, ends: Ends) -> str | None:
    inputs, outputs = ends
    if name not in TAKEN_BY_GPU.split():
        return "no such operator"
    kinds, rank = [place.dtype for place in inputs], len(inputs[0].shape) if inputs else 0
    if name == "GATHER" and (kinds[0] == "int32" or kinds[1] != "int32" or len(inputs[1].shape) != 1):
        return "only from floats or codes, by one axis of int32 indices"
    if name == "CAST" and {kinds[0], outputs[0].dtype} - {"float32", "int32"} and "bool" not in (kinds[0], outputs[0].dtype):
        return f"not from {kinds[0]} to {outputs[0].dtype}"
    if name in ("SLICE", "STRIDED_SLICE", "PAD", "PADV2", "MIRROR_PAD") and rank not in (3, 4):
        return f"3 or 4 dimensions, not {rank}"
    if name == "DEQUANTIZE" and kinds[0] == "int16":
        return "not from int16"
    return None


def on_nnapi(name: str, ends: Ends) -> str | None:
    if name not in LEVELS:
        return "no such operator"
    inputs, outputs = ends
    moving = {place.dtype for place in (*inputs[:1], *outputs)}
    if moving & {"int16", "int64", "int4", "int2"}:
        return f"computes with no {', '.join(sorted(moving & {'int16', 'int64', 'int4', 'int2'}))}"
    few = [place.dtype for place in inputs[1:2] if place.dtype in ("int4", "int2")]
    if few:
        return f"no {few[0]} weights"
    if name in ("DIV", "ABS", "EXP", "LOG", "RSQRT", "POW", "SIN", "SQRT", "SUM", "REDUCE_PROD", "ELU", "LOG_SOFTMAX") and inputs[0].dtype != "float32":
        return f"float32 only, not {inputs[0].dtype}"
    if name == "SOFTMAX" and len(inputs[0].shape) > 4:
        return f"4 dimensions at most, not {len(inputs[0].shape)}"
    return None


DELEGATES = {"GPU": on_gpu, f"NNAPI (Android API {NEWEST})": on_nnapi}
