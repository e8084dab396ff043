"""The encoder E (a torchvision ResNet with the paper's stems), what it sees of an image, its file, and the head g."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from wmse.config import RunSpec
from wmse.errors import CheckpointError
from wmse.files import atomic_path
from wmse.views import normalize, resize_center_crop, resize_center_crop_one

BLOCKS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], list[int]]] = {
    "resnet18": (BasicBlock, [2, 2, 2, 2]),
    "resnet50": (Bottleneck, [3, 4, 6, 3]),
}
STEMS = ("cifar", "small", "imagenet")
AGAIN = "remove it and run `wmse pretrain` again"  # What helps against a file that is not the encoder of its run.


@dataclass(frozen=True)
class Preprocessing:
    """What an encoder sees of an image that is not augmented: as in the evaluation of its run.

    Attributes:
        resize: pixels of the shorter side, by Pillow's bicubic interpolation, before the central crop.
        size: side of the crop in pixels.
        mean, std: by channel, of levels in 0..1.
    """

    resize: int
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def of(cls, spec: RunSpec, mean: tuple[float, float, float], std: tuple[float, float, float]) -> Preprocessing:
        """That of a run on images with this mean and standard deviation."""
        return cls(spec.eval_resize or spec.view_size, spec.view_size, tuple(mean), tuple(std))

    def __call__(self, images: Tensor) -> Tensor:
        """RGB images of one size, uint8 (n, 3, h, w), as the encoder's input, float32 (n, 3, size, size)."""
        return normalize(resize_center_crop(images, self.resize, self.size), self.mean, self.std)

    def one(self, image: Tensor) -> Tensor:
        """The same (1, 3, size, size) of one image (3, h, w) on the CPU, in the calling thread alone."""
        return normalize(resize_center_crop_one(image, self.resize, self.size), self.mean, self.std)


class Encoder(ResNet):
    """torchvision's ResNet without its classifier; the names of its parameters are torchvision's.

    Args:
        arch: "resnet18" or "resnet50".
        stem: "cifar" (3x3 convolution of stride 1, no max-pool), "small" (3x3 of stride 1, max-pool: STL-10 and Tiny
            ImageNet) or "imagenet" (7x7 of stride 2, max-pool).
        width: channels of the first stage; 64 is the standard network and the only width of the paper.

    Maps (N, 3, H, W) to (N, `features`) after global average pooling. A trained one has the `preprocessing` of its run.
    """

    preprocessing: Preprocessing | None = None

    def __init__(self, arch: str = "resnet18", stem: str = "cifar", width: int = 64) -> None:
        if arch not in BLOCKS or stem not in STEMS:
            raise ValueError(f"arch {arch!r} is not one of {', '.join(BLOCKS)}, or stem {stem!r} of {', '.join(STEMS)}")
        block, layers = BLOCKS[arch]
        super().__init__(block, layers)
        self.arch, self.stem, self.width = arch, stem, width
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
    """Write the encoder's weights as safetensors, with torchvision's parameter names, and all that using them needs."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.state_dict().items()}
    about = {
        "run": spec.run,
        "hash": spec.hash,
        "data": data_digest,
        "spec": spec.compact(),
        "preprocessing": asdict(encoder.preprocessing) if encoder.preprocessing else None,
    }
    # One entry, because safetensors writes several in random order, and equal runs shall give equal files.
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(tensors, {"wmse": json.dumps(about)}))


def read_encoder(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `save_encoder` wrote: what the file says of itself, and the weights. CheckpointError if it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("wmse", "{}"))
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise CheckpointError(f"{path}: not a readable encoder ({error}): {AGAIN}") from None
    return about if isinstance(about, dict) else {}, state


def restore_encoder(path: Path, encoder: Encoder, spec: RunSpec) -> None:
    """Fill `encoder` with the weights of this very run. Raises CheckpointError: missing, damaged, or of another run."""
    about, state = read_encoder(path)
    if about.get("hash") != spec.hash:
        raise CheckpointError(f"{path}: the encoder of {about.get('run')!s:.80}, not of {spec.run}: {AGAIN}")
    fill_encoder(path, encoder, state)


def fill_encoder(path: Path, encoder: Encoder, state: dict[str, Tensor]) -> None:
    """Take over the weights of the file `path`. CheckpointError if they are not those of this architecture."""
    try:
        encoder.load_state_dict(state, assign=any(parameter.is_meta for parameter in encoder.parameters()))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path}: damaged ({reason}): {AGAIN}") from None
