"""Whole views against the torchvision/PIL pipeline that they replace; tolerances are in grey levels, 0 to 255."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torchvision.transforms.functional as F
from PIL import Image, ImageFilter
from torchvision.transforms import InterpolationMode

from builders.tensors import natural, seeded
from builders.views import ADJUST, IDENTITY, IMAGENET, assert_near, with_pil
from wmse.views import ViewRecipe, draw_params, make_view


@pytest.mark.parametrize("recipe", [ViewRecipe(size=24, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3)), IMAGENET])
def test_a_view_is_torchvisions_pipeline_in_the_papers_order(recipe: ViewRecipe) -> None:
    """Colour jitter, grayscale, crop, flip, blur, normalisation: each image with its own parameters."""
    n = 48
    recipe = replace(recipe, grayscale_p=0.3)
    images = natural(n, 40, 36)
    params = draw_params(n, 40, 36, recipe, seeded(3))

    def reference(image: Image.Image, i: int) -> Image.Image:
        jittered = params.factors[i].tolist() != list(IDENTITY)  # even a hue of 0 would change levels in PIL's HSV
        for operation in params.order[i].tolist() if jittered else ():
            image = ADJUST[operation](image, params.factors[i, operation].item())
        image = F.to_grayscale(image, 3) if params.gray[i] else image
        image = F.resized_crop(image, *params.box[i].tolist(), [24, 24], InterpolationMode.BICUBIC)
        image = F.hflip(image) if params.flip[i] else image
        return image.filter(ImageFilter.GaussianBlur(params.sigma[i].item()))

    expected = with_pil(images, reference, list(range(n)))
    found = make_view(images, recipe, params)
    pixels = 255 * (found * torch.tensor(recipe.std).view(3, 1, 1) + torch.tensor(recipe.mean).view(3, 1, 1))
    assert_near(pixels, expected, mean=0.1, largest=2)


@pytest.mark.parametrize("chunk", [1, 7, 20])
def test_a_view_does_not_depend_on_the_other_images(chunk: int) -> None:
    images = natural(20, 32, 32)
    params = draw_params(20, 32, 32, IMAGENET, seeded())
    parts = [slice(start, start + chunk) for start in range(0, 20, chunk)]
    alone = torch.cat([make_view(images[part], IMAGENET, params[part]) for part in parts])
    assert torch.equal(alone, make_view(images, IMAGENET, params))


def test_a_view_is_normalised_float32_of_the_recipes_size_and_range() -> None:
    images = torch.randint(0, 256, (64, 3, 30, 40), dtype=torch.uint8, generator=seeded())  # noise overshoots most
    recipe = replace(IMAGENET, size=48, blur_p=0.0, mean=(0.5, 0.4, 0.3), std=(0.5, 0.25, 0.2))
    view = make_view(images, recipe, draw_params(64, 30, 40, recipe, seeded()))
    assert view.shape == (64, 3, 48, 48)
    assert view.dtype == torch.float32
    low, high = torch.tensor([-1.0, -1.6, -1.5]), torch.tensor([1.0, 2.4, 3.5])
    torch.testing.assert_close(view.amin(dim=(0, 2, 3)), low, rtol=0, atol=1e-6)
    torch.testing.assert_close(view.amax(dim=(0, 2, 3)), high, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [32, 160])  # with and beyond the table of weights
def test_the_recipe_that_does_nothing_gives_the_image_back(size: int) -> None:
    nothing = ViewRecipe(size=size, crop_scale=(1, 1), crop_ratio=(1, 1), jitter_p=0, grayscale_p=0, flip_p=0, blur_p=0)
    images = natural(5, size, size)
    view = make_view(images, nothing, draw_params(5, size, size, nothing, seeded()))
    torch.testing.assert_close(255 * view, images.float(), rtol=0, atol=1e-4)


def test_a_view_leaves_the_images_alone() -> None:
    images = natural(4, 32, 32)
    before = images.clone()
    make_view(images, IMAGENET, draw_params(4, 32, 32, IMAGENET, seeded()))
    assert torch.equal(images, before)
