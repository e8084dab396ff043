"""Whole views and single operations, on both paths, against the torchvision/PIL pipeline that they replace."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from builders.tensors import natural, seeded
from builders.views import IMAGENET, assert_pils, pil_view, with_pil
from wmse.views import ViewParams, ViewRecipe, draw_params, make_view
from wmse.views.loops import view_by_loops
from wmse.views.tensors import view_by_tensors


def values_compared(images: Tensor, recipe: ViewRecipe, params: ViewParams) -> int:
    """Compare both paths with PIL, which must agree on every level; returns how many there are."""
    n, _, h, w = images.shape
    expected = with_pil(images, lambda image, i: pil_view(image, recipe, params[i : i + 1]), list(range(n)))
    sizes = torch.tensor([h, w]).expand(n, 2)
    mean, std = torch.tensor(recipe.mean).view(3, 1, 1), torch.tensor(recipe.std).view(3, 1, 1)
    for path in (view_by_loops, view_by_tensors):
        levels = 255 * (path(images, recipe, params, sizes) * std + mean)
        assert (levels - levels.round()).abs().max() < 1e-2  # what the normalisation leaves of the digits
        assert_pils(levels.round(), expected)
    return expected.numel()


def mixed(n: int, h: int, w: int, seed: int) -> Tensor:
    """Images like photographs, noise, and noise of the darkest and brightest level alone."""
    noise = torch.randint(0, 256, (n // 3, 3, h, w), dtype=torch.uint8, generator=seeded(seed))
    extreme = 255 * torch.randint(0, 2, (n // 3, 3, h, w), dtype=torch.uint8, generator=seeded(seed + 1))
    return torch.cat([natural(n - 2 * (n // 3), h, w, seed), noise, extreme])


# A recipe that does nothing, and for each operation what makes it do that alone.
NOTHING = ViewRecipe(size=64, jitter_p=1, jitter=(0, 0, 0, 0), crop_scale=(1, 1), crop_ratio=(1, 1), grayscale_p=0)
OPERATIONS = {
    "brightness": {"jitter": (0.9, 0, 0, 0)},
    "contrast": {"jitter": (0, 0.9, 0, 0)},
    "saturation": {"jitter": (0, 0, 0.9, 0)},
    "hue": {"jitter": (0, 0, 0, 0.5)},
    "gray": {"grayscale_p": 0.9},
    "crop": {"crop_scale": (0.01, 1.0), "crop_ratio": (0.3, 3.0)},
    "blur": {"blur_p": 0.95, "blur_sigma": (0.05, 4.0)},
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_not_one_of_ten_million_values_of_an_operation_differs_from_pils(operation: str) -> None:
    recipe, compared = replace(NOTHING, flip_p=0, **OPERATIONS[operation]), 0
    for seed in range(3):
        images = mixed(276, 64, 64, seed)
        compared += values_compared(images, recipe, draw_params(len(images), 64, 64, recipe, seeded(seed)))
    assert compared > 10_000_000


SHAPES = [  # number, height, width, size of the view: up, down, odd, thin
    (400, 32, 32, 32),
    (300, 96, 96, 64),
    (300, 64, 64, 64),
    (20, 375, 500, 128),
    (40, 256, 256, 8),
    (100, 61, 47, 33),
    (20, 9, 8, 256),
    (50, 8, 211, 31),
    (8, 1100, 30, 16),
]


@pytest.mark.parametrize(
    "recipe",
    [ViewRecipe(mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3)), IMAGENET, replace(IMAGENET, crop_first=True)],
    ids=["cifar", "imagenet", "crop first"],
)
def test_not_one_of_ten_million_values_of_whole_views_differs_from_torchvisions_pipeline(recipe: ViewRecipe) -> None:
    """Colour jitter, grayscale, crop, flip, blur, normalisation: each image with its own parameters."""
    compared = 0
    for n, h, w, size in SHAPES:
        shaped = replace(recipe, size=size, grayscale_p=0.3)
        params = draw_params(n, h, w, shaped, seeded(n))
        params.box[0, 2:] = 1  # boxes of one pixel,
        params.box[1, 2:] = torch.tensor([1, params.box[1, 3]])  # and of one row
        compared += values_compared(mixed(n, h, w, size), shaped, params)
    assert compared > 10_000_000


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
