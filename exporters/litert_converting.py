"""What TFLiteConverter does to a Keras model, and which of its constants hold which weight."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from compress.errors import ExportError, Refused
from compress.formats import FloatFormat, StaticActivations
from compress.network import COMPRESSIBLE, Weight
from compress.pipeline import Compressed
from compress.samples import samples
from exporters import METADATA_KEY, tflite_file
from exporters.litert_converter import OWN_SCALES
from exporters.litert_float import first_line, keras_converter, positions
from exporters.litert_matching import Layout, orders
from exporters.litert_reading import told

LEFT = "TFLiteConverter left it so; in its dynamic mode it leaves weights of less than 1,024 elements in float"


def write(small: Compressed, path: Path) -> tuple[str, ...]:
    """Writes the file that TFLiteConverter makes of the network. ExportError where nothing was quantized."""
    converter = keras_converter(small.network)
    configure(converter, small)
    try:
        data = converter.convert()
    except Exception as error:
        raise Refused(f"TFLiteConverter cannot convert this model with recipe {small.recipe.name!r}: {first_line(error)}") from error
    model = tflite_file.parse(data, "the converted model")
    layers = {name: weight for name, weight in small.network.weights().items() if weight.kind in COMPRESSIBLE}
    kept = {place.name: place.dtype for place in tflite_file.constants(model)}
    if small.plan.compressed and not {"int8", "float16"} & set(kept.values()):
        raise ExportError(f"TFLiteConverter quantized nothing with recipe {small.recipe.name!r}: every weight is still float32")
    layouts = {name: found for name, found in match_quantized(model, layers).items() if found}
    reasons = {name: LEFT if kept[found[0].file_name] == "float32" else OWN_SCALES for name, found in layouts.items() if name in small.plan.compressed}
    about = told(small, "litert-converter", layouts, positions(model, len(small.network.inputs)), reasons)
    path.write_bytes(tflite_file.serialized(tflite_file.with_metadata(model, METADATA_KEY, about)))
    return (OWN_SCALES,) if "int8" in kept.values() else ()


def configure(converter: Any, small: Compressed) -> None:
    """Sets the converter's mode: float32, float16, dynamic or static, for the whole model at once."""
    import tensorflow as tf

    found = small.plan.compressed.values()
    if not found:
        return
    left = [d.name for d in small.plan.decisions if d.kind in COMPRESSIBLE and d.format is None]
    half = {isinstance(d.format, FloatFormat) for d in found}
    static = {d.activations for d in found if isinstance(d.activations, StaticActivations)}
    if left or len(half) > 1 or len(static) > 1:
        which = f"leaves out {', '.join(left)}" if left else "mixes formats"
        raise Refused(f"TFLiteConverter treats all layers alike; recipe {small.recipe.name!r} {which}")
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if half == {True}:
        converter.target_spec.supported_types = [tf.float16]
    elif static:
        kinds = {8: tf.lite.OpsSet.TFLITE_BUILTINS_INT8, 16: tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8}
        converter.target_spec.supported_ops = [kinds[static.pop().bits], tf.lite.OpsSet.TFLITE_BUILTINS]
        converter.representative_dataset = lambda: ([*sample.values()] for sample in samples(small.calibration, small.network.inputs))


def match_quantized(model: Any, weights: Mapping[str, Weight]) -> dict[str, tuple[Layout, ...]]:
    """The constants that hold a weight's values but for the rounding; those that the converter changed further keep the file's names."""
    stored = [(place, values, bound) for place in tflite_file.constants(model) if (decoded := dequantized(model, place)) for values, bound in [decoded]]
    return {name: tuple(layout for place, values, bound in stored if (layout := close(weight.value, place, values, bound))) for name, weight in weights.items()}


def dequantized(model: Any, place: tflite_file.Place) -> tuple[np.ndarray, np.ndarray] | None:
    """float32 values of a constant and the error that rounding may have made in each; None for what is no weight."""
    if place.dtype not in ("float32", "float16", "int8"):
        return None
    codes, scales = tflite_file.values(model, place), tflite_file.scales_of(place)
    if place.dtype != "int8":
        values = codes.astype(np.float32)
        return values, np.abs(values) * (2**-11 if place.dtype == "float16" else 1e-5) + 1e-7
    if scales is None:
        return None
    shape = [1] * codes.ndim
    if scales.size > 1:
        shape[place.tensor.quantization.quantizedDimension] = scales.size
    steps = scales.reshape(shape)
    return codes * steps, np.broadcast_to(steps * 0.51, codes.shape)  # half a step, and float32's own rounding


def close(value: np.ndarray, place: tflite_file.Place, values: np.ndarray, bound: np.ndarray) -> Layout | None:
    for order in orders(value.shape, place.shape):
        layout = Layout(place.name, place.shape, order, value.shape)
        if np.all(np.abs(layout.to_file(value) - values) <= bound):
            return layout
    return None
