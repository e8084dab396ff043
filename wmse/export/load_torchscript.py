"""Load this folder's encoder, a TorchScript program: `python load.py IMAGE...` prints the features.

Needs torch, torchvision and Pillow; the program itself also runs in C++ (libtorch).
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, inference_mode, nn
from torchvision import transforms

FOLDER = Path(__file__).parent
CONFIG = json.loads((FOLDER / "config.json").read_text())


def load_encoder() -> nn.Module:
    """The program; maps what `preprocess` makes, in batches (n, 3, size, size), to features (n, f)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch says that it will not go on with TorchScript
        return torch.jit.load(FOLDER / "model.pt", map_location="cpu").eval()


def preprocess(image: Image.Image) -> Tensor:
    """(3, size, size), normalised."""
    steps = [
        transforms.Resize(CONFIG["resize"], transforms.InterpolationMode.BICUBIC),
        transforms.CenterCrop(CONFIG["size"]),
        transforms.ToTensor(),
        transforms.Normalize(CONFIG["mean"], CONFIG["std"]),
    ]
    return transforms.Compose(steps)(image.convert("RGB"))


if __name__ == "__main__":
    encoder = load_encoder()
    for name in sys.argv[1:]:
        with Image.open(name) as opened, inference_mode():
            print(name, encoder(preprocess(opened)[None])[0].tolist())
