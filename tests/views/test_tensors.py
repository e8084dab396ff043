"""Operations on tensors of images against those of torchvision and PIL: every level is the same."""

from __future__ import annotations

from itertools import combinations, permutations

import pytest
import torch
import torchvision.transforms.functional as F
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision.transforms import InterpolationMode

from builders.tensors import natural, seeded
from builders.views import ADJUST, IDENTITY, assert_pils, with_pil
from wmse.views import normalize, resize_center_crop, resize_center_crop_one
from wmse.views.params import BRIGHTNESS, CONTRAST, HUE, SATURATION, draw_crops
from wmse.views.tensors import (
    TABLE_LIMIT,
    axis_taps,
    bicubic_taps,
    blur_weights,
    color_jitter,
    crop_matrix,
    crop_taps,
    gaussian_blur,
    hue_table,
    resized_crop,
    shift_hue,
    to_gray,
)

CPU = torch.device("cpu")

# --- geometry ---------------------------------------------------------------------------------------------------------

CROPS = [  # height, width, box, size: the same size, up, down, not square, and mixtures
    (32, 32, (0, 0, 32, 32), 32),
    (32, 32, (3, 5, 20, 17), 32),
    (32, 32, (30, 0, 2, 3), 32),
    (96, 80, (10, 4, 70, 60), 32),
    (48, 64, (2, 1, 45, 61), 64),
    (40, 40, (0, 30, 40, 10), 24),
    (300, 200, (20, 10, 250, 180), 64),
    (1100, 20, (3, 0, 1090, 20), 8),  # beyond the table of weights, and in double
]


def crop(images: Tensor, box: Tensor, size: int, flip: Tensor | None = None) -> Tensor:
    return resized_crop(images.float(), crop_taps(box, images.shape[-2:], size, CPU), flip)


@pytest.mark.parametrize(("height", "width", "box", "size"), CROPS)
@pytest.mark.parametrize("mirror", [False, True])
def test_resized_crop_is_pils(height: int, width: int, box: tuple[int, ...], size: int, mirror: bool) -> None:
    images = natural(4, height, width)

    def reference(image: Image.Image) -> Image.Image:
        image = F.resized_crop(image, *box, [size, size], InterpolationMode.BICUBIC)
        return F.hflip(image) if mirror else image

    found = crop(images, torch.tensor([box] * 4), size, torch.tensor([mirror] * 4))
    assert_pils(found, with_pil(images, reference))


def test_overshoot_is_clipped_between_the_two_passes_as_pil_does() -> None:
    images = 255 * torch.randint(0, 2, (4, 3, 16, 16), dtype=torch.uint8, generator=seeded())
    box = (2, 1, 9, 13)
    expected = with_pil(images, lambda image: F.resized_crop(image, *box, [32, 32], InterpolationMode.BICUBIC))
    assert_pils(crop(images, torch.tensor([box] * 4), 32), expected)


def test_the_evaluations_resize_clips_between_the_passes_too() -> None:
    images = 255 * torch.randint(0, 2, (4, 3, 96, 96), dtype=torch.uint8, generator=seeded())
    for resize, size in ((70, 64), (128, 96)):
        expected = with_pil(
            images,
            lambda image, r=resize, s=size: F.center_crop(F.resize(image, [r], InterpolationMode.BICUBIC), [s]),
        )
        assert_pils(resize_center_crop(images, resize, size), expected)
        assert_pils(torch.cat([resize_center_crop_one(image, resize, size) for image in images]), expected)
    for crop_of in (lambda: resize_center_crop(images, 60, 64), lambda: resize_center_crop_one(images[0], 60, 64)):
        with pytest.raises(ValueError, match="does not fit"):
            crop_of()


@pytest.mark.parametrize(("h", "w"), [(1, 1), (5, 300), (33, 32), (401, 7), (100, 101)])
def test_one_image_is_resized_as_a_batch_is(h: int, w: int) -> None:
    image = torch.randint(0, 256, (3, h, w), dtype=torch.uint8, generator=seeded())
    for resize, size in ((32, 32), (37, 32), (9, 8)):
        expected = resize_center_crop(image[None], resize, size)
        torch.testing.assert_close(resize_center_crop_one(image, resize, size), expected, rtol=0, atol=0)


