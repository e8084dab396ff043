"""The compiled loops of the views against the same operations on tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from builders.tensors import seeded
from wmse.views import ViewParams, ViewRecipe, draw_params, make_view
from wmse.views.loops import rotate_hue, view_by_loops
from wmse.views.tensors import hue_table, shift_hue, view_by_tensors

RECIPE = ViewRecipe(size=24, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
RECIPES = {
    "cifar": RECIPE,
    "imagenet": replace(RECIPE, crop_scale=(0.08, 1.0), jitter=(0.8, 0.8, 0.8, 0.2), grayscale_p=0.2, blur_p=0.5),
    "crop first": replace(RECIPE, crop_scale=(0.08, 1.0), grayscale_p=0.2, blur_p=0.5, crop_first=True),
    "wild": replace(RECIPE, crop_scale=(0.02, 1.0), crop_ratio=(0.2, 5.0), jitter=(1, 2, 2, 0.5), grayscale_p=0.5),
    "no jitter": replace(RECIPE, jitter_p=0, grayscale_p=0),
    "only hue": replace(RECIPE, jitter=(0, 0, 0, 0.5), jitter_p=1, crop_scale=(1, 1)),
}


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def noise(n: int, h: int, w: int, seed: int = 0) -> Tensor:
    """Noise of a different roughness and contrast in each image: (n, 3, h, w) uint8."""
    fine = torch.randint(0, 256, (n, 3, h, w), generator=seeded(seed)).float()
    rough = torch.nn.functional.avg_pool2d(fine, 3, 1, 1, count_include_pad=False)
    share = torch.rand(n, 1, 1, 1, generator=seeded(seed + 1))
    return (share * fine + (1 - share) * rough).round().to(torch.uint8)


def assert_equal(images: Tensor, recipe: ViewRecipe, params: ViewParams, sizes: Tensor | None = None) -> None:
    """The loops' views are the tensors', to the last bit."""
    n, _, h, w = images.shape
    sizes = torch.tensor([[h, w]]).expand(n, 2) if sizes is None else sizes
    expected = view_by_tensors(images, recipe, params, sizes)
    assert int((view_by_loops(images, recipe, params, sizes) != expected).sum()) == 0


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize(("height", "width", "size"), [(32, 32, 32), (64, 64, 64), (96, 96, 64), (40, 61, 24)])
def test_a_view_has_the_pixels_that_operations_on_tensors_give(
    recipe: ViewRecipe, height: int, width: int, size: int
) -> None:
    recipe = replace(recipe, size=size)
    assert_equal(noise(60, height, width), recipe, draw_params(60, height, width, recipe, seeded(2)))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 9),
    st.integers(8, 150),
    st.integers(8, 70),
    st.integers(8, 50),
    st.sampled_from(sorted(RECIPES)),
    st.integers(0, 2**31),
)
def test_so_it_is_for_images_of_any_sizes(n: int, h: int, w: int, size: int, name: str, seed: int) -> None:
    recipe = replace(RECIPES[name], size=size)
    sizes = torch.stack([torch.randint(8, side + 1, (n,), generator=seeded(seed)) for side in (h, w)], dim=1)
    images = noise(n, h, w, seed)
    inside = (torch.arange(h)[:, None] < sizes[:, 0, None, None]) & (torch.arange(w) < sizes[:, 1, None, None])
    assert_equal(images * inside[:, None], recipe, draw_params(n, *sizes.T, recipe, seeded(seed)), sizes)


def test_the_hue_of_every_colour_of_a_grid_is_the_tensors() -> None:
    grid = torch.cartesian_prod(*3 * [torch.arange(0, 256, 5)]).to(torch.uint8).T.contiguous()
    for shift in (-0.5, -0.013, 0.1, 0.4):
        expected = shift_hue(grid.float()[None, :, None], torch.full((1, 1, 1), shift), hue_table("cpu"))[0, :, 0]
        r, g, b = grid.numpy().copy()
        rotate_hue(r, g, b, len(r), np.float32(shift))
        assert np.array_equal(np.stack([r, g, b]), expected.numpy())


@pytest.mark.parametrize("n", [0, 1, 3, 50])
def test_threads_change_no_bit(threads: None, n: int) -> None:
    images, params = noise(n, 30, 30), draw_params(n, 30, 30, RECIPE, seeded())
    torch.set_num_threads(1)
    one = make_view(images, RECIPE, params)
    for count in (2, 3, 8):
        torch.set_num_threads(count)
        assert torch.equal(make_view(images, RECIPE, params), one)


def test_parts_of_other_arrays_are_views_too() -> None:
    images, params = noise(12, 40, 40), draw_params(6, 20, 20, RECIPE, seeded())
    part = images[::2, :, 10:30, 5:25]
    assert torch.equal(make_view(part, RECIPE, params), make_view(part.contiguous(), RECIPE, params))
