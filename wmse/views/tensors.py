"""Views in operations on whole batches of tensors, on any device.

Shapes: N images, (h, w) input, (H, W) output, channels R, G, B. Pixels are float32 but hold whole grey levels from 0 to
255, and every operation gives the levels that Pillow gives: sums of products are split so that each partial sum is a
whole number which float32 holds exactly, whatever the order of its terms.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from wmse.views.params import (
    BLUR_PASSES,
    BOX_BITS,
    CONTRAST,
    HUE,
    SATURATION,
    WEIGHT_BITS,
    ViewParams,
    ViewRecipe,
    box_filter,
    on_device,
)


def view_by_tensors(
    images: Tensor, recipe: ViewRecipe, params: ViewParams, sizes: Tensor, replayed: bool = False
) -> Tensor:
    """One view of each image, as `make_view` describes it. sizes: (N, 2) on the CPU, like `params`."""
    device = images.device
    pixels = on_device(sizes.prod(dim=1), device)
    crop = crop_taps(params.box, images.shape[-2:], recipe.size, device)
    blur = blur_weights(params.sigma, recipe.size, device) if recipe.blur_p > 0 else None
    compute = replay() if replayed else compute_view
    levels = compute(images, recipe, params.to(device), pixels, crop, blur, hue_table(str(device)))
    return normalize(levels, recipe.mean, recipe.std)  # into new memory: the next replay writes where this one has


def compute_view(
    images: Tensor,
    recipe: ViewRecipe,
    params: ViewParams,
    pixels: Tensor,
    crop: Crop,
    blur: Blur | None,
    hues: Tensor,
) -> Tensor:
    """The pixels of one view of each image: what needs nothing of the host, and whose shapes no draw changes.

    Args:
        images: (N, 3, h, w) uint8; params: on their device, like everything else.
        pixels: (N,) number of pixels of each image.
        crop, blur, hues: of `crop_taps`, `blur_weights` (None: no blur) and `hue_table`.

    Returns:
        (N, 3, H, W) float32, in whole levels.
    """
    x = images.float()
    if recipe.crop_first:
        x, pixels = resized_crop(x, crop, params.flip), torch.full_like(pixels, recipe.size**2)
    x = color_jitter(x, params.factors, params.order, pixels, hues)
    if recipe.grayscale_p > 0:
        x = torch.where(params.gray[:, None, None, None], to_gray(x), x)
    if not recipe.crop_first:
        x = resized_crop(x, crop, params.flip)
    return x if blur is None else gaussian_blur(x, blur)


@lru_cache(maxsize=1)
def replay() -> Callable[..., Tensor]:
    """`compute_view`, recorded for every shape as a CUDA graph: one launch instead of hundreds, of the same operations.

    A compiler that makes operations of its own would fuse multiplications with additions, which changes pixels.
    """
    return torch.compile(compute_view, backend="cudagraphs", fullgraph=True, dynamic=False)


def normalize(x: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(x / 255 - mean) / std per channel of (N, 3, H, W)."""
    shift, scale = on_device(255 * torch.tensor([mean, std], dtype=x.dtype), x.device)[:, :, None, None]
    return (x - shift) / scale


# --- colour -----------------------------------------------------------------------------------------------------------


def to_gray(x: Tensor) -> Tensor:
    """Luminance (ITU-R 601) of (N, 3, h, w) in whole levels, as (N, 1, h, w)."""
    r, g, b = x.unbind(1)
    return ((19595 * r + 38470 * g + 7471 * b + 32768) / 65536).floor().unsqueeze(1)


