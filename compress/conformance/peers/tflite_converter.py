"""The legacy TFLiteConverter on a Keras model of one dense layer, dynamic-range quantized."""

import numpy as np
import tensorflow as tf
from tensorflow.lite.python.convert import ConverterError

from compress.conformance.matrix import CannotTake, Theirs
from compress.conformance.peers import Claim
from compress.conformance.peers.tflite_model import stored_codes

PACKAGE = "tensorflow"


def dynamic_range(values: np.ndarray) -> Theirs:
    constant = tf.constant(values.T)
    function = tf.function(lambda x: tf.matmul(x, constant), input_signature=[tf.TensorSpec([1, values.shape[1]], constant.dtype)])
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()], tf.Module())
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    try:
        data = converter.convert()
    except ConverterError as error:
        raise CannotTake(f"{values.dtype}: {str(error).split('error: ')[1].splitlines()[0]}") from error
    found = stored_codes(data, values.size)
    if found is None:
        raise CannotTake("the converter left the weight in float")
    codes, scales = found[0].reshape(values.shape), found[1]
    # its kernel rounds the activations too, so the weight is decoded as the file states it: code times scale
    return Theirs(codes, codes.astype(np.float32) * scales.reshape(-1, 1))


AWAY = "It rounds ties away from zero, litert-quantizer to even"
CLAIMS = (Claim("tflite.int8.weight", "TFLiteConverter, Optimize.DEFAULT", dynamic_range, AWAY, changes={"small_scale": "converter"}),)