def test_each_image_has_its_own_box_and_flip() -> None:
    images = natural(7, 40, 50)
    boxes = draw_crops(7, 40, 50, (0.1, 1.0), (0.5, 2.0), seeded())
    flip = torch.tensor([True, False, True, True, False, False, True])
    together = crop(images, boxes, 16, flip)
    for i in range(7):
        alone = crop(images[i : i + 1], boxes[i : i + 1], 16)
        expected = alone.flip(3) if flip[i] else alone
        torch.testing.assert_close(together[i : i + 1], expected, rtol=0, atol=1e-6)


def test_no_flip_is_the_default() -> None:
    images, box = natural(2, 20, 20), torch.tensor([[1, 2, 15, 12]] * 2)
    unflipped = crop(images, box, 16, torch.zeros(2, dtype=torch.bool))
    torch.testing.assert_close(crop(images, box, 16), unflipped, rtol=0, atol=0)


@pytest.mark.parametrize(("in_size", "out_size"), [(32, 32), (20, 33), (50, 16), (128, 8), (300, 64), (1100, 8)])
def test_the_matrix_of_a_crop_holds_the_weights_of_its_length(in_size: int, out_size: int) -> None:
    """Whether they come out of the table or not, and in double where there are many."""
    length = torch.randint(1, in_size + 1, (60,), generator=seeded())
    length[:2] = torch.tensor([1, in_size])
    start = (torch.rand(60, generator=seeded(1)) * (in_size - length + 1)).long()
    matrix = crop_matrix(axis_taps(start, length, in_size, out_size, CPU), in_size)
    assert (in_size <= TABLE_LIMIT) == (matrix.dtype == torch.float32)
    for row, begin, pixels in zip(matrix, start.tolist(), length.tolist(), strict=True):
        first, weights = bicubic_taps(torch.tensor([pixels]), out_size)
        for i in range(out_size):
            at = begin + int(first[0, i])
            taps = weights[0, i][: begin + pixels - at]
            assert torch.equal(row[i, at : at + len(taps)], taps.to(row.dtype))
            assert row[i].count_nonzero() == weights[0, i].count_nonzero()
    assert (matrix.sum(dim=2) / 2**22 - 1).abs().max() < 1e-4


@pytest.mark.parametrize(("height", "width"), [(96, 96), (64, 64), (83, 122), (97, 75), (40, 60), (250, 187)])
def test_resize_and_central_crop_are_torchvisions(height: int, width: int) -> None:
    images = natural(2, height, width)

    def reference(image: Image.Image) -> Image.Image:
        return F.center_crop(F.resize(image, 70, InterpolationMode.BICUBIC), [64, 64])

    found = resize_center_crop(images, 70, 64)
    assert found.dtype == torch.float32
    assert_pils(found, with_pil(images, reference))


def test_images_that_have_the_evaluation_size_already_are_left_alone() -> None:
    images = natural(2, 64, 64)
    torch.testing.assert_close(resize_center_crop(images, 64, 64), images.float(), rtol=0, atol=0)


@pytest.mark.parametrize("sigma", [0.1, 0.3, 0.5, 1.0, 1.5, 2.0])
@pytest.mark.parametrize("size", [16, 64, 224])
def test_blur_is_pils_on_images_and_on_noise_up_to_the_edges(sigma: float, size: int) -> None:
    noise = 255 * torch.randint(0, 2, (2, 3, size, size), dtype=torch.uint8, generator=seeded())
    images = torch.cat([natural(2, size, size), noise])
    expected = with_pil(images, lambda image: image.filter(ImageFilter.GaussianBlur(sigma)))
    assert_pils(gaussian_blur(images.float(), blur_weights(torch.full((4,), sigma), size, CPU)), expected)


def test_each_image_is_blurred_by_its_own_sigma_and_not_at_all_by_zero() -> None:
    images = natural(3, 32, 32).float()
    sigma = torch.tensor([1.7, 0.0, 0.6])
    blurred = gaussian_blur(images, blur_weights(sigma, 32, CPU))
    torch.testing.assert_close(blurred[1], images[1], rtol=0, atol=0)
    for i in (0, 2):
        alone = gaussian_blur(images[i : i + 1], blur_weights(sigma[i : i + 1], 32, CPU))[0]
        torch.testing.assert_close(blurred[i], alone, rtol=0, atol=1e-6)
        assert (blurred[i] - images[i]).abs().max() > 0.02


