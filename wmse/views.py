"""Random views of images: colour jitter, grayscale, resized crop, flip, blur (paper, Section 5 and Appendix).

The order and the arithmetic are those of the authors' torchvision/PIL pipeline, but every operation takes a whole
batch: parameters are drawn per image and per view on the CPU (so that one seed means the same views on every device)
and the pixels are computed where the images are. Each operation is a function of tensors.

Shapes: N images, (h, w) input, (H, W) output. Pixels are float32 in [0, 1], channels R, G, B.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import lru_cache

import torch
from torch import Tensor

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as PIL's convert("L")


@dataclass(frozen=True)
class ViewRecipe:
    """The distribution of the views; defaults are the CIFAR recipe of the authors' code.

    Attributes:
        size: side of the square output in pixels.
        crop_scale: range of the crop's share of the image's area.
        crop_ratio: range of the crop's aspect ratio (width / height), drawn uniformly in its logarithm.
        jitter: strengths of brightness, contrast, saturation and hue.
        jitter_p, grayscale_p, flip_p, blur_p: probabilities.
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

        def move(t: Tensor) -> Tensor:
            pinned = t.pin_memory() if torch.device(device).type == "cuda" else t
            return pinned.to(device, non_blocking=True)

        return ViewParams(*(move(getattr(self, field.name)) for field in fields(self)))

    def __getitem__(self, index: slice) -> ViewParams:
        return ViewParams(*(getattr(self, field.name)[index] for field in fields(self)))


def make_view(images: Tensor, recipe: ViewRecipe, params: ViewParams, chunk: int = 256) -> Tensor:
    """One view of each image.

    Args:
        images: (N, 3, h, w) uint8.
        params: on the CPU.
        chunk: images processed at a time on the CPU, so that intermediates stay in the cache.

    Returns:
        (N, 3, H, W) float32, normalised, on the images' device.
    """
    if images.is_cuda:
        return _view_chunk(images, recipe, params.to(images.device))
    out = torch.empty(len(images), 3, recipe.size, recipe.size)
    for start in range(0, len(images), chunk):
        part = slice(start, start + chunk)
        out[part] = _view_chunk(images[part], recipe, params[part])
    return out


def _view_chunk(images: Tensor, recipe: ViewRecipe, params: ViewParams) -> Tensor:
    x = images.float().div_(255)
    x = color_jitter(x, params.factors, params.order)
    if recipe.grayscale_p > 0:
        x = torch.where(params.gray[:, None, None, None], to_gray(x), x)
    x = resized_crop(x, params.box, recipe.size, params.flip)
    if recipe.blur_p > 0:
        x = gaussian_blur(x, params.sigma, recipe.blur_sigma[1])
    return normalize(x, recipe.mean, recipe.std)


