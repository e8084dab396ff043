"""Views in operations on whole batches of tensors, on any device.

Shapes: N images, (h, w) input, (H, W) output, channels R, G, B. Pixels are float32 but hold whole grey levels from 0 to
255: every operation rounds where PIL's does, so that a view differs from PIL's by a level here and there.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from wmse.views.params import CONTRAST, HUE, SATURATION, ViewParams, ViewRecipe

LUMA = (19595 / 65536, 38470 / 65536, 7471 / 65536)  # PIL's convert("L"), ITU-R 601; exact in float32.


def view_by_tensors(images: Tensor, recipe: ViewRecipe, params: ViewParams, sizes: Tensor) -> Tensor:
    """One view of each image, as `make_view` describes it. sizes: (N, 2) on the CPU, like `params`."""
    pixels = sizes.prod(dim=1)
    if images.is_cuda:
        params = params.to(images.device)
        pixels = pixels.pin_memory().to(images.device, non_blocking=True)
    x = images.float()
    x = color_jitter(x, params.factors, params.order, pixels)
    if recipe.grayscale_p > 0:
        gray = params.gray.float()[:, None, None, None]
        x = torch.lerp(x, to_gray(x).expand_as(x), gray)  # exact for weights 0 and 1
    x = resized_crop(x, params.box, recipe.size, params.flip)
    if recipe.blur_p > 0:
        x = gaussian_blur(x, params.sigma, recipe.blur_sigma[1])
    return normalize(x, recipe.mean, recipe.std)


def normalize(x: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(x / 255 - mean) / std per channel of (N, 3, H, W)."""
    shift = 255 * torch.tensor(mean, dtype=x.dtype, device=x.device).view(-1, 1, 1)
    scale = 255 * torch.tensor(std, dtype=x.dtype, device=x.device).view(-1, 1, 1)
    return (x - shift) / scale


# --- colour -----------------------------------------------------------------------------------------------------------


def to_gray(x: Tensor) -> Tensor:
    """Luminance of (N, 3, h, w) in whole levels, as (N, 1, h, w)."""
    r, g, b = x.unbind(1)
    return (LUMA[0] * r + LUMA[1] * g + LUMA[2] * b).add_(0.5).floor_().unsqueeze(1)


def color_jitter(x: Tensor, factors: Tensor, order: Tensor, pixels: Tensor | None = None) -> Tensor:
    """Brightness, contrast, saturation and hue in each image's own random order.

    Args:
        x: (N, 3, h, w); factors, order: (N, 4) as in `ViewParams`.
        pixels: (N,) number of pixels of each image, None for h * w; what lies outside an image is zero.

    Brightness, contrast and saturation are all a blend ``f * x + (1 - f) * base`` with a different base (black, the
    image's mean luminance, the pixel's luminance), so one position of the order is one blend for all images, except
    for the quarter of the images whose hue is due. As in PIL, a blend is clipped and its fraction is cut off.

    Choices are multiplications by 0 or 1 here and in `shift_hue`: on a CPU `torch.where` takes thirty times as long as
    a product, and `remainder` twenty times; without them the jitter is 1.7 times as fast.
    """
    area = x.shape[-2] * x.shape[-1] if pixels is None else pixels[:, None, None, None]
    for position in range(4):
        operation = order[:, position]
        factor = factors.gather(1, operation[:, None])[:, :, None, None]
        is_hue = operation == HUE
        luma = to_gray(x)
        # Zero outside the image until its contrast is changed, after which the mean is not needed again.
        contrast_base = (luma.sum(dim=(2, 3), keepdim=True) / area).add_(0.5).floor_()
        pick = operation[:, None, None, None]
        base = luma.mul_(pick == SATURATION).add_(contrast_base * (pick == CONTRAST))
        blend = torch.where(is_hue[:, None, None, None], 1.0, factor)
        # Not as one fused multiplication and addition: before the floor, its last digit would differ from PIL's.
        x = (x - base).mul_(blend).add_(base).clamp_(0, 255).floor_()  # exactly x where blend is 1
        x = _shift_hue_of(x, is_hue, factor[:, 0])
    return x


def _shift_hue_of(x: Tensor, is_hue: Tensor, shift: Tensor) -> Tensor:
    if x.is_cuda:  # no data-dependent shapes: they would make the host wait for the device
        return torch.where(is_hue[:, None, None, None], shift_hue(x, shift), x)
    rows = (is_hue & (shift[:, 0, 0] != 0)).nonzero()[:, 0]
    if len(rows):
        x.index_copy_(0, rows, shift_hue(x.index_select(0, rows), shift[rows]))
    return x


