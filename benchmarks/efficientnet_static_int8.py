"""EfficientNet-Lite0 to static int8 on LiteRT, against litert-quantizer's own static_wi8_ai8 file: latency, and agreement with float on unseen images."""

import sys
import tempfile
from pathlib import Path

import numpy as np

import exporters
from benchmarks.ratio import interleaved
from compress.pipeline import compress

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "efficientnet"))
from efficientnet import CALIBRATION_IMAGES, images, model, views


def by_hand(float_path: Path, out: Path, calibration: np.ndarray) -> Path:
    """litert-quantizer as its documentation says."""
    from ai_edge_litert.interpreter import Interpreter
    from litert_quantizer import quantizer, recipe

    work = quantizer.Quantizer(str(float_path), recipe.static_wi8_ai8())
    (signature, names), *_ = Interpreter(str(float_path)).get_signature_list().items()
    data = {signature: [{names["inputs"][0]: view[None]} for view in calibration]}
    work.quantize(work.calibrate(data)).export_model(str(out))
    return out


def runner(path: Path):
    """Two functions: a view in the dtype of the file's input, and the logits of such an input. The peer's file takes int8, which is not timed."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=1)
    interpreter.allocate_tensors()
    given, made = interpreter.get_input_details()[0], interpreter.get_output_details()[0]

    def prepare(view: np.ndarray) -> np.ndarray:
        if given["dtype"] == np.float32:
            return view[None]
        scale, zero_point = given["quantization"]
        return np.clip(np.rint(view[None] / scale) + zero_point, -128, 127).astype(np.int8)

    def logits(prepared: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(given["index"], prepared)
        interpreter.invoke()
        return interpreter.get_tensor(made["index"])[0]

    return prepare, logits


def run():
    batch, _ = images()
    seen, unseen = views(batch[:CALIBRATION_IMAGES]), views(batch[CALIBRATION_IMAGES:])
    folder = Path(tempfile.mkdtemp(prefix="compresskit-bench-"))
    from compress.backends import open_model

    network = open_model(model(), seen)
    float_path = exporters.export(compress(network, "float32"), folder / "float.tflite").path
    ours_path = exporters.export(compress(network, "int8-static", calibration=seen), folder / "ours.tflite").path
    runs = {name: runner(path) for name, path in (("float", float_path), ("ours", ours_path), ("peer", by_hand(float_path, folder / "peer.tflite", seen)))}
    answers = {name: np.array([logits(prepare(view)).argmax() for view in unseen]) for name, (prepare, logits) in runs.items()}
    agreement = {name: float((answers[name] == answers["float"]).mean()) for name in ("ours", "peer")}
    (ours, peer) = ((logits, prepare(unseen[0])) for prepare, logits in (runs["ours"], runs["peer"]))
    ratio = interleaved(lambda: ours[0](ours[1]), lambda: peer[0](peer[1]), rounds=60, repeats=7)
    yield "EfficientNet-Lite0 int8-static latency / litert-quantizer's own file", ratio, "at most 1.05", ratio.value <= 1.05
    words = f"{agreement['ours']:.1%} against {agreement['peer']:.1%} of {len(unseen)} unseen views"
    yield "EfficientNet-Lite0 agreement with float", words, "at least as high", agreement["ours"] >= agreement["peer"]