def normalize(x: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(x - mean) / std per channel of (N, 3, H, W)."""
    shift = torch.tensor(mean, dtype=x.dtype, device=x.device).view(-1, 1, 1)
    scale = torch.tensor(std, dtype=x.dtype, device=x.device).view(-1, 1, 1)
    return (x - shift) / scale


# --- drawing the parameters -------------------------------------------------------------------------------------------


def draw_params(n: int, height: int, width: int, recipe: ViewRecipe, generator: torch.Generator) -> ViewParams:
    """Draw the parameters of one view of each of n images of (height, width) pixels, with a CPU generator."""

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(n).uniform_(low, high, generator=generator)

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


def draw_crops(
    n: int,
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    generator: torch.Generator,
    attempts: int = 10,
) -> Tensor:
    """Boxes of random resized crops with torchvision's sampler: (n, 4) int64 of top, left, height, width.

    Up to ten attempts draw an area and a log-uniform aspect ratio; the first box that fits is placed uniformly. If
    none fits, the largest central box within the range of ratios is taken.
    """
    area = torch.empty(n, attempts).uniform_(*scale, generator=generator) * (height * width)
    log_ratio = torch.empty(n, attempts).uniform_(math.log(ratio[0]), math.log(ratio[1]), generator=generator)
    aspect = log_ratio.exp()
    w = (area * aspect).sqrt().round().long()
    h = (area / aspect).sqrt().round().long()
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = fits.byte().argmax(dim=1, keepdim=True)
    h, w = h.gather(1, first)[:, 0], w.gather(1, first)[:, 0]
    place = torch.rand(n, 2, generator=generator, dtype=torch.float64)
    top = (place[:, 0] * (height - h + 1)).long()
    left = (place[:, 1] * (width - w + 1)).long()
    box = torch.stack([top, left, h, w], dim=1)
    return torch.where(fits.any(dim=1, keepdim=True), box, _central_box(height, width, ratio))


def _central_box(height: int, width: int, ratio: tuple[float, float]) -> Tensor:
    if width / height < ratio[0]:
        w, h = width, round(width / ratio[0])
    elif width / height > ratio[1]:
        h, w = height, round(height * ratio[1])
    else:
        h, w = height, width
    return torch.tensor([(height - h) // 2, (width - w) // 2, h, w])


# --- colour -----------------------------------------------------------------------------------------------------------


def to_gray(x: Tensor) -> Tensor:
    """Luminance of (N, 3, h, w), as (N, 1, h, w)."""
    r, g, b = x.unbind(1)
    return (LUMA[0] * r + LUMA[1] * g + LUMA[2] * b).unsqueeze(1)


def color_jitter(x: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """Brightness, contrast, saturation and hue in each image's own random order, clamped to [0, 1] after each.

    Args:
        x: (N, 3, h, w); factors, order: (N, 4) as in `ViewParams`.

    Brightness, contrast and saturation are all a blend ``f * x + (1 - f) * base`` with a different base (black, the
    image's mean luminance, the pixel's luminance), so one position of the order is one blend for all images, except
    for the quarter of the images whose hue is due.
    """
    for position in range(4):
        operation = order[:, position]
        factor = factors.gather(1, operation[:, None])[:, :, None, None]
        is_hue = operation == HUE
        luma = to_gray(x)
        contrast_base = luma.mean(dim=(2, 3), keepdim=True)
        pick = operation[:, None, None, None]
        base = torch.where(pick == SATURATION, luma, torch.where(pick == CONTRAST, contrast_base, 0.0))
        blend = torch.where(is_hue[:, None, None, None], 1.0, factor)
        x = torch.lerp(base.expand_as(x), x, blend.expand_as(x)).clamp_(0, 1)  # exactly x where blend is 1
        x = _shift_hue_of(x, is_hue, factor[:, 0])
    return x


def _shift_hue_of(x: Tensor, is_hue: Tensor, shift: Tensor) -> Tensor:
    if x.is_cuda:  # no data-dependent shapes: they would make the host wait for the device
        return torch.where(is_hue[:, None, None, None], shift_hue(x, shift), x)
    rows = (is_hue & (shift[:, 0, 0] != 0)).nonzero()[:, 0]
    x[rows] = shift_hue(x[rows], shift[rows])
    return x


def shift_hue(x: Tensor, shift: Tensor) -> Tensor:
    """Rotate the hue of (N, 3, h, w) by `shift` turns, broadcast as (N, 1, 1)."""
    value, lowest = x.amax(dim=1), x.amin(dim=1)
    r, g, b = x.unbind(1)
    chroma = value - lowest
    safe = torch.where(chroma == 0, 1.0, chroma)
    hue = torch.where(value == r, (g - b) / safe, torch.where(value == g, 2 + (b - r) / safe, 4 + (r - g) / safe))
    hue = hue + 6 * shift  # in sixths of a turn

    def channel(offset: float) -> Tensor:
        # HSV to RGB without a case analysis: f(n) = V - C * clamp(min(k, 4 - k), 0, 1), k = (n + H) mod 6
        k = (hue + offset).remainder(6)
        return value - chroma * torch.minimum(k, 4 - k).clamp_(0, 1)

    return torch.stack([channel(5), channel(3), channel(1)], dim=1)


# --- geometry ---------------------------------------------------------------------------------------------------------


def resized_crop(x: Tensor, box: Tensor, size: int, flip: Tensor | None = None) -> Tensor:
    """Cut a box out of each image and resize it bicubically to (size, size), with PIL's antialiasing.

    Args:
        x: (N, 3, h, w); box: (N, 4) of top, left, height, width; flip: (N,) mirror left and right afterwards.

    Returns:
        (N, 3, size, size), clamped to [0, 1]. Both directions are one small matrix product per image.
    """
    n, c, h, w = x.shape
    rows = crop_matrix(box[:, 0], box[:, 2], h, size)
    columns = crop_matrix(box[:, 1], box[:, 3], w, size)
    if flip is not None:
        columns = torch.where(flip[:, None, None], columns.flip(1), columns)
    x = torch.bmm(x.reshape(n, c * h, w), columns.mT).view(n, c, h, size).clamp_(0, 1)  # PIL clips between the passes
    return torch.matmul(rows[:, None], x).clamp_(0, 1)


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


def gaussian_blur(x: Tensor, sigma: Tensor, largest: float) -> Tensor:
    """Gaussian blur of (N, 3, h, w) with each image's own standard deviation in pixels; 0 leaves it unchanged.

    Args:
        largest: upper bound of sigma; it sets the width of the kernel (3 sigma to each side). Edges are replicated,
            as PIL does.
    """
    n, c, h, w = x.shape
    radius = math.ceil(3 * largest)
    offset = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
    kernel = torch.exp(-0.5 * (offset / sigma.clamp(min=1e-3)[:, None]) ** 2)
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(c, dim=0)
    flat = x.reshape(1, n * c, h, w)
    flat = torch.nn.functional.pad(flat, (radius, radius, radius, radius), mode="replicate")
    flat = torch.nn.functional.conv2d(flat, kernel[:, None, None, :], groups=n * c)
    flat = torch.nn.functional.conv2d(flat, kernel[:, None, :, None], groups=n * c)
    return flat.view(n, c, h, w)


def resize_center_crop(images: Tensor, resize: int, size: int) -> Tensor:
    """Shorter side to `resize` (bicubic, PIL), then the central (size, size): the un-augmented view of an image.

    Args:
        images: (N, 3, h, w) uint8.

    Returns:
        (N, 3, size, size) float32 in [0, 1].
    """
    h, w = images.shape[-2:]
    short = min(h, w)
    new_h, new_w = (resize, int(resize * w / short)) if h == short else (int(resize * h / short), resize)
    rows = bicubic_matrix(h, new_h).to(images.device)
    columns = bicubic_matrix(w, new_w).to(images.device)
    top, left = round((new_h - size) / 2), round((new_w - size) / 2)
    if size > min(new_h, new_w):
        raise ValueError(f"a crop of {size} pixels does not fit into images resized to {new_h} x {new_w}")
    x = (images.float().div_(255) @ columns[left : left + size].T).clamp_(0, 1)  # PIL clips between the passes
    return (rows[top : top + size] @ x).clamp_(0, 1)
