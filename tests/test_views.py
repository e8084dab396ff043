"""Views against the torchvision/PIL pipeline that they replace.

Requirement: every operation with given parameters within one grey level on average and three at most. What is asked
here is tighter, about twice the differences seen on these images. Pixels and tolerances are in grey levels, 0 to 255.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations, permutations

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as F
from PIL import Image, ImageFilter
from scipy.stats import chi2_contingency, chisquare, ks_2samp, kstest
from torch import Tensor
from torchvision.transforms import ColorJitter, InterpolationMode, RandomResizedCrop

from wmse.views import ViewParams, ViewRecipe, draw_params, make_view, normalize, resize_center_crop
from wmse.views.params import BRIGHTNESS, CONTRAST, HUE, SATURATION, draw_crops
from wmse.views.tensors import (
    TABLE_LIMIT,
    bicubic_weights,
    color_jitter,
    crop_matrix,
    gaussian_blur,
    resized_crop,
    shift_hue,
    to_gray,
)

# Statistical tests compare a p-value with this: one false alarm in ten thousand draws of the fixed seeds.
FALSE_ALARM = 1e-4

ADJUST = {
    BRIGHTNESS: F.adjust_brightness,
    CONTRAST: F.adjust_contrast,
    SATURATION: F.adjust_saturation,
    HUE: F.adjust_hue,
}
IDENTITY = (1.0, 1.0, 1.0, 0.0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def natural(n: int, h: int, w: int, seed: int = 0) -> Tensor:
    """(n, 3, h, w) uint8 images like photographs: most energy in low frequencies, channels correlated, some noise."""
    generator = seeded(seed)
    x = torch.zeros(n, 3, h, w)
    for cells, amplitude in ((3, 1.0), (6, 0.5), (12, 0.25)):
        coarse = torch.randn(n, 3, cells, cells, generator=generator)
        coarse = coarse.mean(dim=1, keepdim=True) + 0.6 * coarse
        x += amplitude * torch.nn.functional.interpolate(coarse, size=(h, w), mode="bicubic")
    x += 0.05 * torch.randn(n, 3, h, w, generator=generator)
    return ((0.5 + 0.25 * x).clamp(0, 1) * 255).round().to(torch.uint8)


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


def jitter_one(images: Tensor, operation: int, factor: float) -> Tensor:
    """Colour jitter whose other three operations do nothing."""
    n = len(images)
    factors = torch.tensor(IDENTITY).repeat(n, 1)
    factors[:, operation] = factor
    return color_jitter(images.float(), factors, torch.arange(4).repeat(n, 1))


# --- geometry ---------------------------------------------------------------------------------------------------------

CROPS = [  # height, width, box, size: the same size, up, down, not square, and mixtures
    (32, 32, (0, 0, 32, 32), 32),
    (32, 32, (3, 5, 20, 17), 32),
    (32, 32, (30, 0, 2, 3), 32),
    (96, 80, (10, 4, 70, 60), 32),
    (48, 64, (2, 1, 45, 61), 64),
    (40, 40, (0, 30, 40, 10), 24),
    (300, 200, (20, 10, 250, 180), 64),  # beyond the table of weights
]


@pytest.mark.parametrize(("height", "width", "box", "size"), CROPS)
@pytest.mark.parametrize("mirror", [False, True])
def test_resized_crop_is_pils(height: int, width: int, box: tuple[int, ...], size: int, mirror: bool) -> None:
    images = natural(4, height, width)

    def reference(image: Image.Image) -> Image.Image:
        image = F.resized_crop(image, *box, [size, size], InterpolationMode.BICUBIC)
        return F.hflip(image) if mirror else image

    found = resized_crop(images.float(), torch.tensor([box] * 4), size, torch.tensor([mirror] * 4))
    assert_near(found, with_pil(images, reference), mean=0.1, largest=1)


def test_overshoot_is_clipped_between_the_two_passes_as_pil_does() -> None:
    images = 255 * torch.randint(0, 2, (4, 3, 16, 16), dtype=torch.uint8, generator=seeded())
    box = (2, 1, 9, 13)
    expected = with_pil(images, lambda image: F.resized_crop(image, *box, [32, 32], InterpolationMode.BICUBIC))
    assert_near(resized_crop(images.float(), torch.tensor([box] * 4), 32), expected, mean=0.1, largest=1)


def test_the_evaluations_resize_clips_between_the_passes_too() -> None:
    images = 255 * torch.randint(0, 2, (4, 3, 96, 96), dtype=torch.uint8, generator=seeded())
    for resize, size in ((70, 64), (128, 96)):
        expected = with_pil(
            images,
            lambda image, r=resize, s=size: F.center_crop(F.resize(image, [r], InterpolationMode.BICUBIC), [s]),
        )
        assert_near(resize_center_crop(images, resize, size), expected, mean=0.1, largest=1)
    with pytest.raises(ValueError, match="does not fit"):
        resize_center_crop(images, 60, 64)


def test_each_image_has_its_own_box_and_flip() -> None:
    images = natural(7, 40, 50)
    boxes = draw_crops(7, 40, 50, (0.1, 1.0), (0.5, 2.0), seeded())
    flip = torch.tensor([True, False, True, True, False, False, True])
    together = resized_crop(images.float(), boxes, 16, flip)
    for i in range(7):
        alone = resized_crop(images[i : i + 1].float(), boxes[i : i + 1], 16)
        expected = alone.flip(3) if flip[i] else alone
        torch.testing.assert_close(together[i : i + 1], expected, rtol=0, atol=1e-6)


def test_no_flip_is_the_default() -> None:
    images, box = natural(2, 20, 20).float(), torch.tensor([[1, 2, 15, 12]] * 2)
    unflipped = resized_crop(images, box, 16, torch.zeros(2, dtype=torch.bool))
    torch.testing.assert_close(resized_crop(images, box, 16), unflipped, rtol=0, atol=0)


@pytest.mark.parametrize(("in_size", "out_size"), [(32, 32), (20, 33), (50, 16), (128, 8)])
def test_the_table_of_weights_holds_the_directly_computed_ones(in_size: int, out_size: int) -> None:
    length = torch.randint(1, in_size + 1, (60,), generator=seeded())
    length[:2] = torch.tensor([1, in_size])
    start = (torch.rand(60, generator=seeded(1)) * (in_size - length + 1)).long()
    direct = bicubic_weights(start, length, in_size, out_size)
    assert in_size <= TABLE_LIMIT
    torch.testing.assert_close(crop_matrix(start, length, in_size, out_size), direct, rtol=0, atol=0)
    torch.testing.assert_close(direct.sum(dim=2), torch.ones(60, out_size), rtol=0, atol=1e-6)
    pixel = torch.arange(in_size)
    outside = (pixel < start[:, None]) | (pixel >= (start + length)[:, None])
    assert direct.masked_select(outside[:, None]).eq(0).all()


@pytest.mark.parametrize(("height", "width"), [(96, 96), (64, 64), (83, 122), (97, 75), (40, 60), (250, 187)])
def test_resize_and_central_crop_are_torchvisions(height: int, width: int) -> None:
    images = natural(2, height, width)

    def reference(image: Image.Image) -> Image.Image:
        return F.center_crop(F.resize(image, 70, InterpolationMode.BICUBIC), [64, 64])

    found = resize_center_crop(images, 70, 64)
    assert found.dtype == torch.float32
    assert_near(found, with_pil(images, reference), mean=0.1, largest=2)


def test_images_that_have_the_evaluation_size_already_are_left_alone() -> None:
    images = natural(2, 64, 64)
    torch.testing.assert_close(resize_center_crop(images, 64, 64), images.float(), rtol=0, atol=0)


@pytest.mark.parametrize("sigma", [0.1, 0.3, 0.5, 1.0, 1.5, 2.0])
@pytest.mark.parametrize("size", [16, 64, 224])
def test_blur_is_pils_on_images_and_on_noise_up_to_the_edges(sigma: float, size: int) -> None:
    noise = 255 * torch.randint(0, 2, (2, 3, size, size), dtype=torch.uint8, generator=seeded())
    images = torch.cat([natural(2, size, size), noise])
    expected = with_pil(images, lambda image: image.filter(ImageFilter.GaussianBlur(sigma)))
    assert_near(gaussian_blur(images.float(), torch.full((4,), sigma), 2.0), expected, mean=0.6, largest=3)


def test_each_image_is_blurred_by_its_own_sigma_and_not_at_all_by_zero() -> None:
    images = natural(3, 32, 32).float()
    sigma = torch.tensor([1.7, 0.0, 0.6])
    blurred = gaussian_blur(images, sigma, 2.0)
    torch.testing.assert_close(blurred[1], images[1], rtol=0, atol=0)
    for i in (0, 2):
        alone = gaussian_blur(images[i : i + 1], sigma[i : i + 1], 2.0)[0]
        torch.testing.assert_close(blurred[i], alone, rtol=0, atol=1e-6)
        assert (blurred[i] - images[i]).abs().max() > 0.02


# --- colour -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", [BRIGHTNESS, CONTRAST, SATURATION])
@pytest.mark.parametrize("factor", [0.0, 0.2, 0.6, 0.9, 1.4, 1.8])
def test_brightness_contrast_and_saturation_are_pils(operation: int, factor: float) -> None:
    images = natural(8, 32, 32)
    expected = with_pil(images, lambda image: ADJUST[operation](image, factor))
    assert_near(jitter_one(images, operation, factor), expected, mean=0.01, largest=1)


@pytest.mark.parametrize("shift", [-0.5, -0.2, -0.1, -0.003, 0.04, 0.1, 0.2, 0.5])
def test_hue_is_pils_through_its_eight_bit_hsv(shift: float) -> None:
    images = torch.cat(
        [natural(4, 64, 64), torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8, generator=seeded())]
    )
    expected = with_pil(images, lambda image: F.adjust_hue(image, shift))
    assert_near(jitter_one(images, HUE, shift), expected, mean=1e-3, largest=1)


def test_the_hue_of_every_colour_on_a_grid_is_pils() -> None:
    """Where hue times 255 is almost whole, the last digit of a float decides PIL's hue, and up to six levels."""
    grid = torch.cartesian_prod(*3 * [torch.arange(0, 256, 3)]).to(torch.uint8)  # 636,056 colours
    image = grid[:635_904].T.reshape(1, 3, 768, 828)
    expected = with_pil(image, lambda image: F.adjust_hue(image, 0.1))
    assert_near(jitter_one(image, HUE, 0.1), expected, mean=1e-4, largest=1)


