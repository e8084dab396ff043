"""Load this folder's encoder into a ResNet of torchvision: `python load.py IMAGE...` prints the features.

Needs torch, torchvision, safetensors and Pillow.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, inference_mode, nn
from torchvision import transforms
from torchvision.models import resnet

FOLDER = Path(__file__).parent
CONFIG = json.loads((FOLDER / "config.json").read_text())
BLOCKS = {"resnet18": (resnet.BasicBlock, [2, 2, 2, 2]), "resnet50": (resnet.Bottleneck, [3, 4, 6, 3])}


def load_encoder() -> nn.Module:
    """The network in eval mode; maps what `preprocess` makes, in batches (n, 3, size, size), to features (n, f)."""
    (block, layers), width = BLOCKS[CONFIG["architecture"]], CONFIG["width"]
    model = resnet.ResNet(block, layers)
    if width != 64:  # the constructor knows no other width, so the stages are made anew
        model.inplanes = width
        model.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        model.bn1 = nn.BatchNorm2d(width)
        for i, depth in enumerate(layers):
            setattr(model, f"layer{i + 1}", model._make_layer(block, width * 2**i, depth, stride=1 if i == 0 else 2))
    if CONFIG["stem"] != "imagenet":
        model.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
    if CONFIG["stem"] == "cifar":
        model.maxpool = nn.Identity()
    model.fc = nn.Identity()
    model.load_state_dict(load_file(FOLDER / "model.safetensors"))
    return model.eval()


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