# --- colour -----------------------------------------------------------------------------------------------------------


def jitter(images: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    pixels = torch.full((len(images),), images[0, 0].numel())
    return color_jitter(images, factors, order, pixels, hue_table("cpu"))


def jitter_one(images: Tensor, operation: int, factor: float) -> Tensor:
    """Colour jitter whose other three operations do nothing."""
    n = len(images)
    factors = torch.tensor(IDENTITY).repeat(n, 1)
    factors[:, operation] = factor
    return jitter(images.float(), factors, torch.arange(4).repeat(n, 1))


@pytest.mark.parametrize("operation", [BRIGHTNESS, CONTRAST, SATURATION])
@pytest.mark.parametrize("factor", [0.0, 0.2, 0.6, 0.9, 1.4, 1.8])
def test_brightness_contrast_and_saturation_are_pils(operation: int, factor: float) -> None:
    images = natural(8, 32, 32)
    expected = with_pil(images, lambda image: ADJUST[operation](image, factor))
    assert_pils(jitter_one(images, operation, factor), expected)


@pytest.mark.parametrize("shift", [-0.5, -0.2, -0.1, -0.003, 0.04, 0.1, 0.2, 0.5])
def test_hue_is_pils_through_its_eight_bit_hsv(shift: float) -> None:
    images = torch.cat(
        [natural(4, 64, 64), torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8, generator=seeded())]
    )
    expected = with_pil(images, lambda image: F.adjust_hue(image, shift))
    assert_pils(jitter_one(images, HUE, shift), expected)


def test_the_hue_of_every_colour_on_a_grid_is_pils() -> None:
    """Where hue times 255 is almost whole, the last digit of a float decides PIL's hue, and up to six levels."""
    grid = torch.cartesian_prod(*3 * [torch.arange(0, 256, 3)]).to(torch.uint8)  # 636,056 colours
    image = grid[:635_904].T.reshape(1, 3, 768, 828)
    expected = with_pil(image, lambda image: F.adjust_hue(image, 0.1))
    assert_pils(jitter_one(image, HUE, 0.1), expected)


def test_gray_is_pils() -> None:
    images = natural(8, 32, 32)
    expected = with_pil(images, lambda image: F.to_grayscale(image, 3))
    assert_pils(to_gray(images.float()).expand(-1, 3, -1, -1), expected)


def test_hue_leaves_gray_alone() -> None:
    gray = natural(2, 8, 8).float()[:, :1].expand(-1, 3, -1, -1)
    torch.testing.assert_close(shift_hue(gray, torch.full((2, 1, 1), 0.3), hue_table("cpu")), gray, rtol=0, atol=0)


def test_the_jitter_follows_each_images_own_order_of_operations() -> None:
    orders = torch.tensor(list(permutations(range(4))))
    images = natural(1, 32, 32).repeat(24, 1, 1, 1)
    factors = (1.4, 0.6, 1.5, 0.1)

    def reference(image: Image.Image, order: Tensor) -> Image.Image:
        for operation in order.tolist():
            image = ADJUST[operation](image, factors[operation])
        return image

    found = jitter(images.float(), torch.tensor(factors).repeat(24, 1), orders)
    expected = with_pil(images, reference, list(orders))
    assert_pils(found, expected)
    apart = [(a - b).abs().max().item() for a, b in combinations(found, 2)]
    assert min(apart) > 1  # no two orders agree


def test_the_identity_factors_change_no_bit() -> None:
    images = natural(24, 16, 16).float()
    orders = torch.tensor(list(permutations(range(4))))
    jittered = jitter(images.clone(), torch.tensor(IDENTITY).repeat(24, 1), orders)
    torch.testing.assert_close(jittered, images, rtol=0, atol=0)


def test_jitter_does_not_write_into_its_input() -> None:
    images = natural(8, 16, 16).float()
    before = images.clone()
    jitter(images, torch.tensor([[1.0, 1.0, 1.0, 0.2]]).repeat(8, 1), torch.tensor([[3, 0, 1, 2]]).repeat(8, 1))
    assert torch.equal(images, before)


def test_normalization_is_per_channel() -> None:
    mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    images = natural(2, 8, 8).float()
    expected = torch.stack([F.normalize(image / 255, list(mean), list(std)) for image in images])
    torch.testing.assert_close(normalize(images, mean, std), expected, rtol=0, atol=1e-6)
