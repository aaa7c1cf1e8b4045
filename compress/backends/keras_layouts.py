"""What every variable of a Keras model is: its name, its kind and the way between Keras's layout and the canonical one."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import keras
import numpy as np

from compress.errors import InputError

layers = keras.layers
RECURRENT_CELLS = (layers.LSTMCell, layers.GRUCell, layers.SimpleRNNCell, layers.ConvLSTM1D, layers.ConvLSTM2D, layers.ConvLSTM3D)
CONVOLUTIONS = (layers.Conv1D, layers.Conv2D, layers.Conv3D)
DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
SEPARABLE = (layers.SeparableConv1D, layers.SeparableConv2D)
TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)


@dataclass(frozen=True)
class Layout:
    """`canonical = keras.transpose(axes).reshape(shape)`."""

    kind: str
    axes: tuple[int, ...]
    shape: tuple[int, ...]

    def canonical(self, value: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(value.transpose(self.axes).reshape(self.shape))

    def keras(self, value: np.ndarray, keras_shape: tuple[int, ...]) -> np.ndarray:
        """The inverse of `canonical`."""
        value = np.asarray(value)
        if value.shape != self.shape:
            raise InputError(f"a value of shape {list(value.shape)} does not fit, expected {list(self.shape)}")
        return value.reshape([keras_shape[axis] for axis in self.axes]).transpose(np.argsort(self.axes))


@dataclass(frozen=True, eq=False)
class Slot:
    """A variable with the layer that owns it. `names` has one entry for every path that leads to it: shared layers have several."""

    names: tuple[str, ...]
    layer: keras.Layer
    variable: keras.Variable

    @property
    def layout(self) -> Layout:
        return layout_of(self.layer, self.variable)

    @property
    def value(self) -> np.ndarray:
        """As Keras lays it out; half floats widened."""
        value = self.variable.value.numpy()
        return value.astype(np.float32, copy=False) if self.variable.dtype in ("float16", "bfloat16", "float64") else value


def walk(layer: keras.Layer, path: str = "") -> Iterator[tuple[str, keras.Layer]]:
    """Every layer below (and with) this one with its path: the names of the layers that lead to it, without the model's own."""
    yield path, layer
    for child in layer._flatten_layers(include_self=False, recursive=False):
        yield from walk(child, f"{path}/{child.name}" if path else child.name)


def slots(model: keras.Model) -> dict[str, Slot]:
    """Every variable once, under its first name; two layers of one name get `#2`, `#3`, ... behind it."""
    found: dict[int, tuple[list[str], keras.Layer, keras.Variable]] = {}
    taken: dict[str, int] = {}
    for path, layer in walk(model):
        for variable in [*layer._trainable_variables, *layer._non_trainable_variables]:
            name = f"{path}/{variable.name}" if path else variable.name
            taken[name] = taken.get(name, 0) + 1
            name = name if taken[name] == 1 else f"{name}#{taken[name]}"
            found.setdefault(id(variable), ([], layer, variable))[0].append(name)
    return {names[0]: Slot(tuple(names), layer, variable) for names, layer, variable in found.values()}


def layout_of(layer: keras.Layer, variable: keras.Variable) -> Layout:
    shape, leaf = tuple(variable.shape), variable.name
    if variable.dtype in ("float32", "float16", "bfloat16", "float64") and "bias" not in leaf:
        found = kernel_layout(layer, leaf, shape)
        if found is not None:
            return found
    return Layout(other_kind(layer, variable), tuple(range(len(shape))), shape)


def kernel_layout(layer: keras.Layer, leaf: str, shape: tuple[int, ...]) -> Layout | None:
    """The layout of a layer's kernel, or None for what recipes do not compress."""
    rank, kernel = len(shape) - 2, shape[:-2]
    if isinstance(layer, layers.Embedding):
        reverse = leaf == "reverse_embeddings"  # an untied output head, [size, entries]
        return Layout("linear", (1, 0), shape[::-1]) if reverse else Layout("embedding", (0, 1), shape)
    if isinstance(layer, RECURRENT_CELLS) or type(layer).__name__.startswith("ConvLSTM"):
        return last_axes_first("recurrent", shape)
    if "kernel" not in leaf:
        return None
    if isinstance(layer, layers.Dense):
        return Layout("linear", (1, 0), shape[::-1])
    if isinstance(layer, layers.EinsumDense):
        return einsum_layout(layer.equation, shape)
    if isinstance(layer, DEPTHWISE) or (isinstance(layer, SEPARABLE) and leaf == "depthwise_kernel"):  # [*kernel, channels, multiplier]
        return Layout(f"depthwise_conv{rank}d", (rank, rank + 1, *range(rank)), (shape[-2] * shape[-1], 1, *kernel))
    if isinstance(layer, TRANSPOSED):  # [*kernel, out, in]
        return Layout(f"conv_transpose{rank}d", (rank, rank + 1, *range(rank)), (*shape[-2:], *kernel))
    if isinstance(layer, (*CONVOLUTIONS, *SEPARABLE)):  # [*kernel, in / groups, out]
        depthwise = getattr(layer, "groups", 1) > 1 and shape[-2] == 1
        return last_axes_first(f"{'depthwise_' if depthwise else ''}conv{rank}d", shape)
    return None


def last_axes_first(kind: str, shape: tuple[int, ...]) -> Layout:
    """[*kernel, in, out] to [out, in, *kernel]."""
    rank = len(shape) - 2
    axes = (rank + 1, rank, *range(rank))
    return Layout(kind, axes, tuple(shape[axis] for axis in axes))


def einsum_layout(equation: str, shape: tuple[int, ...]) -> Layout:
    """[out, in]: `out` joins the kernel's axes that the output keeps, `in` those that are summed over.

    Attention's query, key and value [in, heads, size] become [heads * size, in], its output [heads, size, out] becomes [out, heads * size].
    """
    operands, _, output = equation.replace(" ", "").partition("->")
    kernel = operands.partition(",")[2]
    outs = tuple(axis for axis, letter in enumerate(kernel) if letter in output)
    ins = tuple(axis for axis, letter in enumerate(kernel) if letter not in output)
    return Layout("linear", (*outs, *ins), (prod(shape[axis] for axis in outs), prod(shape[axis] for axis in ins)))


def other_kind(layer: keras.Layer, variable: keras.Variable) -> str:
    if "bias" in variable.name:
        return "bias"
    if "normalization" in type(layer).__name__.lower():
        return "norm"
    return "parameter" if variable.trainable else "buffer"


def unknown_layers(model: keras.Model) -> tuple[str, ...]:
    """Type and path of the layers whose own matrices recipes do not know."""
    found = {}
    for slot in slots(model).values():
        if slot.layout.kind in ("parameter", "buffer") and len(slot.variable.shape) >= 2:
            found[slot.names[0].rpartition("/")[0] or slot.names[0]] = type(slot.layer).__name__
    return tuple(f"{kind} {path}" for path, kind in found.items())
