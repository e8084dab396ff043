"""The pipeline of torchvision and PIL that the views replace, as a reference for them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torchvision.transforms.functional as F
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision.transforms import InterpolationMode

from wmse.views import ViewParams, ViewRecipe
from wmse.views.params import BRIGHTNESS, CONTRAST, HUE, SATURATION

ADJUST = {
    BRIGHTNESS: F.adjust_brightness,
    CONTRAST: F.adjust_contrast,
    SATURATION: F.adjust_saturation,
    HUE: F.adjust_hue,
}
IDENTITY = (1.0, 1.0, 1.0, 0.0)
IMAGENET = ViewRecipe(
    size=24, crop_scale=(0.08, 1.0), jitter=(0.8, 0.8, 0.8, 0.2), grayscale_p=0.2, blur_p=0.5, mean=(0.4, 0.5, 0.6)
)


def with_pil(images: Tensor, operation: Callable[..., Image.Image], *per_image: list) -> Tensor:
    """`operation` on each image as a PIL image, with the image's own arguments; as float levels."""
    out = []
    for image, *arguments in zip(images, *per_image, strict=True):
        result = operation(Image.fromarray(image.permute(1, 2, 0).numpy()), *arguments)
        out.append(torch.from_numpy(np.array(result)).permute(2, 0, 1))
    return torch.stack(out).float()


def assert_pils(found: Tensor, expected: Tensor) -> None:
    """Not a single level differs."""
    assert found.shape == expected.shape
    assert int((found != expected).sum()) == 0


def pil_view(image: Image.Image, recipe: ViewRecipe, params: ViewParams) -> Image.Image:
    """The view of one image, whose parameters are a slice of one, as torchvision and PIL make it; not normalised."""
    if recipe.crop_first:
        image = recolor(crop(image, recipe, params), params)
    else:
        image = crop(recolor(image, params), recipe, params)
    return image.filter(ImageFilter.GaussianBlur(params.sigma.item())) if params.sigma else image


def recolor(image: Image.Image, params: ViewParams) -> Image.Image:
    (factors,) = params.factors.tolist()
    if tuple(factors) != IDENTITY:  # even a hue of 0 would change levels in PIL's HSV
        for operation in params.order[0].tolist():
            if operation != HUE or factors[HUE] != 0:
                image = ADJUST[operation](image, factors[operation])
    return F.to_grayscale(image, 3) if params.gray else image


def crop(image: Image.Image, recipe: ViewRecipe, params: ViewParams) -> Image.Image:
    image = F.resized_crop(image, *params.box[0].tolist(), [recipe.size] * 2, InterpolationMode.BICUBIC)
    return F.hflip(image) if params.flip else image
