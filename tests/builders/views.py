"""The pipeline of torchvision and PIL that the views replace, as a reference for them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torchvision.transforms.functional as F
from PIL import Image
from torch import Tensor

from wmse.views import ViewRecipe
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


def assert_near(found: Tensor, expected: Tensor, mean: float, largest: float) -> None:
    """Mean and largest absolute difference in levels, never above the requirement."""
    assert mean <= 1
    assert largest <= 3
    assert found.shape == expected.shape
    difference = (found - expected).abs()
    assert difference.mean() <= mean
    assert difference.max() <= largest