def color_jitter(x: Tensor, factors: Tensor, order: Tensor, pixels: Tensor, hues: Tensor) -> Tensor:
    """Brightness, contrast, saturation and hue in each image's own random order.

    Args:
        x: (N, 3, h, w); factors, order: (N, 4) as in `ViewParams`.
        pixels: (N,) number of pixels of each image; what lies outside an image is zero.
        hues: the `hue_table`.

    Brightness, contrast and saturation are all a blend ``f * x + (1 - f) * base`` with a different base (black, the
    image's mean luminance, the pixel's luminance), so one position of the order is one blend for all images. As in
    Pillow, a blend is clipped and its fraction is cut off.
    """
    for position in range(4):
        operation = order[:, position, None, None, None]
        factor = factors.gather(1, order[:, position, None])[:, :, None, None]
        luma = to_gray(x)
        # Zero outside the image until its contrast is changed, after which the mean is not needed again.
        total = luma.sum(dim=(1, 2, 3), dtype=torch.int64)
        mean = ((2 * total + pixels) // (2 * pixels)).to(x.dtype)[:, None, None, None]
        base = torch.where(operation == SATURATION, luma, torch.where(operation == CONTRAST, mean, 0.0))
        # Not as one fused multiplication and addition: before the floor, its last digit would differ from Pillow's.
        blended = ((x - base) * factor + base).clamp(0, 255).floor()
        rotated = torch.where(factor == 0, x, shift_hue(x, factor[:, 0], hues))
        x = torch.where(operation == HUE, rotated, blended)
    return x


def shift_hue(x: Tensor, shift: Tensor, hues: Tensor) -> Tensor:
    """Rotate the hue of (N, 3, h, w) by `shift` turns, broadcast as (N, 1, 1), through Pillow's HSV of 8 bits each.

    hues: the `hue_table`.
    """
    r, g, b = x.unbind(1)
    value = x.amax(dim=1)
    chroma = value - x.amin(dim=1)
    # The hue in sixths of a turn, times the chroma.
    place = torch.where(r == value, g - b, torch.where(g == value, b - r + 2 * chroma, r - g + 4 * chroma))
    place = torch.where(place < 0, place + 6 * chroma, place)
    hue = hues[(HUE_PLACES * chroma + place).long()]
    # The hue has 255 steps a turn but wraps around at 256.
    hue = (hue + (255 * shift.double()).trunc()).remainder(256).to(x.dtype)
    saturation = (255 * chroma / value.clamp(min=1)).floor()
    channels = []
    # HSV to RGB without a case analysis: each channel's distance from the pure hue is a clipped tent over the circle.
    for centre, sign, offset in ((3, -1, 2), (2, 1, -1), (4, 1, -1)):
        distance = ((6 * hue - 255 * centre).abs() * sign + 255 * offset).clamp(0, 255)
        # Whole numbers: the quotient by 255 * 255 is never half-way between two levels, but may come close.
        missing = (2 * (value * saturation * distance).int() + 255 * 255).div(2 * 255 * 255, rounding_mode="floor")
        channels.append(value - missing)
    return torch.stack(channels, dim=1)


HUE_PLACES = 6 * 256  # Places of a hue in the table for one chroma, which uses the first 6 * chroma of them.


@lru_cache(maxsize=8)
def hue_table(device: str) -> Tensor:
    """Pillow's hue for every chroma and place on the circle: (256 * HUE_PLACES,) float32.

    Pillow computes it in a mixture of float and double, whose roundings decide about a level now and then.
    """
    chroma = torch.arange(256, dtype=torch.float64)[:, None].clamp(min=1)
    place = torch.arange(HUE_PLACES, dtype=torch.float64)
    r, g, b = (
        torch.minimum(channel.clamp(min=0), chroma)  # of a colour of this hue whose smallest channel is 0
        for channel in (
            (place - 3 * chroma).abs() - chroma,
            2 * chroma - (place - 2 * chroma).abs(),
            2 * chroma - (place - 4 * chroma).abs(),
        )
    )
    from_r, from_g, from_b = (((chroma - channel) / chroma).float().double() for channel in (r, g, b))
    others = torch.where(g == chroma, 2 + from_r - from_b, 4 + from_g - from_r)
    sixths = torch.where(r == chroma, from_b - from_g, others)
    turns = (sixths.float().double() / 6 + 1).remainder(1).float().double()
    hue = (turns * 255).floor()
    hue[0] = 0  # gray has none
    return hue.float().flatten().to(device)


# --- geometry ---------------------------------------------------------------------------------------------------------


# Of each image, the first input pixel of every output pixel along an axis, and the weights of it and those after it.
Taps = tuple[Tensor, Tensor]
Crop = tuple[Taps, Taps]  # of rows and of columns


def resized_crop(x: Tensor, crop: Crop, flip: Tensor | None = None) -> Tensor:
    """Cut a box out of each image and resize it bicubically to (H, W), with Pillow's antialiasing.

    Args:
        x: (N, 3, h, w); crop: of `crop_taps`; flip: (N,) mirror left and right afterwards.

    Returns:
        (N, 3, H, W). Both directions are matrix products per image.
    """
    rows, columns = (crop_matrix(taps, size) for taps, size in zip(crop, x.shape[-2:], strict=True))
    if flip is not None:
        columns = torch.where(flip[:, None, None], columns.flip(1), columns)
    x = weigh(x, columns, WEIGHT_BITS)  # Pillow rounds between the passes
    return weigh(x.mT, rows, WEIGHT_BITS).mT


def resize_center_crop_one(image: Tensor, resize: int, size: int) -> Tensor:
    """`resize_center_crop` of one image (3, h, w) on the CPU, as (1, 3, size, size): by Pillow, in the calling thread.

    Threads that have an image each then do not start, and wait for, threads of torch's own.
    """
    from PIL import Image

    new_h, new_w, top, left = _central(*image.shape[-2:], resize, size)
    resized = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((new_w, new_h), Image.Resampling.BICUBIC)
    square = np.array(resized.crop((left, top, left + size, top + size)))
    return torch.from_numpy(square).permute(2, 0, 1)[None].float()


def _central(h: int, w: int, resize: int, size: int) -> tuple[int, int, int, int]:
    """Height and width after the resize of (h, w), and top and left of the crop."""
    short = min(h, w)
    new_h, new_w = (resize, int(resize * w / short)) if h == short else (int(resize * h / short), resize)
    if size > min(new_h, new_w):
        raise ValueError(f"a crop of {size} pixels does not fit into images resized to {new_h} x {new_w}")
    return new_h, new_w, round((new_h - size) / 2), round((new_w - size) / 2)


LOW_BITS = 8  # The low bits of the weights are summed up apart from the others.
MOST_TAPS = 448  # Sums of the low bits of more products than these may not fit into the 24 bits of float32.


def weigh(x: Tensor, weights: Tensor, bits: int) -> Tensor:
    """Weighted sums along the rows of images, rounded half up and clipped to whole levels.

    Args:
        x: (N, c, h, w) whole levels; weights: (N, W, w), or (W, w) for all images, whole numbers in units of 2^-bits.

    Returns:
        (N, c, h, W) float32.
    """
    lines = x.flatten(1, 2).to(weights.dtype)
    high = (weights / 2**LOW_BITS).round()
    low = weights - 2**LOW_BITS * high
    carried = ((lines @ low.mT + 2 ** (bits - 1)) / 2**LOW_BITS).floor()
    levels = ((lines @ high.mT + carried) / 2 ** (bits - LOW_BITS)).floor().clamp(0, 255)
    return levels.float().unflatten(1, x.shape[1:3])


def crop_taps(box: Tensor, in_size: tuple[int, int], out_size: int, device: torch.device) -> Crop:
    """What `resized_crop` needs of boxes of top, left, height, width in images of `in_size`: (N, 4) int64 on the CPU.

    The weights are computed there, so that they are the same everywhere.
    """
    rows, columns = (axis_taps(box[:, i], box[:, 2 + i], in_size[i], out_size, device) for i in range(2))
    return rows, columns


def axis_taps(start: Tensor, length: Tensor, in_size: int, out_size: int, device: torch.device) -> Taps:
    """For [start, start + length) of an axis, (N,) int64 on the CPU: (N, out_size) and (N, out_size, taps)."""
    if in_size > TABLE_LIMIT:
        first, weights = bicubic_taps(length, out_size)
    else:
        table_first, table_weights = _taps_of_all_lengths(-(-in_size // 128) * 128, out_size)
        first, weights = table_first[length], table_weights[length]
    return on_device(first + start[:, None], device), on_device(weights, device)


def crop_matrix(taps: Taps, in_size: int) -> Tensor:
    """Weights that crop an axis and resample it, as matrices: (N, out_size, in_size)."""
    first, weights = taps
    n, out_size, count = weights.shape
    matrix = weights.new_zeros(n, out_size, in_size + count)  # the last taps may reach beyond, with weights 0
    matrix.scatter_(2, first[:, :, None] + torch.arange(count, device=first.device), weights)
    return matrix[:, :, :in_size]


TABLE_LIMIT = 1024  # Weights for axes of at most so many pixels are looked up in a table of all lengths.


@lru_cache(maxsize=16)
def _taps_of_all_lengths(most: int, out_size: int) -> tuple[Tensor, Tensor]:
    """`bicubic_taps` for every length from 0 to `most`."""
    return bicubic_taps(torch.arange(most + 1).clamp(min=1), out_size)


def bicubic_taps(length: Tensor, out_size: int) -> tuple[Tensor, Tensor]:
    """Pillow's bicubic filter (a = -0.5, support widened when shrinking) over axes of `length` (N,) pixels.

    Returns:
        The first input pixel of every output pixel, (N, out_size) int64, and the weights of it and of those that
        follow in units of 2^-22, (N, out_size, taps): whole numbers in float32, or in float64 if there are many.
    """
    pixels = length.double()[:, None]
    scale = pixels / out_size
    stretch = scale.clamp(min=1)
    center = (torch.arange(out_size, dtype=torch.float64) + 0.5) * scale
    first = (center - 2 * stretch + 0.5).floor().clamp(min=0)
    count = torch.minimum((center + 2 * stretch + 0.5).floor(), pixels) - first
    taps = int(count.max())
    k = torch.arange(taps, dtype=torch.float64)
    t = ((k + first[:, :, None] - center[:, :, None] + 0.5) * (1 / stretch)[:, :, None]).abs()
    near = (1.5 * t - 2.5) * t * t + 1
    far = (((t - 5) * t + 8) * t - 4) * -0.5
    weight = torch.where(t < 1, near, torch.where(t < 2, far, 0.0)) * (k < count[:, :, None])
    total = torch.zeros_like(center)
    for i in range(taps):  # in this order, as the last digit may decide
        total += weight[:, :, i]
    weight = weight / total[:, :, None] * 2**WEIGHT_BITS
    rounded = torch.where(weight < 0, weight - 0.5, weight + 0.5).trunc()
    return first.long(), rounded.float() if taps <= MOST_TAPS else rounded


def resize_center_crop(images: Tensor, resize: int, size: int) -> Tensor:
    """Shorter side to `resize` (bicubic, Pillow), then the central (size, size): the un-augmented view of an image.

    Args:
        images: (N, 3, h, w) uint8.

    Returns:
        (N, 3, size, size) float32, in whole levels.
    """
    h, w = images.shape[-2:]
    new_h, new_w, top, left = _central(h, w, resize, size)
    start = torch.zeros(1, dtype=torch.int64)
    device = images.device
    rows = crop_matrix(axis_taps(start, start + h, h, new_h, device), h)[0, top : top + size]
    columns = crop_matrix(axis_taps(start, start + w, w, new_w, device), w)[0, left : left + size]
    x = weigh(images, columns, WEIGHT_BITS)  # Pillow rounds between the passes
    return weigh(x.mT, rows, WEIGHT_BITS).mT


# --- blur -------------------------------------------------------------------------------------------------------------


Blur = tuple[Tensor, Tensor]  # For every distance: the weight of a pixel, and of all pixels farther away.


def blur_weights(sigma: Tensor, size: int, device: torch.device) -> Blur:
    """What `gaussian_blur` needs of standard deviations in pixels, (N,) on the CPU: (N, size) each."""
    radius, full, part = (column[:, None] for column in box_filter(sigma).unbind(1))
    distance = torch.arange(max(size, int(radius.max()) + 2))
    weight = torch.where(distance <= radius, full, torch.where(distance == radius + 1, part, 0)).float()
    beyond = weight.sum(dim=1, keepdim=True) - weight.cumsum(dim=1)
    return on_device(weight[:, :size], device), on_device(beyond[:, :size], device)


def gaussian_blur(x: Tensor, blur: Blur) -> Tensor:
    """Pillow's Gaussian blur of (N, 3, H, H), each image by its own `blur_weights`; sigma 0 changes nothing.

    Pillow approximates the Gaussian by three passes of a box filter along the rows, then along the columns. A pass
    repeats the edge pixels outside and rounds to whole levels.
    """
    weight, beyond = blur
    pixel = torch.arange(x.shape[-1], device=x.device)
    matrix = weight[:, (pixel[:, None] - pixel).abs()]
    matrix[:, :, 0] += beyond  # an edge pixel stands for those outside, too
    matrix[:, :, -1] += beyond.flip(1)
    for _ in range(2):
        for _ in range(BLUR_PASSES):
            x = weigh(x, matrix, BOX_BITS)
        x = x.mT
    return x
