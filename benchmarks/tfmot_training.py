"""The digits network in tf_keras, trained by built-in recipes and by TFMOT used by hand on the same terms: a step's time, and accuracy."""

import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

import exporters
from benchmarks.ratio import Ratio, of_pairs, timed
from compress.pipeline import compress
from compress.training import Training
from evaluators.runtimes import litert
from evaluators.statistics import mcnemar

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "digits"))

BATCH, RATE = 32, 1e-3
BLOCKS, BLOCK = 11, 10  # steps of a block: masks change once in it, in both
EPOCHS = {"prune80": 4, "cluster16": 1, "qat-int8": 1}  # of the built-in recipes


class Enough(Exception):
    """Ends a training of which only the first steps are timed."""


def by_hand(recipe: str, model: Any, steps: int) -> Any:
    """The model as TFMOT's guides prepare it, compiled with our optimizer and decay."""
    import tensorflow_model_optimization as tfmot
    import tf_keras

    copy = tf_keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    pruning, clustering = tfmot.sparsity.keras, tfmot.clustering.keras
    prepared = {
        "prune80": lambda: pruning.prune_low_magnitude(copy, pruning.PolynomialDecay(0.0, 0.8, 0, steps // 2, frequency=BLOCK)),
        "cluster16": lambda: clustering.cluster_weights(copy, 16, clustering.CentroidInitialization.KMEANS_PLUS_PLUS),
        "qat-int8": lambda: tfmot.quantization.keras.quantize_model(copy),
    }[recipe]()
    rate = tf_keras.optimizers.schedules.CosineDecay(RATE, steps)
    prepared.compile(tf_keras.optimizers.legacy.Adam(rate), tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return prepared


def batches(inputs: dict[str, np.ndarray], labels: np.ndarray) -> Any:
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices((inputs["image"], labels)).shuffle(len(labels), seed=0).batch(BATCH, drop_remainder=True)


def callbacks(recipe: str) -> list[Any]:
    import tensorflow_model_optimization as tfmot

    return [tfmot.sparsity.keras.UpdatePruningStep()] if recipe == "prune80" else []


def step_ratio(recipe: str, network: Any, model: Any, data: Training, calibration: Any) -> Ratio:
    """One of our steps, one of TFMOT's (what its `fit` runs for each batch), in turn."""
    peer = by_hand(recipe, model, EPOCHS[recipe] * (len(data.labels) // BATCH))
    for callback in callbacks(recipe):
        callback.set_model(peer)
        callback.on_train_begin()
    source, step = iter(batches(data.inputs, data.labels).repeat().prefetch(2)), peer.make_train_function()
    ours, theirs, mark = [], [], perf_counter()

    def turn(*_: Any) -> None:
        nonlocal mark
        ours.append(perf_counter() - mark)
        theirs.append(timed(lambda: float(step(source)["loss"])))
        if len(ours) == BLOCKS * BLOCK:
            raise Enough
        mark = perf_counter()

    with suppress(Enough):
        compress(network, recipe, training=data, calibration=calibration, progress=turn)
    sums = np.array([ours, theirs])[:, BLOCK:].reshape(2, -1, BLOCK).sum(2)  # the first block traces the graphs
    return of_pairs(*sums)


def right(recipe: str, network: Any, model: Any, data: Training, calibration: Any, test: Any) -> tuple[np.ndarray, np.ndarray]:
    """Which test images our .tflite, run by LiteRT, gets right, and which TFMOT's model after its `fit`."""
    import tf_keras

    inputs, labels = test
    with tempfile.TemporaryDirectory(prefix="compresskit-bench-") as folder:
        small = compress(network, recipe, training=data, calibration=calibration)
        session = litert.load(exporters.export(small, Path(folder) / "ours.tflite"), threads=1)
        ours = np.concatenate([session.run({name: values[i : i + 1] for name, values in inputs.items()})[0] for i in range(len(labels))])
    tf_keras.utils.set_random_seed(0)
    peer = by_hand(recipe, model, EPOCHS[recipe] * (len(data.labels) // BATCH))
    peer.fit(batches(data.inputs, data.labels), epochs=EPOCHS[recipe], callbacks=callbacks(recipe), verbose=0)
    return ours.argmax(1) == labels, peer.predict(inputs["image"], verbose=0).argmax(1) == labels


def run():
    import data
    import model_tf_keras

    from compress import open_model
    from compress.backends.tf_keras_training import tfmot_twin

    tfmot_twin()  # imports TFMOT without its mark on this process
    model, training, calibration, test = model_tf_keras.load(), Training(*data.train(), learning_rate=RATE), data.calibration()[0], data.test()
    network, keras_3 = open_model(model), open_model(model_tf_keras.model.load())
    for recipe in EPOCHS:
        for name, opened in (("through TFMOT", network), ("Keras 3", keras_3)):
            ratio = step_ratio(recipe, opened, model, training, calibration)
            yield f"{recipe}, a training step {name} / TFMOT by hand", ratio, "at most 1.1", ratio.value <= 1.1
        ours, theirs = right(recipe, network, model, training, calibration, test)
        p = mcnemar(int((theirs & ~ours).sum()), int((ours & ~theirs).sum()))
        said = f"{ours.mean():.1%} against {theirs.mean():.1%} (p {p:.3f})"
        yield f"{recipe}, accuracy on LiteRT / TFMOT's model", said, "not shown to be less", ours.mean() >= theirs.mean() or p >= 0.05
