"""What a view is drawn from, and its parameters: per image and per view, on the CPU."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

# The operations of the colour jitter, as `ViewParams.order` names them.
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
WEIGHT_BITS = 22  # Pillow's weights of a resize are whole numbers in units of 2^-22,
BOX_BITS = 24  # and those of its box filter in units of 2^-24.
BLUR_PASSES = 3  # Box filters along an axis that make a Gaussian blur.


@dataclass(frozen=True)
class ViewRecipe:
    """The distribution of the views; defaults are the CIFAR recipe of the authors' code.

    Attributes:
        size: side of the square output in pixels.
        crop_scale: range of the crop's share of the image's area.
        crop_ratio: range of the crop's aspect ratio (width / height), drawn uniformly in its logarithm.
        jitter: strengths of brightness, contrast, saturation and hue.
        jitter_p, grayscale_p, flip_p, blur_p: probabilities.
        crop_first: whether crop and flip come before jitter and grayscale, which then see the crop alone.
        blur_sigma: range of the blur's standard deviation in pixels (PIL's radius).
        mean, std: per-channel normalisation, applied last.
    """

    size: int = 32
    crop_scale: tuple[float, float] = (0.2, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    jitter_p: float = 0.8
    grayscale_p: float = 0.1
    flip_p: float = 0.5
    blur_p: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    crop_first: bool = False
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)


@dataclass
class ViewParams:
    """The drawn parameters of one view of each of N images.

    Attributes:
        order: (N, 4) int64, a permutation of (BRIGHTNESS, CONTRAST, SATURATION, HUE), first operation first.
        factors: (N, 4) float32, the four operations' factors (hue: a shift in turns); the identity (1, 1, 1, 0)
            where the jitter does not apply.
        gray: (N,) bool.
        box: (N, 4) int64, the crop's top, left, height, width in pixels.
        flip: (N,) bool.
        sigma: (N,) float32, standard deviation of the blur, 0 for none.
    """

    order: Tensor
    factors: Tensor
    gray: Tensor
    box: Tensor
    flip: Tensor
    sigma: Tensor

    def to(self, device: torch.device | str) -> ViewParams:
        """Copy to a device; from the CPU to a GPU without waiting for it."""
        return ViewParams(*(on_device(getattr(self, field.name), device) for field in fields(self)))

    def __getitem__(self, index: slice | Tensor) -> ViewParams:
        return ViewParams(*(getattr(self, field.name)[index] for field in fields(self)))


def on_device(x: Tensor, device: torch.device | str) -> Tensor:
    """A tensor on a device; the host does not wait for a GPU to copy it there."""
    if x.device.type == "cpu" and torch.device(device).type == "cuda":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def draw_params(
    n: int, height: int | Tensor, width: int | Tensor, recipe: ViewRecipe, generator: torch.Generator
) -> ViewParams:
    """Draw the parameters of one view of each of n images, with a CPU generator.

    Args:
        height, width: of the images in pixels; (n,) int64 where they differ.
    """

    def uniform(low: float, high: float) -> Tensor:
        return draw_uniform((n,), low, high, generator)

    def chance(p: float) -> Tensor:
        return torch.rand(n, generator=generator) < p

    *strengths, hue = recipe.jitter
    factors = torch.stack([*(uniform(max(0.0, 1 - s), 1 + s) for s in strengths), uniform(-hue, hue)], dim=1)
    identity = torch.tensor([1.0, 1.0, 1.0, 0.0])
    factors = torch.where(chance(recipe.jitter_p)[:, None], factors, identity)
    order = torch.rand(n, 4, generator=generator).argsort(dim=1)  # a uniform permutation per image
    return ViewParams(
        order=order,
        factors=factors,
        gray=chance(recipe.grayscale_p),
        box=draw_crops(n, height, width, recipe.crop_scale, recipe.crop_ratio, generator),
        flip=chance(recipe.flip_p),
        sigma=torch.where(chance(recipe.blur_p), uniform(*recipe.blur_sigma), 0.0),
    )


def draw_uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    """Float32 numbers from [low, high). Unlike torch's `uniform_`, it rounds alike on every processor."""
    return torch.rand(shape, generator=generator) * (high - low) + low


def draw_crops(
    n: int,
    height: int | Tensor,
    width: int | Tensor,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    generator: torch.Generator,
    attempts: int = 10,
) -> Tensor:
    """Boxes of random resized crops with torchvision's sampler: (n, 4) int64 of top, left, height, width.

    Up to ten attempts draw an area and a log-uniform aspect ratio; the first box that fits is placed uniformly. If
    none fits, the largest central box within the range of ratios is taken.
    """
    height, width = torch.as_tensor(height).expand(n), torch.as_tensor(width).expand(n)
    area = draw_uniform((n, attempts), *scale, generator).double() * (height * width)[:, None]
    # In double, so that no processor's rounding of the exponential decides about a pixel.
    aspect = draw_uniform((n, attempts), math.log(ratio[0]), math.log(ratio[1]), generator).double().exp()
    w = (area * aspect).sqrt().round().long()
    h = (area / aspect).sqrt().round().long()
    fits = (w > 0) & (w <= width[:, None]) & (h > 0) & (h <= height[:, None])
    first = fits.byte().argmax(dim=1, keepdim=True)
    h, w = h.gather(1, first)[:, 0], w.gather(1, first)[:, 0]
    place = torch.rand(n, 2, generator=generator, dtype=torch.float64)
    top = (place[:, 0] * (height - h + 1)).long()
    left = (place[:, 1] * (width - w + 1)).long()
    box = torch.stack([top, left, h, w], dim=1)
    return torch.where(fits.any(dim=1, keepdim=True), box, _central_box(height, width, ratio))


def _central_box(height: Tensor, width: Tensor, ratio: tuple[float, float]) -> Tensor:
    """The largest central boxes within the range of ratios: (n, 4)."""
    h = torch.minimum(height, (width / ratio[0]).round().long())
    w = torch.minimum(width, (height * ratio[1]).round().long())
    return torch.stack([(height - h) // 2, (width - w) // 2, h, w], dim=1)


def box_filter(sigma: Tensor) -> Tensor:
    """The box filter whose passes make up Pillow's Gaussian blur of the standard deviations `sigma` (N,) in pixels.

    Returns:
        (N, 3) int64: its radius, the weight of the pixels within it, and that of the two beyond, in units of 2^-24.

    Pillow computes with float, and with double where its constants are.
    """
    variance = sigma * sigma / BLUR_PASSES
    length = (12 * variance.double() + 1).sqrt().float()
    whole = ((length.double() - 1) / 2).floor().float()
    fraction = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance)
    radius = whole + fraction / (6 * (variance - (whole + 1) * (whole + 1)))
    inside = radius.long()
    full = (2**BOX_BITS / (radius * 2 + 1)).long()
    return torch.stack([inside, full, (2**BOX_BITS - (2 * inside + 1) * full) // 2], dim=1)