def test_gray_is_pils() -> None:
    images = natural(8, 32, 32)
    expected = with_pil(images, lambda image: F.to_grayscale(image, 3))
    assert_near(to_gray(images.float()).expand(-1, 3, -1, -1), expected, mean=1e-3, largest=1)


def test_hue_leaves_gray_alone() -> None:
    gray = natural(2, 8, 8).float()[:, :1].expand(-1, 3, -1, -1)
    torch.testing.assert_close(shift_hue(gray, torch.full((2, 1, 1), 0.3)), gray, rtol=0, atol=0)


def test_the_jitter_follows_each_images_own_order_of_operations() -> None:
    orders = torch.tensor(list(permutations(range(4))))
    images = natural(1, 32, 32).repeat(24, 1, 1, 1)
    factors = (1.4, 0.6, 1.5, 0.1)

    def reference(image: Image.Image, order: Tensor) -> Image.Image:
        for operation in order.tolist():
            image = ADJUST[operation](image, factors[operation])
        return image

    found = color_jitter(images.float(), torch.tensor(factors).repeat(24, 1), orders)
    expected = with_pil(images, reference, list(orders))
    assert_near(found, expected, mean=1e-3, largest=1)
    apart = [(a - b).abs().max().item() for a, b in combinations(found, 2)]
    assert min(apart) > 1  # no two orders agree within the tolerance


