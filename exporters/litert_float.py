"""A network as a float32 .tflite, converted once and kept: all recipes of a network start from the same file."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from compress.errors import Refused
from compress.network import COMPRESSIBLE, Network
from exporters import tflite_file
from exporters.litert_matching import Layout, match
from exporters.litert_unfolding import flatten_biases, restore_biases, unfold

LONGEST_NAME = 40  # characters of a tensor's name that are worth their bytes


@dataclass(frozen=True, eq=False)
class FloatFile:
    """data as the converter wrote it; unfolded, never changed: with the weights' own values where it had folded factors into them.

    unclear: weights of linear layers, by the file's names, in whose bias the converter folded more than was undone.
    inputs and outputs: for each of the network's own, its position among those of the file; -1 where the converter dropped it as unused.
    """

    data: bytes
    unfolded: Any  # ModelT
    layouts: Mapping[str, tuple[Layout, ...]]  # of every layer weight that was found, by the plan's name
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    unclear: frozenset[str] = frozenset()
    converted: bool = True  # False for a file of the user's own

    def as_converted(self) -> Any:
        """A ModelT of what the converter wrote, folded weights and all."""
        return parsed(self.data, len(self.inputs)) if self.converted else tflite_file.parse(self.data, "the model")


CONVERTED: WeakKeyDictionary[Network, FloatFile] = WeakKeyDictionary()


def float_file(network: Network) -> FloatFile:
    """The network's float32 file. Refused where the converter cannot express the model."""
    if network not in CONVERTED:
        CONVERTED[network] = convert(network)
    return CONVERTED[network]


def of_file(network: Network) -> FloatFile:
    """A .tflite network's own file: nothing was converted, so nothing was folded or renamed."""
    model = tflite_file.parse(network.model, "the model")
    layouts = match(model, {name: weight for name, weight in network.weights().items() if weight.kind in COMPRESSIBLE})
    graph = model.subgraphs[0]
    return FloatFile(network.model, model, layouts, tuple(range(len(graph.inputs))), tuple(range(len(graph.outputs))), converted=False)


def convert(network: Network) -> FloatFile:
    if network.framework == "litert":
        return of_file(network)
    data = {"pytorch": from_pytorch, "keras": from_keras, "onnx": from_onnx}[network.framework](network)
    model = parsed(data, len(network.inputs))
    weights = network.weights()
    layers = {name: weight for name, weight in weights.items() if weight.kind in COMPRESSIBLE}
    layouts = match(model, layers)
    order = positions(model, len(network.inputs))
    taken = [layout.file_name for found in layouts.values() for layout in found]
    flatten_biases(model)
    missing = unfold(model, {name: layers[name] for name, found in layouts.items() if not found}, taken)
    layouts |= missing
    found = [(layout, layers[name].value) for name, places in layouts.items() for layout in places]
    unclear = restore_biases(model, found, [weight.value for weight in weights.values() if weight.value.ndim == 1])
    tflite_file.empty_unused(model)
    return FloatFile(data, model, layouts, *order, unclear)


def parsed(data: bytes, inputs: int) -> Any:
    """The ModelT of a converted network with its own `inputs` only."""
    model = tflite_file.parse(data, "the converted model")
    drop_input(model, inputs)
    shorten_names(model)
    return model


def shorten_names(model: Any) -> None:
    """Keeps the end of long names: converters join the paths of all modules that a tensor went through, 300 kB in a MiniLM."""
    for number, place in enumerate(tflite_file.all_tensors(model)):
        if len(place.name) > LONGEST_NAME:
            ends = re.findall(r"[^/;.]*[A-Za-z][^/;.]*", place.name)
            place.tensor.name = f"{ends[-1][:LONGEST_NAME] if ends else ''}#{number}".encode()


