"""Load this folder's encoder into a ResNet of timm: `python load.py IMAGE...` prints the features.

Needs torch, timm, safetensors and Pillow.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from PIL import Image
from safetensors.torch import load_file
from timm.data import create_transform
from timm.models import resnet
from torch import Tensor, inference_mode, nn

FOLDER = Path(__file__).parent
CONFIG = json.loads((FOLDER / "config.json").read_text())
BLOCKS = {"resnet18": (resnet.BasicBlock, [2, 2, 2, 2]), "resnet50": (resnet.Bottleneck, [3, 4, 6, 3])}


def load_encoder() -> nn.Module:
    """The network in eval mode; maps what `preprocess` makes, in batches (n, 3, size, size), to features (n, f)."""
    (block, layers), width = BLOCKS[CONFIG["architecture"]], CONFIG["width"]
    channels = tuple(width * 2**i for i in range(4))
    model = resnet.ResNet(block, layers, num_classes=0, channels=channels)
    if width != 64:  # the constructor has 64 channels before the first stage, whatever the stages have
        model.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        model.bn1 = nn.BatchNorm2d(width)
        for name, stage in resnet.make_blocks((block,) * 4, channels, layers, width)[0]:
            setattr(model, name, stage)
    if CONFIG["stem"] != "imagenet":
        model.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
    if CONFIG["stem"] == "cifar":
        model.maxpool = nn.Identity()
    model.load_state_dict(load_file(FOLDER / "model.safetensors"))
    return model.eval()


def preprocess(image: Image.Image) -> Tensor:
    """(3, size, size), normalised."""
    resize, size = CONFIG["resize"], CONFIG["size"]
    transform = create_transform(
        input_size=(3, size, size),
        interpolation="bicubic",
        crop_pct=size / (resize + 1e-6),  # timm divides by it and rounds down: not below `resize`
        mean=CONFIG["mean"],
        std=CONFIG["std"],
    )
    return transform(image.convert("RGB"))


if __name__ == "__main__":
    encoder = load_encoder()
    for name in sys.argv[1:]:
        with Image.open(name) as opened, inference_mode():
            print(name, encoder(preprocess(opened)[None])[0].tolist())
