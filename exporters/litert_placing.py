"""Places a plan's operators with litert-quantizer, which writes the core's own codes and scales instead of fitting its own."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np

from compress.errors import ExportError, Refused
from compress.formats import FloatFormat, PerAxis, PerGroup, StaticActivations
from exporters import tflite_file
from exporters.litert_calibration import Calibrated
from exporters.litert_given import Given

ALGORITHM = "compresskit"  # the name under which litert-quantizer asks for given numbers
WEIGHT_INPUT = {"FULLY_CONNECTED": 1, "CONV_2D": 1, "DEPTHWISE_CONV_2D": 1, "TRANSPOSE_CONV": 1, "EMBEDDING_LOOKUP": 1, "BATCH_MATMUL": 1}
SINGLE_CHANNEL_AXIS = {"DEPTHWISE_CONV_2D": 3}  # of an operator's weight with one output channel; 0 elsewhere
BETTER_IN_FLOAT = ("DIV", "EXP", "GELU", "LOG", "POW", "RSQRT", "SOFTMAX", "SQRT", "SQUARED_DIFFERENCE", "SUM")
"""Curved or wide in range, as in layer norms: in 8 bits they cost accuracy, and XNNPACK computes them in float only."""


def quantize(model: Any, given: Mapping[str, Given], calibrated: Calibrated | None) -> tuple[bytes, tuple[str, ...]]:
    """The file with the given numbers, by the file's tensor names, and notes on what stayed in float.

    Where there are calibrated activations, operators without weights compute in them as well.
    """
    from litert_quantizer import model_modifier

    rules = Rules(model, given, calibrated)
    statistics = {} if calibrated is None else calibrated.statistics()
    parameters = generator(given)(model).generate_quantization_parameters(rules, statistics, enable_progress_bar=False)
    data = model_modifier.ModelModifier(model).modify_model(parameters, enable_progress_bar=False)
    return bytes(data), rules.notes()


class Rules:
    """Stands in for litert-quantizer's recipe: says how each operator computes, by the names of its outputs."""

    def __init__(self, model: Any, given: Mapping[str, Given], calibrated: Calibrated | None):
        from litert_quantizer.utils import tfl_flatbuffer_utils

        self.model, self.given, self.calibrated = model, given, calibrated
        self.configs: dict[str, Any] = {}
        self.left: list[tuple[str, str]] = []  # why an operator computes in float, and its name
        for graph in model.subgraphs:
            for operator, config in self.graph_configs(graph):
                self.configs[tfl_flatbuffer_utils.get_op_scope(operator, graph.tensors)] = config

    def need_calibration(self) -> bool:
        return False  # the ranges come with the call

    def get_quantization_configs(self, name: Any, scope: str) -> tuple[str, Any]:
        from litert_quantizer import qtyping

        config = self.configs.get(scope) if name not in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT) else None
        if config is None:
            return "no_quantize", qtyping.OpQuantizationConfig()
        register()
        return ALGORITHM, config

    def graph_configs(self, graph: Any) -> Iterator[tuple[Any, Any]]:
        """Every operator of a graph with its configuration, None where it computes in float."""
        weighted, plain, reasons = [], [], {}
        for operator in graph.operators or ():
            (weighted if self.weight(graph, operator) else plain).append(operator)
        yield from ((operator, self.weighted_config(graph, operator)) for operator in weighted)
        for operator in plain:
            reasons[id(operator)] = self.reason_for_float(graph, operator)
        if self.calibrated is not None:
            self.spread(graph, plain, reasons)
            config = integer_config(8, PerAxis(), self.calibrated.activations)
        for operator in plain:
            reason = reasons[id(operator)]
            if reason:
                self.left.append((reason, tflite_file.operator_name(self.model, operator)))
            yield operator, config if reason is None else None

    def constant(self, place: tflite_file.Place) -> bool:
        return self.model.buffers[place.tensor.buffer].data is not None

    def floats(self, graph: Any, indices: Iterable[int]) -> list[tflite_file.Place]:
        return [place for i in indices if i >= 0 and (place := tflite_file.Place(graph, i)).dtype == "float32"]

    def weight(self, graph: Any, operator: Any) -> tflite_file.Place | None:
        """The constant weight of an operator that has one."""
        position = WEIGHT_INPUT.get(tflite_file.operator_name(self.model, operator))
        place = None if position is None else tflite_file.Place(graph, operator.inputs[position])
        return place if place and self.constant(place) else None

    def weighted_config(self, graph: Any, operator: Any) -> Any:
        given = self.given.get(self.weight(graph, operator).name)
        config = weight_config(tflite_file.operator_name(self.model, operator), given) if given else None
        if config is not None and config.activation_tensor_config is not None and not self.seen(self.floats(graph, [*operator.inputs, *operator.outputs])):
            raise Refused(f"{given.layout.file_name}: LiteRT shows no activations inside a loop, so they have no static ranges; use dynamic ones")
        return config

    def seen(self, tensors: list[tflite_file.Place]) -> bool:
        """Whether calibration saw every float tensor of an operator: it cannot look into the subgraphs of loops."""
        return all(place.name in self.calibrated.ranges or self.constant(place) for place in tensors)

    def reason_for_float(self, graph: Any, operator: Any) -> str | None:
        """Why an operator without weights computes in float: empty where it goes without saying, None where it need not."""
        name = tflite_file.operator_name(self.model, operator)
        tensors = self.floats(graph, [*operator.inputs, *operator.outputs])
        if any(place.name in self.given and self.given[place.name].activations for place in tensors):
            return "no integer form with a weight"
        if self.calibrated is None or not tensors:
            return ""
        if any(place.name in self.given for place in tensors):
            return ""
        if name in BETTER_IN_FLOAT:
            return "more exact in float"
        if any(place.name in self.calibrated.masks for place in tensors):
            return "masked values"
        if not self.seen(tensors):
            return "in a loop"
        return None if supported(name, integer_config(8, PerAxis(), self.calibrated.activations)) else f"no int{self.calibrated.activations.bits} form"

    def spread(self, graph: Any, plain: list[Any], reasons: dict[int, str | None]) -> None:
        """Operators without weights that read what another computed in float, or are read by such ones only, compute in float as well."""
        makers = {index: operator for operator in graph.operators for index in operator.outputs}
        readers = {index: [op for op in graph.operators if index in op.inputs] for index in makers}
        floats = {id(operator) for operator in plain if reasons[id(operator)] is not None}
        floats |= {id(operator) for operator in graph.operators if tflite_file.operator_name(self.model, operator) == "EMBEDDING_LOOKUP"}
        while True:
            found = [
                operator
                for operator in plain
                if id(operator) not in floats
                and (
                    any(id(makers.get(place.index)) in floats for place in self.floats(graph, operator.inputs))
                    or all(readers[index] and all(id(reader) in floats for reader in readers[index]) for index in operator.outputs)
                )
            ]
            if not found:
                return
            reasons |= {id(operator): "between float operators" for operator in found}
            floats |= {id(operator) for operator in found}

    def notes(self) -> tuple[str, ...]:
        notes = []
        for reason in sorted({reason for reason, _ in self.left}):
            names = Counter(name for why, name in self.left if why == reason)
            notes.append(f"operators that compute in float, {reason}: {', '.join(f'{count} {name}' for name, count in names.most_common())}")
        return tuple(notes)


