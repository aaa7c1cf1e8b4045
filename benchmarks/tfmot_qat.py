"""A step of int8 quantization-aware training in Keras 3, beside tensorflow-model-optimization's quantize_model of the same digits network in tf_keras."""

import os
import sys
from pathlib import Path

from benchmarks.ratio import interleaved
from compress import open_model
from compress.formats import IntFormat, PerAxis, StaticActivations
from compress.network import COMPRESSIBLE
from compress.training import Budget, Constraint, Course, Training

STEPS, BATCH, ROUNDS = 100, 32, 7
sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "digits"))


def run():
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow_model_optimization as tfmot
    import tf_keras
    from data import train
    from model import untrained

    inputs, labels = train()
    images, labels = inputs["image"][: STEPS * BATCH], labels[: STEPS * BATCH]
    peer = tfmot.quantization.keras.quantize_model(twin(untrained(), tf_keras))
    peer.compile(tf_keras.optimizers.Adam(1e-3), tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    network = open_model(untrained(), None)
    int8 = Constraint(format=IntFormat(8, PerAxis(), "narrow"), activations=StaticActivations())
    constraints = {name: int8 for name, weight in network.weights().items() if weight.kind in COMPRESSIBLE}
    course = Course("benchmark", constraints, Budget(steps=STEPS, batch=BATCH), Training({"image": images}, labels))
    ours = trainer(network, course)

    def theirs():
        peer.fit(images, labels, BATCH, verbose=0)

    ours(), theirs()  # both trace their graphs
    ratio = interleaved(ours, theirs, ROUNDS)
    yield f"int8 QAT of the digits network in Keras: time of {STEPS} steps / TFMOT's", ratio, "at most 1.1", ratio.value <= 1.1


def trainer(network, course: Course):
    """Goes over the data again and again, with the graph of its first step."""
    from compress.backends import training_loop
    from compress.backends.keras_observing import wrapped
    from compress.backends.keras_training import Learner

    learner = Learner(network, course)

    def run():
        with wrapped(learner.wrappers):
            training_loop.train(learner, {})

    return run


def twin(model, tf_keras):
    """The functional Keras 3 model, layer by layer, in tf_keras: a chain of layers whose arguments both know."""
    known = ("filters", "kernel_size", "strides", "padding", "use_bias", "units", "activation", "pool_size", "name")
    image = x = tf_keras.Input(model.inputs[0].shape[1:])
    for layer in model.layers[1:]:
        x = getattr(tf_keras.layers, type(layer).__name__)(**{key: value for key, value in layer.get_config().items() if key in known})(x)
    return tf_keras.Model(image, x)