def test_the_identity_factors_change_no_bit() -> None:
    images = natural(24, 16, 16).float()
    orders = torch.tensor(list(permutations(range(4))))
    jittered = color_jitter(images.clone(), torch.tensor(IDENTITY).repeat(24, 1), orders)
    torch.testing.assert_close(jittered, images, rtol=0, atol=0)


def test_jitter_does_not_write_into_its_input() -> None:
    images = natural(8, 16, 16).float()
    before = images.clone()
    color_jitter(images, torch.tensor([[1.0, 1.0, 1.0, 0.2]]).repeat(8, 1), torch.tensor([[3, 0, 1, 2]]).repeat(8, 1))
    assert torch.equal(images, before)


def test_normalization_is_per_channel() -> None:
    mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    images = natural(2, 8, 8).float()
    expected = torch.stack([F.normalize(image / 255, list(mean), list(std)) for image in images])
    torch.testing.assert_close(normalize(images, mean, std), expected, rtol=0, atol=1e-6)


# --- drawing ----------------------------------------------------------------------------------------------------------

IMAGENET = ViewRecipe(
    size=24, crop_scale=(0.08, 1.0), jitter=(0.8, 0.8, 0.8, 0.2), grayscale_p=0.2, blur_p=0.5, mean=(0.4, 0.5, 0.6)
)