def shift_hue(x: Tensor, shift: Tensor) -> Tensor:
    """Rotate the hue of (N, 3, h, w) by `shift` turns, broadcast as (N, 1, 1), through PIL's HSV of eight bits each."""
    r, g, b = x.unbind(1)
    value = torch.maximum(torch.maximum(r, g), b)
    chroma = value - torch.minimum(torch.minimum(r, g), b)
    divisor = chroma.clamp(min=1)
    r, g, b = ((value - channel).div_(divisor) for channel in (r, g, b))  # distances to the largest channel, 0 to 1
    # 1 where this channel is the largest, else 0: other distances are at least 1/255. The first of several counts.
    red = (1 - 256 * r).clamp_(min=0)
    green = (1 - 256 * g).clamp_(min=0).mul_(1 - red)
    # In PIL the distances are float and their sums double; the floor below sees the difference.
    r, g, b = r.double(), g.double(), b.double()
    sixths = (b - g).mul_(red).add_((r - b).add_(2).mul_(green)).add_((g - r).add_(4).mul_(1 - red - green))
    turns = sixths.float().double().div_(6).add_(1)
    # The hue has 255 steps a turn but wraps around at 256.
    hue = turns.sub_(turns.floor()).float().double().mul_(255).floor_().float().add_((shift * 255).trunc())
    hue = hue.sub_((hue / 256).floor_().mul_(256)).mul_(6 / 255)
    saturation = (chroma.mul_(255) / value.clamp(min=1)).floor_().div_(255)
    out = torch.empty_like(x)
    # HSV to RGB without a case analysis: each channel's distance from the pure hue is a clipped tent over the circle.
    for channel, (centre, sign, offset) in zip(out.unbind(1), ((3, -1, 2), (2, 1, -1), (4, 1, -1)), strict=True):
        distance = (hue - centre).abs_().mul_(sign).add_(offset).clamp_(0, 1)
        channel.copy_(distance.mul_(saturation).neg_().add_(1).mul_(value).add_(0.5).floor_())
    return out


# --- geometry ---------------------------------------------------------------------------------------------------------


def resized_crop(x: Tensor, box: Tensor, size: int, flip: Tensor | None = None) -> Tensor:
    """Cut a box out of each image and resize it bicubically to (size, size), with PIL's antialiasing.

    Args:
        x: (N, 3, h, w); box: (N, 4) of top, left, height, width; flip: (N,) mirror left and right afterwards.

    Returns:
        (N, 3, size, size). Both directions are one small matrix product per image.
    """
    n, c, h, w = x.shape
    rows = crop_matrix(box[:, 0], box[:, 2], h, size)
    columns = crop_matrix(box[:, 1], box[:, 3], w, size)
    if flip is not None:
        columns = torch.lerp(columns, columns.flip(1), flip.float()[:, None, None])  # exact for weights 0 and 1
    x = to_levels(torch.bmm(x.reshape(n, c * h, w), columns.mT)).view(n, c, h, size)  # PIL rounds between the passes
    return to_levels(torch.matmul(rows[:, None], x))


def to_levels(x: Tensor) -> Tensor:
    """Clip to [0, 255] and round to whole levels, in place."""
    return x.clamp_(0, 255).round_()


def crop_matrix(start: Tensor, length: Tensor, in_size: int, out_size: int) -> Tensor:
    """Matrices that crop [start, start + length) of an axis and resample it to `out_size`: (N, out_size, in_size).

    For small images the rows come out of a table of all lengths, shifted to `start`.
    """
    if in_size > TABLE_LIMIT:
        return bicubic_weights(start, length, in_size, out_size)
    table = _table_on(in_size, out_size, str(start.device))
    source = torch.arange(in_size, device=start.device) - start[:, None]  # column of the uncropped matrix
    index = torch.where((source >= 0) & (source < length[:, None]), source, in_size)  # the last column is zero
    return table[length].gather(2, index[:, None, :].expand(-1, out_size, -1))


TABLE_LIMIT = 128  # a table takes 4 * in_size^2 * out_size bytes: 4 MB for 128 -> 64 pixels


@lru_cache(maxsize=16)
def _table_on(in_size: int, out_size: int, device: str) -> Tensor:
    """(in_size + 1, out_size, in_size + 1): for each length from 0 the resampling matrix, with a last zero column."""
    length = torch.arange(1, in_size + 1)
    table = torch.zeros(in_size + 1, out_size, in_size + 1)
    table[1:, :, :in_size] = bicubic_weights(torch.zeros_like(length), length, in_size, out_size)
    return table.to(device)


