"""TFLite Metadata: what a model's card says, in the flatbuffer and the labels.txt that Android Studio and MediaPipe look for in a .tflite.

The tables are those of tflite-support's metadata_schema.fbs (M001). Its Python package wants a protobuf of 2022, so they are written here.
"""

import io
import zipfile
from collections.abc import Mapping
from typing import Any

import flatbuffers

from compress.card import Card
from exporters import tflite_file
from exporters.tflite_file import Place
from exporters.to_litert import INTERFACES

KEY = "TFLITE_METADATA"
LABELS = "labels.txt"
AXIS_LABELS = 2  # AssociatedFileType.TENSOR_AXIS_LABELS
NORMALIZATION = 1  # ProcessUnitOptions.NormalizationOptions
IMAGE = 2  # ContentProperties.ImageProperties
COLORS = {3: 1, 1: 2}  # channels to ColorSpaceType: RGB, GRAYSCALE

Fields = Mapping[int, Any]
"""A flatbuffer table: its fields by place in the schema. str: a string; int: a byte; tuple of floats or of tables: a vector; a mapping: a table."""


def attached(data: bytes, card: Card) -> bytes:
    """A .tflite file with its card."""
    model = tflite_file.parse(data, "the written model")
    model = tflite_file.with_metadata(model, KEY, metadata(card, model.subgraphs[0]))
    return with_labels(tflite_file.serialized(model), card.labels)


def metadata(card: Card, graph: Any) -> bytes:
    """The TFLITE_METADATA buffer for a file's first graph (SubGraphT)."""
    inputs, outputs = ([Place(graph, i) for i in places] for places in (graph.inputs, graph.outputs))
    first = next((place for place in inputs if place.dtype in INTERFACES), None)
    told = [of_input(card, place) if place is first else {0: place.name} for place in inputs]
    made = [{0: place.name, **({6: ({0: LABELS, 2: AXIS_LABELS},)} if card.labels and place is outputs[0] else {})} for place in outputs]
    builder = flatbuffers.Builder(1024)
    builder.Finish(written(builder, {1: card.description, 3: ({2: tuple(told), 3: tuple(made)},)}), file_identifier=b"M001")
    return bytes(builder.Output())


def of_input(card: Card, place: Place) -> Fields:
    shape, found = place.shape, {0: place.name}
    if len(shape) == 4 and shape[-1] in COLORS:  # NHWC
        found[3] = {0: IMAGE, 1: {0: COLORS[shape[-1]]}}
    if card.mean:
        found[4] = ({0: NORMALIZATION, 1: {0: card.mean, 1: card.std}},)
    return found


def written(builder: flatbuffers.Builder, fields: Fields) -> int:
    """Offset of a table; what it points at stands before it."""
    made = {slot: value if isinstance(value, int) else pointed_at(builder, value) for slot, value in fields.items()}
    builder.StartObject(1 + max(fields))
    for slot, value in made.items():
        if isinstance(fields[slot], int):
            builder.PrependByteSlot(slot, value, 0)
        else:
            builder.PrependUOffsetTRelativeSlot(slot, value, 0)
    return builder.EndObject()


def pointed_at(builder: flatbuffers.Builder, value: str | Fields | tuple) -> int:
    if isinstance(value, str):
        return builder.CreateString(value)
    if isinstance(value, Mapping):
        return written(builder, value)
    floats = isinstance(value[0], float)
    items = value if floats else [written(builder, fields) for fields in value]
    builder.StartVector(4, len(items), 4)
    for item in reversed(items):
        builder.PrependFloat32(item) if floats else builder.PrependUOffsetTRelative(item)
    return builder.EndVector()


def with_labels(data: bytes, labels: tuple[str, ...]) -> bytes:
    """The file with labels.txt behind it, as a ZIP archive; readers of the flatbuffer do not look so far."""
    if not labels:
        return data
    whole = io.BytesIO(data)
    with zipfile.ZipFile(whole, "a") as archive:
        archive.writestr(zipfile.ZipInfo(LABELS), "\n".join(labels) + "\n")
    return whole.getvalue()
