"""The encoder E (a torchvision ResNet with the paper's stems), its file, and the projection head g."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from wmse.config import RunSpec
from wmse.errors import CheckpointError
from wmse.files import atomic_path

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
        if arch not in BLOCKS or stem not in STEMS:
            raise ValueError(f"arch {arch!r} is not one of {', '.join(BLOCKS)}, or stem {stem!r} of {', '.join(STEMS)}")
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
                if module.kernel_size == (1, 1) and module.stride != (1, 1) and module.in_channels < 8:
                    module.__class__ = Subsampled


class Subsampled(nn.Conv2d):
    """A strided 1x1 convolution, computed without stride on the pixels that it sees.

    oneDNN's gradient of the strided one for fewer than 8 channels, channels last, writes past the end of its memory on
    CPUs with AVX2 and without AVX-512 (torch 2.15, oneDNN 3.13.3).
    """

    def forward(self, input: Tensor) -> Tensor:
        rows, columns = self.stride
        return nn.functional.conv2d(input[..., ::rows, ::columns], self.weight, self.bias)


def projection_head(
    features: int, hidden: int, embedding: int, layers: int = 2, batch_norm: bool = False
) -> nn.Sequential:
    """The head g: `layers - 1` times Linear-BatchNorm-ReLU of `hidden` units, then Linear to `embedding`.

    With `batch_norm`, another one follows. Maps (n, features) to (n, embedding).
    """
    modules: list[nn.Module] = []
    for _ in range(layers - 1):
        modules += [nn.Linear(features, hidden), nn.BatchNorm1d(hidden), nn.ReLU()]
        features = hidden
    modules.append(nn.Linear(features, embedding))
    return nn.Sequential(*modules, *([nn.BatchNorm1d(embedding)] if batch_norm else []))


def save_encoder(path: Path, encoder: Encoder, spec: RunSpec, data_digest: str) -> None:
    """Write the encoder's weights as safetensors, with torchvision's parameter names."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.state_dict().items()}
    # One entry, because safetensors writes several in random order, and equal runs shall give equal files.
    metadata = {"wmse": json.dumps({"run": spec.run, "hash": spec.hash, "data": data_digest})}
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(tensors, metadata))


def load_encoder(path: Path, encoder: Encoder, spec: RunSpec) -> None:
    """Fill `encoder` with the weights of this very run. Raises CheckpointError: missing, damaged, or of another run."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get("wmse", "{}"))
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        metadata = metadata if isinstance(metadata, dict) else {}
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise CheckpointError(f"{path}: not a readable encoder ({error}): run the pretraining again") from None
    if metadata.get("hash") != spec.hash:
        raise CheckpointError(f"{path}: the encoder of {metadata.get('run')!s:.80}, not of {spec.run}")
    try:
        encoder.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path}: damaged ({reason}): run the pretraining again") from None