def bicubic_weights(start: Tensor, length: Tensor, in_size: int, out_size: int) -> Tensor:
    """PIL's bicubic filter (a = -0.5, support widened when shrinking) over [start, start + length) of an axis.

    Args:
        start, length: (N,) int64.

    Returns:
        (N, out_size, in_size) float32 whose rows sum to one.
    """
    length = length.double()[:, None, None]
    scale = length / out_size
    stretch = scale.clamp(min=1)
    out = torch.arange(out_size, device=start.device, dtype=torch.float64)[:, None]
    pixel = torch.arange(in_size, device=start.device, dtype=torch.float64) - start[:, None, None]
    center = (out + 0.5) * scale
    first = (center - 2 * stretch + 0.5).floor().clamp(min=0)
    last = torch.minimum((center + 2 * stretch + 0.5).floor(), length)
    t = ((pixel + 0.5 - center) / stretch).abs()
    near = (1.5 * t - 2.5) * t * t + 1
    far = ((-0.5 * t + 2.5) * t - 4) * t + 2
    weight = torch.where(t < 1, near, torch.where(t < 2, far, 0.0))
    weight = torch.where((pixel >= first) & (pixel < last), weight, 0.0)
    return (weight / weight.sum(dim=2, keepdim=True)).float()


def bicubic_matrix(in_size: int, out_size: int) -> Tensor:
    """The (out_size, in_size) matrix of PIL's bicubic resize of a whole axis."""
    return bicubic_weights(torch.tensor([0]), torch.tensor([in_size]), in_size, out_size)[0]


def resize_center_crop(images: Tensor, resize: int, size: int) -> Tensor:
    """Shorter side to `resize` (bicubic, PIL), then the central (size, size): the un-augmented view of an image.

    Args:
        images: (N, 3, h, w) uint8.

    Returns:
        (N, 3, size, size) float32, in whole levels.
    """
    h, w = images.shape[-2:]
    short = min(h, w)
    new_h, new_w = (resize, int(resize * w / short)) if h == short else (int(resize * h / short), resize)
    rows = bicubic_matrix(h, new_h).to(images.device)
    columns = bicubic_matrix(w, new_w).to(images.device)
    top, left = round((new_h - size) / 2), round((new_w - size) / 2)
    if size > min(new_h, new_w):
        raise ValueError(f"a crop of {size} pixels does not fit into images resized to {new_h} x {new_w}")
    x = to_levels(images.float() @ columns[left : left + size].T)  # PIL rounds between the passes
    return to_levels(rows[top : top + size] @ x)


# --- blur -------------------------------------------------------------------------------------------------------------


def gaussian_blur(x: Tensor, sigma: Tensor, largest: float) -> Tensor:
    """PIL's Gaussian blur of (N, 3, H, W) with each image's own standard deviation in pixels; 0 changes nothing.

    PIL approximates the Gaussian by three passes of a box filter along each axis. A pass repeats the edge pixels
    outside and rounds to whole levels.

    Args:
        largest: upper bound of sigma; it sets the width of the kernels.
    """
    n, c, h, w = x.shape
    reach = math.floor(box_radius(torch.tensor(largest)).item()) + 1
    tap = torch.arange(-reach, reach + 1, device=x.device)
    radius = box_radius(sigma)[:, None]
    kernel = (radius + 1 - tap.abs()).clamp(0, 1) / (2 * radius + 1)
    kernel = kernel.to(x.dtype).repeat_interleave(c, dim=0)
    x = x.reshape(1, n * c, h, w)
    along_rows, along_columns = kernel[:, None, None], kernel[:, None, :, None]
    for weight, margin in ((along_rows, (reach, reach, 0, 0)), (along_columns, (0, 0, reach, reach))):
        for _ in range(BLUR_PASSES):
            x = to_levels(conv2d(pad(x, margin, mode="replicate"), weight, groups=n * c))
    return x.view(n, c, h, w)


BLUR_PASSES = 3


def box_radius(sigma: Tensor) -> Tensor:
    """Radius of the box filter, with a fraction, whose passes have the standard deviation `sigma`; float64."""
    variance = sigma.double().square() / BLUR_PASSES
    whole = ((12 * variance + 1).sqrt().sub(1) / 2).floor()
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1).square()))
    return whole + part
