"""Load this folder's encoder with ONNX Runtime: `python load.py IMAGE...` prints the features.

Needs onnxruntime, NumPy and Pillow.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

FOLDER = Path(__file__).parent
CONFIG = json.loads((FOLDER / "config.json").read_text())


def load_encoder() -> Callable[[np.ndarray], np.ndarray]:
    """A function; maps what `preprocess` makes, in batches (n, 3, size, size), to features (n, f)."""
    session = onnxruntime.InferenceSession(FOLDER / "model.onnx", providers=["CPUExecutionProvider"])
    return lambda images: session.run(["features"], {"images": images})[0]


def preprocess(image: Image.Image) -> np.ndarray:
    """(3, size, size), normalised."""
    (w, h), resize, size = image.size, CONFIG["resize"], CONFIG["size"]
    w, h = int(resize * w / min(w, h)), int(resize * h / min(w, h))
    left, top = round((w - size) / 2), round((h - size) / 2)
    resized = image.convert("RGB").resize((w, h), Image.Resampling.BICUBIC)
    pixels = np.asarray(resized.crop((left, top, left + size, top + size)), np.float32) / 255
    mean, std = np.float32(CONFIG["mean"]), np.float32(CONFIG["std"])
    return np.ascontiguousarray(((pixels - mean) / std).transpose(2, 0, 1))


if __name__ == "__main__":
    encoder = load_encoder()
    for name in sys.argv[1:]:
        with Image.open(name) as opened:
            print(name, encoder(preprocess(opened)[None])[0].tolist())
