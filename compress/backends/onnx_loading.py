"""ONNX files as graphs of one form: one opset, constants as initializers, fixed shapes, batch norms folded."""

from collections import Counter
from pathlib import Path

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes
import onnxscript.optimizer
from google.protobuf.message import DecodeError

from compress.backends.keras_in_torch import OPSET
from compress.backends.onnx_folding import fold_batch_norms
from compress.errors import InputError, OpenShapes
from compress.network import InputSpec
from compress.samples import Data, samples

LARGEST = 2**31 - 1  # bytes of one protobuf message, and so of a model with its external data
QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "MatMulInteger", "ConvInteger")
QUANTIZED += ("MatMulIntegerToFloat", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "QGemm", "MatMulNBits", "MatMulBnb4", "GatherBlockQuantized")


def load(path: Path, inputs: Data | None) -> tuple[ir.Model, tuple[InputSpec, ...], tuple[str, ...]]:
    """The graph, its inputs with a batch of 1, and notes. InputError says what is wrong with the file, or which axes only data can tell."""
    proto = whole(path)
    proto, notes = raised(proto, path)
    model = ir.from_proto(proto)
    for change in (passes.InlinePass(), passes.RemoveInitializersFromInputsPass(), passes.LiftConstantsToInitializersPass()):
        model = change(model).model
    specs = specs_of(model.graph, inputs, path)
    notes += fixed(model, specs)
    kernels = Counter(node.op_type for node in model.graph if node.op_type in QUANTIZED)
    if not kernels:
        onnxscript.optimizer.fold_constants_ir(model)  # of what an exporter left to be computed, shapes above all
        model = passes.LiftConstantsToInitializersPass()(model).model
        passes.RemoveUnusedNodesPass()(model)
        notes += fold_batch_norms(model)
    else:
        named = ", ".join(f"{count} {name}" for name, count in kernels.most_common())
        notes += (f"the file is quantized already ({named}): what those operators read stays as it is",)
    return model, specs, notes


def whole(path: Path) -> onnx.ModelProto:
    """The file with its external data, all of it from the file's own folder."""
    try:
        proto = onnx.load(str(path), load_external_data=False)
    except (DecodeError, ValueError) as error:
        raise InputError(f"{path} is not a whole ONNX file: {first_line(error)}") from error
    if not proto.HasField("graph") or not proto.opset_import:
        raise InputError(f"{path} holds no ONNX graph")
    size = path.stat().st_size + sum((path.parent / name).stat().st_size for name in external(proto) if (path.parent / name).is_file())
    if size > LARGEST:
        raise InputError(f"{path} takes {size:,} bytes with its external data, and ONNX files are written here up to 2 GB")
    try:
        onnx.load_external_data_for_model(proto, str(path.parent))
        onnx.checker.check_model(proto)
    except (onnx.checker.ValidationError, OSError, ValueError) as error:
        raise InputError(f"{path} is not a model that ONNX's checker takes: {first_line(error)}") from error
    return proto


def external(proto: onnx.ModelProto) -> set[str]:
    """Names of the files beside the model that hold its tensors."""
    tensors = [tensor for tensor in proto.graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
    return {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}


def raised(proto: onnx.ModelProto, path: Path) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """The model in the opset that the exporter writes; one in a later opset as it is."""
    opset = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), OPSET)
    if opset >= OPSET:
        return proto, ()
    try:
        return onnx.version_converter.convert_version(proto, OPSET), (f"opset {opset} was raised to {OPSET}",)
    except Exception as error:  # the converter's own class is not public
        raise InputError(f"{path}: opset {opset} cannot be raised to {OPSET}: {first_line(error)}. Export the model again with a newer opset") from error


def specs_of(graph: ir.Graph, inputs: Data | None, path: Path) -> tuple[InputSpec, ...]:
    """The inputs as samples give them; axes that the file leaves open are those of the first sample."""
    shapes = {value.name: [dim if isinstance(dim, int) else None for dim in value.shape or ()] for value in graph.inputs}
    for value in graph.inputs:
        given = shapes[value.name]
        if not given or given[0] not in (None, 1):
            raise InputError(f"{path}: input {value.name} {value.shape} has no batch axis that takes one sample: export it with a batch of 1, or an open one")
        given[0] = 1
    specs = tuple(InputSpec(value.name, tuple(shapes[value.name]), value.dtype.numpy().name) for value in graph.inputs)
    if inputs is None:
        unknown = [f"{value.name} {value.shape}" for value in graph.inputs if None in shapes[value.name]]
        if unknown:
            told = tuple((spec.name, spec.shape, spec.dtype) for spec in specs)
            raise OpenShapes(f"{path} leaves axes open ({', '.join(unknown)}): give `inputs` or `calibration`, whose first sample tells them", told)
        return specs
    sample = next(samples(inputs, specs))
    for spec in specs:
        found = sample[spec.name].shape
        if len(found) != len(spec.shape) or any(a not in (None, b) for a, b in zip(spec.shape, found, strict=True)):
            raise InputError(f"{path}: input {spec.name} takes {list(spec.shape)}, the data has {list(found)}")
    return tuple(InputSpec(spec.name, sample[spec.name].shape, spec.dtype) for spec in specs)


def fixed(model: ir.Model, specs: tuple[InputSpec, ...]) -> tuple[str, ...]:
    """Gives the graph the shapes of the inputs, in place."""
    opened = [f"{value.name} {value.shape}" for value in model.graph.inputs if any(not isinstance(dim, int) for dim in value.shape)]
    if not opened:
        return ()
    for value, spec in zip(model.graph.inputs, specs, strict=True):
        value.shape = ir.Shape(spec.shape)
    for value in [*(output for node in model.graph for output in node.outputs), *model.graph.outputs]:
        value.shape = None
    passes.ShapeInferencePass()(model)
    return (f"open axes ({', '.join(opened)}) are fixed at {', '.join(str(list(spec.shape)) for spec in specs)}",)


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
