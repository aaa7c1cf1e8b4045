"""tf_keras layers inside TFMOT's wrappers, which hold what the core chose: which weights are 0, which share a value, what they are rounded to.

TFMOT's own choices stay unused: it ranks weights within a layer, moves them between clusters, rounds a Dense layer by one scale, and its `collab_opts` find
clusters by their values again. What a recipe says of all layers together, of channels and of codes would be lost.
"""

from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
from tensorflow_model_optimization.python.core.clustering.keras.cluster_config import CentroidInitialization
from tensorflow_model_optimization.python.core.clustering.keras.cluster_wrapper import ClusterWeights
from tensorflow_model_optimization.python.core.clustering.keras.clusterable_layer import ClusterableLayer
from tensorflow_model_optimization.python.core.clustering.keras.clustering_algorithm import ClusteringAlgorithm
from tensorflow_model_optimization.python.core.quantization.keras import quant_ops
from tensorflow_model_optimization.python.core.quantization.keras.quantize_config import QuantizeConfig
from tensorflow_model_optimization.python.core.quantization.keras.quantize_layer import QuantizeLayer
from tensorflow_model_optimization.python.core.quantization.keras.quantize_wrapper import QuantizeWrapperV2
from tensorflow_model_optimization.python.core.quantization.keras.quantizers import LastValueQuantizer, MovingAverageQuantizer
from tensorflow_model_optimization.python.core.sparsity.keras.pruning_schedule import PruningSchedule
from tensorflow_model_optimization.python.core.sparsity.keras.pruning_wrapper import PruneLowMagnitude

from compress.backends.keras_layouts import Slot
from compress.backends.keras_parts import clusters, in_keras
from compress.backends.keras_training import AVERAGE
from compress.formats import IntFormat, PerAxis, StaticActivations
from compress.training import Constraint

KINDS = ("linear", "conv1d", "conv2d", "conv3d", "depthwise_conv1d", "depthwise_conv2d", "embedding")  # output channels last in Keras's layout
ATTRIBUTES = ("kernel", "depthwise_kernel", "pointwise_kernel", "embeddings")  # of tf_keras layers


def unfit(slot: Slot, constraint: Constraint) -> str:
    """Why TFMOT cannot hold this of a weight, or an empty string."""
    fmt, kind = constraint.format, slot.layout.kind
    if any(given is not None and given.shape != slot.layout.shape for given in (constraint.mask, constraint.codes)):
        return "a mask or codes of another shape"
    if kind not in KINDS:
        return f"its wrappers hold no {kind} weights"
    if slot.variable.dtype != "float32":
        return f"its wrappers hold float32 weights, not {slot.variable.dtype}"
    if fmt is None:
        return ""
    if kind == "embedding":
        return "it rounds no embeddings"
    if not (isinstance(fmt, IntFormat) and fmt.bits == 8 and fmt.rule == "narrow" and (fmt.granularity.type in ("tensor", "axis"))):
        return f"it rounds to symmetric 8 bits per tensor or channel, not to {fmt}"
    if constraint.activations and not (isinstance(constraint.activations, StaticActivations) and constraint.activations.bits == 8):
        return f"it rounds layer inputs to 8 bits in a range that stays, not to {constraint.activations}"
    return ""


class Hold:
    """A weight as a function of what learns: the layer's variable, or centroids. All in Keras's layout.

    mask       0 or 1 where codes alone do not say what is pruned; None where nothing is
    codes      the centroid of each value; None where nothing is clustered
    centroids  the variable, once a wrapper is built
    """

    def __init__(self, slot: Slot, constraint: Constraint):
        self.shape = tuple(slot.variable.shape)
        self.mask = None if constraint.mask is None or constraint.zero else tf.constant(in_keras(slot, constraint.mask))
        self.codes = self.keep = self.centroids = None
        if constraint.codes is not None:
            start, self.keep, codes = clusters(slot, constraint)
            self.start = np.pad(start, (0, max(0, 2 - len(start))))  # TFMOT wants two clusters at least
            self.keep = 1.0 if self.keep is None else np.pad(self.keep, (0, len(self.start) - len(start)))
            self.codes = tf.reshape(tf.cast(codes, tf.int64), self.shape)

    def __call__(self, weight: Any) -> tf.Tensor:
        value = tf.convert_to_tensor(weight) if self.codes is None else tf.gather(self.centroids * self.keep, self.codes)
        return value if self.mask is None else value * self.mask


class Unscheduled(PruningSchedule):
    """Masks change from outside: the core says when and which."""

    def __call__(self, step: Any) -> tuple[bool, float]:
        return tf.constant(False), tf.constant(0.0)

    def get_config(self) -> dict[str, Any]:
        return {}


