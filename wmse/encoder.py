"""The encoder E (a torchvision ResNet with the paper's stems) and the projection head g."""

from __future__ import annotations

from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

BLOCKS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], list[int]]] = {
    "resnet18": (BasicBlock, [2, 2, 2, 2]),
    "resnet50": (Bottleneck, [3, 4, 6, 3]),
}
STEMS = ("cifar", "small", "imagenet")


class Encoder(ResNet):
    """torchvision's ResNet without its classifier; the names of its parameters are torchvision's.

    Args:
        arch: "resnet18" or "resnet50".
        stem: "cifar" (3x3 convolution of stride 1, no max-pool), "small" (3x3 of stride 1, max-pool: STL-10 and Tiny
            ImageNet) or "imagenet" (7x7 of stride 2, max-pool).
        width: channels of the first stage; 64 is the standard network and the only width of the paper.

    Maps (N, 3, H, W) to (N, `features`) after global average pooling.
    """

    def __init__(self, arch: str = "resnet18", stem: str = "cifar", width: int = 64) -> None:
        block, layers = BLOCKS[arch]
        super().__init__(block, layers)
        if width != 64:
            self._set_width(block, layers, width)
        if stem != "imagenet":
            self.conv1 = nn.Conv2d(3, width, kernel_size=3, stride=1, padding=1, bias=False)
        if stem == "cifar":
            self.maxpool = nn.Identity()
        self.fc = nn.Identity()
        self.features = 8 * width * block.expansion

    def _set_width(self, block: type[BasicBlock] | type[Bottleneck], layers: list[int], width: int) -> None:
        # torchvision's constructor knows one width only; its own layer builder makes the narrower stages.
        self.inplanes = width
        self.conv1 = nn.Conv2d(3, width, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        for i, depth in enumerate(layers):
            stage = self._make_layer(block, width * 2**i, depth, stride=1 if i == 0 else 2)
            setattr(self, f"layer{i + 1}", stage)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def projection_head(features: int, hidden: int, embedding: int, layers: int = 2) -> nn.Sequential:
    """The head g: `layers - 1` times Linear-BatchNorm-ReLU of `hidden` units, then Linear to `embedding`.

    Maps (n, features) to (n, embedding).
    """
    modules: list[nn.Module] = []
    for _ in range(layers - 1):
        modules += [nn.Linear(features, hidden), nn.BatchNorm1d(hidden), nn.ReLU()]
        features = hidden
    return nn.Sequential(*modules, nn.Linear(features, embedding))
