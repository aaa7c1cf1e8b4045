"""What the layers of a Keras model compute with: their calls wrapped for a while, and the inputs of layers as rows of their canonical weight."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from compress.backends.keras_layouts import Slot
from compress.errors import InputError
from compress.samples import Data, samples

if TYPE_CHECKING:
    from compress.backends.keras_network import KerasNetwork

See = Callable[[str, np.ndarray], None]
Wrapper = Callable[..., Any]
"""(the layer's own call, its arguments) -> its outputs."""


@contextmanager
def wrapped(wrappers: Iterable[tuple[keras.Layer, Wrapper]]) -> Iterator[None]:
    """Inside, the layers compute through their wrappers. Keras looks `call` up on the instance whenever a layer runs."""

    def around(call: Callable, wrapper: Wrapper) -> Callable:
        return lambda *args, **kwargs: wrapper(call, *args, **kwargs)

    touched = []
    try:
        for layer, wrapper in wrappers:
            touched.append((layer, vars(layer).get("call")))
            vars(layer)["call"] = around(layer.call, wrapper)
        yield
    finally:
        for layer, before in reversed(touched):
            vars(layer).pop("call")
            if before is not None:  # it was wrapped already
                vars(layer)["call"] = before


def observe(network: "KerasNetwork", names: Iterable[str], data: Data, see: See) -> None:
    """Calls see(name, float32 rows [n, in * kernel]) with what the named weights are multiplied by, for every sample and every call of their layers.

    Rows are in the canonical weight's order, so a layer computes rows @ weight.reshape(out, -1).T. Grouped convolutions give the rows of all their groups.
    InputError for a name that the model lacks and for layers that do not multiply rows by a matrix.
    """
    copy = network.with_weights({})  # wrapped layers are the copy's: the network itself never changes
    watched: dict[int, list[tuple[str, Slot]]] = {}
    for name in names:
        if name not in copy.slots:
            raise InputError(f"the model has no tensor {name!r}")
        slot = copy.slots[name]
        if slot.layout.kind not in ("linear", "conv1d", "conv2d", "conv3d"):
            raise InputError(f"{name}: inputs of a {slot.layout.kind} are not rows of a matrix product; linear layers and convolutions are")
        watched.setdefault(id(slot.layer), []).append((name, slot))

    def watching(tensors: list[tuple[str, Slot]]) -> Wrapper:
        def wrapper(call: Callable, first: Any, *args, **kwargs) -> Any:
            for name, slot in tensors:
                see(name, rows_of(slot, first))
            return call(first, *args, **kwargs)

        return wrapper

    with wrapped((tensors[0][1].layer, watching(tensors)) for tensors in watched.values()):
        for sample in samples(data, network.inputs):
            copy.run(sample)


def rows_of(slot: Slot, inputs: Any) -> np.ndarray:
    layer = slot.layer
    if isinstance(layer, keras.layers.EinsumDense):
        return einsum_rows(layer.equation, array(inputs), slot.names[0])
    if slot.layout.kind == "linear":
        found = array(inputs)
        return found.reshape(-1, found.shape[-1])
    if slot.variable.name == "pointwise_kernel":
        inputs = keras.ops.depthwise_conv(inputs, layer.depthwise_kernel, layer.strides, layer.padding, layer.data_format, layer.dilation_rate)
        return patches(array(inputs), layer, kernel=(1,) * layer.rank, strides=(1,) * layer.rank, dilation=(1,) * layer.rank)
    return patches(array(inputs), layer, layer.kernel_size, layer.strides, layer.dilation_rate)


def array(tensor: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(tensor, "float32")))


def einsum_rows(equation: str, inputs: np.ndarray, name: str) -> np.ndarray:
    """Inputs with the summed axes last, in the kernel's order."""
    operands, _, output = equation.replace(" ", "").partition("->")
    first, _, kernel = operands.partition(",")
    if any(letter in output for letter in kernel if letter in first):
        raise InputError(f"{name}: {equation} multiplies every position by a matrix of its own")
    summed = [letter for letter in kernel if letter not in output]
    free = inputs.ndim - len(first.replace("...", ""))
    places = [axis for letter in first.replace("...", "." * free) for axis in letter]
    last = [places.index(letter) for letter in summed]
    order = [axis for axis in range(inputs.ndim) if axis not in last] + last
    return inputs.transpose(order).reshape(-1, int(np.prod([inputs.shape[axis] for axis in last])))


def patches(inputs: np.ndarray, layer: keras.Layer, kernel: tuple, strides: tuple, dilation: tuple) -> np.ndarray:
    """[samples * positions * groups, in / groups * kernel] of [samples, *space, in], or of channels first."""
    rank = len(kernel)
    if layer.data_format == "channels_first":
        inputs = np.moveaxis(inputs, 1, -1)
    reach = [(size - 1) * step + 1 for size, step in zip(kernel, dilation, strict=True)]
    inputs = np.pad(inputs, [(0, 0), *paddings(layer.padding, inputs.shape[1:-1], reach, strides), (0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(inputs, reach, axis=tuple(range(1, rank + 1)))  # [samples, *positions, in, *reach]
    taken = (slice(None), *(slice(None, None, step) for step in strides), slice(None), *(slice(None, None, step) for step in dilation))
    groups = getattr(layer, "groups", 1)
    return windows[taken].reshape(-1, inputs.shape[-1] // groups * int(np.prod(kernel)))


def paddings(padding: str, space: tuple, reach: list[int], strides: tuple) -> list[tuple[int, int]]:
    """(before, after) of every axis, as TensorFlow pads: the odd one comes after."""
    if padding == "valid" or all(size == 1 for size in reach) and all(step == 1 for step in strides):
        return [(0, 0)] * len(reach)
    if padding == "causal":
        return [(reach[0] - 1, 0)]
    missing = [max((-(-size // step) - 1) * step + width - size, 0) for size, width, step in zip(space, reach, strides, strict=True)]
    return [(total // 2, total - total // 2) for total in missing]