class Members(ClusteringAlgorithm):
    """Clusters whose members stay; their centroids learn."""

    def __init__(self, hold: Hold, clusters_centroids: tf.Variable, **options: Any):
        super().__init__(clusters_centroids, **options)
        self.hold = hold
        hold.centroids = clusters_centroids
        clusters_centroids.assign(hold.start)

    def get_pulling_indices(self, weight: Any, centroids: Any = None) -> tf.Tensor:
        return self.hold.codes

    def get_clustered_weight(self, pulling_indices: Any, original_weight: Any) -> tf.Tensor:
        return self.hold(original_weight)


class Rounding(LastValueQuantizer):
    """The held weight, rounded to symmetric 8 bits by one scale for the tensor or for each of its `channels`."""

    def __init__(self, hold: Hold, per_axis: bool, channels: int):
        super().__init__(8, per_axis, symmetric=True, narrow_range=True)
        self.hold, self.channels = hold, channels

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        if self.hold.codes is not None:
            start = tf_keras.initializers.Constant(self.hold.start)
            self.hold.centroids = layer.add_weight(f"{name}_centroids", shape=self.hold.start.shape, initializer=start, trainable=True)
        return super().build([self.channels], name, layer)

    def __call__(self, inputs: Any, training: bool, weights: dict[str, Any], **options: Any) -> tf.Tensor:
        flat = tf.reshape(self.hold(inputs), [-1, self.channels])
        return tf.reshape(super().__call__(flat, training, weights, **options), self.hold.shape)


class Ranges(MovingAverageQuantizer):
    """Layer inputs, rounded to 8 bits in a moving average of their extremes, which starts with those of the first batch."""

    def __init__(self):
        super().__init__(8, per_axis=False, symmetric=False, narrow_range=False)

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        self.seen = layer.add_weight(f"{name}_seen", initializer="zeros", trainable=False)
        return super().build(tensor_shape, name, layer)

    def __call__(self, inputs: Any, training: bool, weights: dict[str, Any], **options: Any) -> tf.Tensor:
        decay = AVERAGE * self.seen
        if training:
            self.seen.assign(1.0)
        return quant_ops.MovingAvgQuantize(inputs, weights["min_var"], weights["max_var"], ema_decay=decay, is_training=training)


class Weights(QuantizeConfig):
    """Rounds one weight of a layer and nothing else."""

    def __init__(self, attribute: str, quantizer: Rounding):
        self.attribute, self.quantizer = attribute, quantizer

    def get_weights_and_quantizers(self, layer: Any) -> list:
        return [(getattr(layer, self.attribute), self.quantizer)]

    def set_quantize_weights(self, layer: Any, quantize_weights: list) -> None:
        setattr(layer, self.attribute, quantize_weights[0])

    def get_activations_and_quantizers(self, layer: Any) -> list:
        return []

    def set_quantize_activations(self, layer: Any, quantize_activations: list) -> None:
        pass

    def get_output_quantizers(self, layer: Any) -> list:
        return []

    def get_config(self) -> dict[str, Any]:
        return {}


def pruned(layer: Any, attribute: str, hold: Hold, constraint: Constraint) -> Any:
    """The layer, built, inside PruneLowMagnitude with the mask of the constraint."""
    layer.get_prunable_weights = lambda: [getattr(layer, attribute)]
    wrapper = PruneLowMagnitude(layer, Unscheduled())
    wrapper.build(None)
    mask = wrapper.pruning_vars[0][1]
    mask.assign(hold.mask)
    hold.mask = mask
    wrapper.pruning_step.assign(1)  # what TFMOT's callback does before the first step
    return wrapper


def clustered(layer: Any, attribute: str, hold: Hold, constraint: Constraint) -> Any:
    """The layer, built, inside ClusterWeights with the members of the constraint."""
    known = {
        "get_clusterable_weights": lambda self: [(attribute, getattr(self, attribute))],
        "get_clusterable_algorithm": lambda self, name: partial(Members, hold),
    }
    layer.__class__ = type(type(layer).__name__, (type(layer), ClusterableLayer), known)
    return ClusterWeights(layer, len(hold.start), CentroidInitialization.LINEAR)


def quantized(layer: Any, attribute: str, hold: Hold, constraint: Constraint, channels: int) -> Any:
    """The layer, built, inside QuantizeWrapperV2, with its inputs rounded before."""
    rounding = Rounding(hold, isinstance(constraint.format.granularity, PerAxis), channels)
    wrapper = QuantizeWrapperV2(layer, Weights(attribute, rounding))
    inputs = QuantizeLayer(Ranges() if constraint.activations else None, name=f"{layer.name}.inputs")
    return lambda x: wrapper(inputs(x))