def weight_config(name: str, given: Given) -> Any:
    """How a weight's operator computes: None in float, with the weight expanded; otherwise with the integer codes."""
    fmt, activations = given.encoded.format, given.activations
    if given.packed or isinstance(fmt, FloatFormat):
        return None
    if name == "EMBEDDING_LOOKUP":
        if given.encoded.zero_points is not None:
            return None  # its kernel knows no zero points
        activations = None  # it has no activations to quantize: the rows come out as floats
    elif activations is None and not isinstance(fmt.granularity, PerGroup):
        return None
    static = activations if isinstance(activations, StaticActivations) else None
    config = integer_config(fmt.bits, fmt.granularity, static, given, SINGLE_CHANNEL_AXIS.get(name, 0))
    if not supported(name, config):
        raise ExportError(f"{given.layout.file_name}: LiteRT has no {name} kernel for {fmt} with {activations or 'float activations'}")
    return config


def integer_config(bits: int, granularity: Any, activations: StaticActivations | None, given: Given | None = None, axis: int = 0) -> Any:
    from litert_quantizer import qtyping

    kind = qtyping.QuantGranularity
    named = f"BLOCKWISE_{granularity.size}" if isinstance(granularity, PerGroup) else "CHANNELWISE" if isinstance(granularity, PerAxis) else "TENSORWISE"
    numbers = {} if given is None else {"given": given, "axis": axis}
    return qtyping.OpQuantizationConfig(
        activation_tensor_config=None if activations is None else qtyping.TensorQuantizationConfig(activations.bits, symmetric=activations.bits == 16),
        weight_tensor_config=qtyping.TensorQuantizationConfig(bits, granularity=kind[named], algorithm_params=numbers),
        compute_precision=qtyping.ComputePrecision.INTEGER,
    )


def supported(name: str, config: Any) -> bool:
    """Whether litert-quantizer's policy, which follows LiteRT's kernels, knows this operator in this form."""
    from litert_quantizer import algorithm_manager

    try:
        algorithm_manager.check_op_quantization_config("min_max_uniform_quantize", operation(name), config)
    except ValueError:  # its only way to say no, also for operators that it does not know
        return False
    return True


def operation(name: str) -> Any:
    from litert_quantizer import qtyping

    return qtyping.TFLOperationName("CONV_2D_TRANSPOSE" if name == "TRANSPOSE_CONV" else name)


@cache
def register() -> None:
    """Teaches litert-quantizer the algorithm whose weights are given and whose activations follow from given ranges."""
    from litert_quantizer import algorithm_manager as manager
    from litert_quantizer.algorithms.uniform_quantize import naive_min_max_quantize as minmax

    def parameters(op_info: Any, config: Any, content: np.ndarray | None = None, statistics: dict | None = None) -> Any:
        given = config.algorithm_params.get("given")
        if given is None or content is None:
            return minmax.get_tensor_quant_params(op_info, config, content, statistics)
        return given.parameters(config.algorithm_params["axis"])

    for name, materialize in manager.MIN_MAX_OP_NAME_MATERIALIZE_FUNC_DICT.items():
        manager.register_quantized_op(ALGORITHM, name, minmax.init_qsvs, minmax.min_max_calibrate, partial(materialize, parameters))


def generator(given: Mapping[str, Given]) -> type:
    """litert-quantizer's parameter generator, with the weights of float operators stored small and expanded in front of them."""
    from litert_quantizer import params_generator, qtyping

    class Generator(params_generator.ParamsGenerator):
        def _get_params_for_no_quant_op(self, index: int, operator: Any, tensors: list) -> list:
            return [expanded(p) for p in super()._get_params_for_no_quant_op(index, operator, tensors)]

    def expanded(found: Any) -> Any:
        if found.tensor_name not in given or given[found.tensor_name].packed or not found.consumers:
            return found
        how = {"transformations": [qtyping.QuantTransformation.ADD_DEQUANTIZE], "parameters": given[found.tensor_name].parameters()}
        return replace(found, consumers=[replace(consumer, **how) for consumer in found.consumers])

    return Generator
