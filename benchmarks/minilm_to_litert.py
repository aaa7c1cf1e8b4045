"""MiniLM to a LiteRT int8 file: this project end to end, against litert-torch plus litert-quantizer called by hand."""

import sys
import tempfile
from pathlib import Path

import exporters
from benchmarks.ratio import interleaved
from compress.pipeline import compress

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "sentiment"))


def by_hand(model, example, folder: Path) -> None:
    import litert_torch
    from litert_quantizer import quantizer, recipe

    litert_torch.convert(model, example).export(str(folder / "float.tflite"))
    quantizer.Quantizer(str(folder / "float.tflite"), recipe.dynamic_wi8_afp32()).quantize().export_model(str(folder / "peer.tflite"), overwrite=True)


def run():
    import torch
    from data import calibration
    from model import load

    model, inputs = load(), calibration(1)[0]
    example = tuple(torch.from_numpy(values) for values in inputs.values())
    folder = Path(tempfile.mkdtemp(prefix="compresskit-bench-"))

    def ours():
        exporters.export(compress(model, "int8-dynamic", inputs=inputs), folder / "ours.tflite")

    by_hand(model, example, folder)  # the first conversion of a process pays for imports that both share
    ratio = interleaved(ours, lambda: by_hand(model, example, folder), rounds=4)
    yield "MiniLM to LiteRT int8, total time / by hand", ratio, "at most 1.2", ratio.value <= 1.2