def torchvision_crops(n: int, height: int, width: int, scale: tuple[float, float]) -> Tensor:
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    sampler = RandomResizedCrop.get_params
    return torch.tensor([sampler(image, list(scale), [3 / 4, 4 / 3]) for _ in range(n)])


@pytest.mark.parametrize(
    ("height", "width", "scale"), [(32, 32, (0.2, 1.0)), (96, 96, (0.2, 1.0)), (60, 100, (0.08, 1.0))]
)
def test_crops_have_torchvisions_distribution(height: int, width: int, scale: tuple[float, float]) -> None:
    found = draw_crops(6000, height, width, scale, (3 / 4, 4 / 3), seeded())
    expected = torchvision_crops(3000, height, width, scale)

    def statistics(box: Tensor) -> dict[str, Tensor]:
        top, left, h, w = box.double().unbind(1)
        # Positions relative to their range where they have one, so that they are tested apart from the sizes.
        place = {"top": top / (height - h).clamp(min=1), "left": left / (width - w).clamp(min=1)}
        return {"height": h, "width": w, "area": h * w, "aspect": w / h, **place}

    references = statistics(expected)
    for name, values in statistics(found).items():
        assert ks_2samp(values, references[name]).pvalue > FALSE_ALARM / 6, name


def test_crops_lie_inside_the_image_and_reach_all_its_edges() -> None:
    top, left, h, w = draw_crops(5000, 20, 30, (0.05, 1.0), (0.5, 2.0), seeded()).unbind(1)
    assert min(top.min(), left.min()) == 0
    assert min(h.min(), w.min()) >= 1
    assert (top + h).max() == 20
    assert (left + w).max() == 30


@pytest.mark.parametrize(("height", "width"), [(10, 200), (200, 10)])
def test_where_no_crop_fits_the_central_box_is_torchvisions(height: int, width: int) -> None:
    found = draw_crops(20, height, width, (0.5, 1.0), (3 / 4, 4 / 3), seeded())
    assert torch.equal(found, torchvision_crops(20, height, width, (0.5, 1.0)))
    assert len(found.unique(dim=0)) == 1


def test_a_whole_image_is_the_last_resort_when_its_ratio_is_allowed() -> None:
    box = draw_crops(3, 20, 24, (1.5, 1.6), (3 / 4, 4 / 3), seeded())
    assert box.tolist() == [[0, 0, 20, 24]] * 3


def test_probabilities_are_those_of_the_recipe() -> None:
    n = 20_000
    recipe = replace(IMAGENET, jitter_p=0.8, grayscale_p=0.2, flip_p=0.3, blur_p=0.5)
    params = draw_params(n, 32, 32, recipe, seeded())
    identity = (params.factors == torch.tensor(IDENTITY)).all(dim=1)
    for applied, p in ((~identity, 0.8), (params.gray, 0.2), (params.flip, 0.3), (params.sigma > 0, 0.5)):
        assert applied.double().mean().item() == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / n))  # 6e-5 each


