"""The trained digits network as a tf_keras (Keras 2) model: the same layers with the same weights."""

import model
import tf_keras


def load() -> tf_keras.Model:
    copy = model.untrained(tf_keras)
    copy.set_weights(model.load().get_weights())
    return copy