def from_pytorch(network: Network) -> bytes:
    import litert_torch
    import torch

    from compress.backends.pytorch_network import flatten

    cell = []

    class Flat(torch.nn.Module):
        """The model with its outputs as one tuple, so that their order survives, and one more input: the zero of `keep_lookups`."""

        def __init__(self):
            super().__init__()
            self.model = network.model

        def forward(self, *inputs):
            cell[:] = inputs[-1:]
            return tuple(flatten(self.model(*inputs[:-1])))

    zero = torch.zeros((), dtype=torch.int32)
    with quiet_litert_torch(), keep_lookups(network.model, cell):
        try:
            return litert_torch.convert(Flat().eval(), (*network.example, zero)).model_content()
        except Exception as error:
            raise Refused(f"litert-torch cannot convert this {type(network.model).__name__}: {first_line(error)}") from error


def from_onnx(network: Network) -> bytes:
    from compress.backends.onnx_in_torch import in_torch

    return from_pytorch(in_torch(network))


@contextmanager
def keep_lookups(model: Any, cell: list) -> Iterator[None]:
    """Adds an input that the converter takes for unknown to the indices of every embedding.

    Lookups of constant indices, as position embeddings have, would be folded otherwise, and the table would be gone.
    """
    import torch

    hooks = [
        module.register_forward_pre_hook(lambda _, given: (given[0] + cell[0].to(given[0].dtype), *given[1:]))
        for module in model.modules()
        if isinstance(module, torch.nn.Embedding)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def drop_input(model: Any, position: int) -> None:
    """Removes the scalar input `args_<position>`, which is zero, where there is one: additions of it go, other uses read a constant."""
    graph, signature = model.subgraphs[0], model.signatureDefs[0]
    for entry in [entry for entry in signature.inputs if number(entry.name) == position]:
        zero = entry.tensorIndex
        for operator in [op for op in tflite_file.consumers(tflite_file.Place(graph, zero)) if tflite_file.operator_name(model, op) == "ADD"]:
            kept = next(i for i in operator.inputs if i != zero)
            for reader in graph.operators:
                reader.inputs = [kept if i == operator.outputs[0] else i for i in reader.inputs]
            graph.operators.remove(operator)
        graph.tensors[zero].buffer = tflite_file.add_buffer(model, np.zeros((), np.int32))
        graph.inputs = [i for i in graph.inputs if i != zero]
        signature.inputs.remove(entry)


@contextmanager
def quiet_litert_torch() -> Iterator[None]:
    """No progress on the terminal, and MultiheadAttention in its plain form, which alone has an export."""
    import litert_torch
    import torch

    shown, fast = litert_torch.config.show_progress, torch.backends.mha.get_fastpath_enabled()
    litert_torch.config.show_progress = False
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        litert_torch.config.show_progress = shown
        torch.backends.mha.set_fastpath_enabled(fast)


def from_keras(network: Network) -> bytes:
    return keras_converter(network).convert()


def keras_converter(network: Network) -> Any:
    """A TFLiteConverter for the network with a batch of 1, inputs `args_0`... and outputs `output_0`... in the network's order."""
    import keras
    import tensorflow as tf

    specs = [tf.TensorSpec(spec.shape, spec.dtype, name=f"args_{i}") for i, spec in enumerate(network.inputs)]

    @tf.function(input_signature=specs, autograph=False)
    def call(*tensors):
        return {f"output_{i}": tensor for i, tensor in enumerate(keras.tree.flatten(network.call(network.model, list(tensors))))}

    concrete = call.get_concrete_function()
    owner = tf.Module()  # the converter saves this object first, so it must own every variable
    owner.kept, owner.call = list(concrete.variables), call
    return tf.lite.TFLiteConverter.from_concrete_functions([concrete], owner)


def positions(model: Any, inputs: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Positions of the network's inputs and outputs in the file, from the numbers that end the signature's names."""
    graph, signature = model.subgraphs[0], model.signatureDefs[0]
    given = {number(entry.name): list(graph.inputs).index(entry.tensorIndex) for entry in signature.inputs}
    made = sorted((number(entry.name), list(graph.outputs).index(entry.tensorIndex)) for entry in signature.outputs)
    return tuple(given.get(i, -1) for i in range(inputs)), tuple(position for _, position in made)


def number(name: bytes | str) -> int:
    return int(re.search(r"(\d+)$", tflite_file.text(name))[1])


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