def test_factors_and_blur_are_uniform_in_their_ranges() -> None:
    recipe = replace(IMAGENET, jitter=(0.4, 0.8, 1.0, 0.1), jitter_p=1.0, blur_p=1.0)
    params = draw_params(5000, 32, 32, recipe, seeded())
    ranges = [(0.6, 1.4), (0.2, 1.8), (0.0, 2.0), (-0.1, 0.1), (0.1, 2.0)]
    for values, (low, high) in zip([*params.factors.T, params.sigma], ranges, strict=True):
        assert kstest(values.double().numpy(), "uniform", (low, high - low)).pvalue > FALSE_ALARM / 5


def test_the_jitter_is_drawn_as_torchvision_draws_it() -> None:
    """Factors, hue and the order of the operations, jointly: 6 comparisons with one false alarm in ten thousand."""
    jitter, n = ColorJitter(0.4, 0.8, 1.0, 0.1), 4000
    torch.manual_seed(0)
    drawn = [
        ColorJitter.get_params(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue) for _ in range(n)
    ]
    expected = torch.tensor([factors for _, *factors in drawn])
    params = draw_params(n, 32, 32, ViewRecipe(jitter=(0.4, 0.8, 1.0, 0.1), jitter_p=1.0), seeded())
    for ours, theirs in zip(params.factors.T, expected.T, strict=True):
        assert ks_2samp(ours, theirs).pvalue > FALSE_ALARM / 6
    code = torch.tensor([64, 16, 4, 1])  # an order as one number, so that all 24 are compared at once
    orders = [(order * code).sum(dim=1) for order in (params.order, torch.stack([order for order, *_ in drawn]))]
    both = torch.stack([torch.bincount(order, minlength=256) for order in orders])
    assert chi2_contingency(both[:, both.sum(dim=0) > 0].numpy()).pvalue > FALSE_ALARM / 6
    # Which operation comes first is independent of how strong it is.
    first = params.order[:, 0] == BRIGHTNESS
    assert ks_2samp(params.factors[first, BRIGHTNESS], params.factors[~first, BRIGHTNESS]).pvalue > FALSE_ALARM / 6


def test_the_24_orders_of_the_jitter_are_equally_likely() -> None:
    order = draw_params(12_000, 32, 32, ViewRecipe(), seeded()).order
    assert (order.sort(dim=1).values == torch.arange(4)).all()
    _, counts = order.unique(dim=0, return_counts=True)
    assert len(counts) == 24
    assert chisquare(counts.numpy()).pvalue > FALSE_ALARM


def test_parameters_are_independent_of_each_other_and_from_image_to_image() -> None:
    n = 20_000
    params = draw_params(n, 64, 64, replace(IMAGENET, jitter_p=1.0, blur_p=1.0), seeded())
    top, left, h, w = params.box.double().unbind(1)
    # Centres, area and aspect of a box are uncorrelated, although its sizes and positions are not.
    box = [top + h / 2, left + w / 2, h * w, (w / h).log()]
    columns = [*params.factors.T, *params.order.T[:3], params.gray, params.flip, params.sigma, *box]
    table = torch.stack([column.double() for column in columns])
    own = torch.corrcoef(table)
    own[4:7, 4:7] = torch.eye(3).double()  # places of one permutation exclude each other
    following = torch.corrcoef(torch.cat([table[:, :-1], table[:, 1:]]))[len(table) :, : len(table)]
    bound = 5 / math.sqrt(n)  # 6e-7 for each of some 300 correlations
    assert (own - torch.eye(len(table))).abs().max() < bound
    assert following.abs().max() < bound


def test_the_seed_decides_the_views_and_each_seed_draws_others() -> None:
    a, b, c = (draw_params(50, 32, 32, IMAGENET, seeded(seed)) for seed in (1, 1, 2))
    for name in vars(a):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
        assert not torch.equal(getattr(a, name), getattr(c, name)), name


# --- views ------------------------------------------------------------------------------------------------------------


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


def test_slices_and_copies_of_parameters_keep_every_field() -> None:
    params = draw_params(10, 32, 32, IMAGENET, seeded())
    part = params.to("cpu")[2:5]
    assert isinstance(part, ViewParams)
    for name in vars(params):
        assert torch.equal(getattr(part, name), getattr(params, name)[2:5])
