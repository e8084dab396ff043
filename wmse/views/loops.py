"""Views by compiled loops on a CPU: each image goes through all operations on its own, in as many threads as torch has.

The pixels are those of `wmse.views.tensors`, whose operations of the same purpose say what is computed.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit
from numpy import float32, float64, int32, int64, ndarray, uint8
from torch import Tensor

from wmse.compiled import FUSED, STRICT, cached, in_threads
from wmse.views.params import BRIGHTNESS, CONTRAST, HUE, SATURATION, ViewParams, ViewRecipe
from wmse.views.tensors import gaussian_blur, normalize


def view_by_loops(images: Tensor, recipe: ViewRecipe, params: ViewParams, sizes: Tensor) -> Tensor:
    """One view of each image, as `make_view` describes it, all on the CPU. The blur is the tensors'."""
    blurs = params.sigma.nonzero()[:, 0] if recipe.blur_p > 0 else ()
    gray = params.gray if recipe.grayscale_p > 0 else torch.zeros_like(params.gray)
    if len(blurs):  # `normalize` comes after them
        shift, scale = torch.zeros(3), torch.ones(3)
    else:
        shift, scale = 255 * torch.tensor(recipe.mean), 255 * torch.tensor(recipe.std)
    out = torch.empty(len(images), 3, recipe.size, recipe.size)
    tensors = (images, sizes, params.order, params.factors, gray, params.box, params.flip, shift, scale, out)
    arrays = [tensor.contiguous().numpy() for tensor in tensors]
    in_threads(lambda start, stop: fill_views(start, stop, *arrays), len(images))
    if not len(blurs):
        return out
    for rows in blurs.split(max(1, BLUR_PIXELS // recipe.size**2)):
        out[rows] = gaussian_blur(out[rows], params.sigma[rows], recipe.blur_sigma[1])
    return normalize(out, recipe.mean, recipe.std)


BLUR_PIXELS = 2**17  # Pixels that are blurred at a time, so that intermediate results stay in the cache.


@cached
def fill_views(
    start: int,
    stop: int,
    images: ndarray,
    sizes: ndarray,
    order: ndarray,
    factors: ndarray,
    gray: ndarray,
    box: ndarray,
    flip: ndarray,
    shift: ndarray,
    scale: ndarray,
    out: ndarray,
) -> None:
    """Jitter, gray, crop, resize, flip and normalise the images from `start` to before `stop`.

    Args:
        images: (N, 3, h, w) uint8; sizes: (N, 2) int64, height and width of each.
        order, factors, gray, box, flip: as in `ViewParams`.
        shift, scale: (3,) float32; a level x becomes (x - shift) / scale.
        out: (N, 3, H, W) float32.
    """
    for i in range(start, stop):
        one_view(images[i], sizes[i], order[i], factors[i], gray[i], box[i], flip[i], shift, scale, out[i])


@njit(**STRICT)
def one_view(
    image: ndarray,
    image_size: ndarray,
    order: ndarray,
    factors: ndarray,
    gray: bool,
    box: ndarray,
    flip: bool,
    shift: ndarray,
    scale: ndarray,
    out: ndarray,
) -> None:
    """`fill_views` of one image; levels stay uint8 between the operations, which round to whole levels anyway.

    Only the contrast looks beyond the crop: what comes before it is done to the whole image, the rest to the box.
    """
    height, width = image_size
    top, left, rows, columns = box
    r, g, b = np.empty((3, height * width), uint8)
    mean = float32(0)
    first = 0
    if factors[CONTRAST] != 1:
        cut(image, 0, 0, height, width, r, g, b)
        while order[first] != CONTRAST:
            adjust(r, g, b, height * width, order[first], factors[order[first]], mean)
            first += 1
        mean = mean_luma(r, g, b, height * width)
        for plane in (r, g, b):
            for y in range(rows):  # the box moves to the front, in place: never to where it has yet to be read
                for x in range(columns):
                    plane[y * columns + x] = plane[(top + y) * width + left + x]
    else:
        cut(image, top, left, rows, columns, r, g, b)
    n = rows * columns
    for position in range(first, 4):
        adjust(r, g, b, n, order[position], factors[order[position]], mean)
    if gray:
        turn_gray(r, g, b, n)
    across, down = bicubic_taps(columns, len(out[0])), bicubic_taps(rows, len(out[0]))
    for channel, plane in enumerate((r, g, b)):
        resize(plane, rows, columns, across, down, flip, shift[channel], scale[channel], out[channel])


@njit(**STRICT)
def cut(image: ndarray, top: int, left: int, rows: int, columns: int, r: ndarray, g: ndarray, b: ndarray) -> None:
    """Copy a box of the (3, h, w) image into planes of `columns` a row."""
    for channel, plane in enumerate((r, g, b)):
        for y in range(rows):
            for x in range(columns):
                plane[y * columns + x] = image[channel, top + y, left + x]


@njit(**STRICT)
def adjust(r: ndarray, g: ndarray, b: ndarray, n: int, operation: int, factor: float, mean: float) -> None:
    """One operation of the jitter on n pixels, in place. mean: the mean luminance, for the contrast."""
    if operation == HUE:
        if factor != 0:
            rotate_hue(r, g, b, n, factor)
    elif factor != 1:
        if operation == SATURATION:
            saturate(r, g, b, n, factor)
        else:
            base = float32(0) if operation == BRIGHTNESS else mean
            for plane in (r, g, b):
                for i in range(n):
                    plane[i] = blend(plane[i], base, factor)


@njit(**STRICT)
def blend(x: int, base: float, factor: float) -> int:
    """factor * x + (1 - factor) * base, clipped, its fraction cut off."""
    return uint8(min(max((float32(x) - base) * factor + base, float32(0)), float32(255)))


@njit(**STRICT)
def luma(r: int, g: int, b: int) -> int:
    """PIL's convert("L"): whole numbers are exact, as float32 is here."""
    return (int32(19595) * int32(r) + int32(38470) * int32(g) + int32(7471) * int32(b) + int32(32768)) >> 16


@njit(**STRICT)
def mean_luma(r: ndarray, g: ndarray, b: ndarray, n: int) -> float:
    total = int64(0)
    for i in range(n):
        total += luma(r[i], g[i], b[i])
    return np.floor(float32(total) / float32(n) + float32(0.5))


@njit(**STRICT)
def saturate(r: ndarray, g: ndarray, b: ndarray, n: int, factor: float) -> None:
    for i in range(n):
        base = float32(luma(r[i], g[i], b[i]))
        r[i], g[i], b[i] = blend(r[i], base, factor), blend(g[i], base, factor), blend(b[i], base, factor)


@njit(**STRICT)
def turn_gray(r: ndarray, g: ndarray, b: ndarray, n: int) -> None:
    for i in range(n):
        level = uint8(luma(r[i], g[i], b[i]))
        r[i], g[i], b[i] = level, level, level


@njit(**STRICT)
def rotate_hue(r: ndarray, g: ndarray, b: ndarray, n: int, shift: float) -> None:
    """`shift_hue` of the tensors, digit for digit, but for its products that stand for choices."""
    steps = np.trunc(shift * float32(255))
    for i in range(n):
        x, y, z = float32(r[i]), float32(g[i]), float32(b[i])
        value = max(max(x, y), z)
        chroma = value - min(min(x, y), z)
        divisor = max(chroma, float32(1))
        # In PIL the distances are float and their sums double; the floor below sees the difference.
        x_far, y_far = float64((value - x) / divisor), float64((value - y) / divisor)
        z_far = float64((value - z) / divisor)
        sixths = z_far - y_far if x == value else (x_far - z_far + 2 if y == value else y_far - x_far + 4)
        turns = float64(float32(sixths)) / 6 + 1
        hue = float32(np.floor(float64(float32(turns - np.floor(turns))) * 255)) + steps
        hue = (hue - np.floor(hue / float32(256)) * float32(256)) * float32(6 / 255)
        saturation = np.floor(chroma * float32(255) / max(value, float32(1))) / float32(255)
        r[i] = tent(hue, float32(3), float32(-1), float32(2), saturation, value)
        g[i] = tent(hue, float32(2), float32(1), float32(-1), saturation, value)
        b[i] = tent(hue, float32(4), float32(1), float32(-1), saturation, value)


@njit(**STRICT)
def tent(hue: float, centre: float, sign: float, offset: float, saturation: float, value: float) -> int:
    distance = min(max(abs(hue - centre) * sign + offset, float32(0)), float32(1))
    return uint8((float32(1) - distance * saturation) * value + float32(0.5))


@njit(**STRICT)
def bicubic_taps(length: int, size: int) -> tuple[ndarray, ndarray, ndarray]:
    """`bicubic_weights` of a whole axis without its zeros.

    Returns:
        For each output pixel the first input pixel and their number, (size,) int64, and the weights (size, most)
        float32.
    """
    scale = length / size
    stretch = max(scale, 1.0)
    most = int(4 * stretch) + 2
    first = np.empty(size, int64)
    count = np.empty(size, int64)
    weights = np.empty((size, most), float32)
    exact = np.empty(most)
    for j in range(size):
        center = (j + 0.5) * scale
        first[j] = max(int(np.floor(center - 2 * stretch + 0.5)), 0)
        count[j] = min(int(np.floor(center + 2 * stretch + 0.5)), length) - first[j]
        total = 0.0
        for k in range(count[j]):
            t = abs((first[j] + k + 0.5 - center) / stretch)
            near = (1.5 * t - 2.5) * t * t + 1
            far = ((-0.5 * t + 2.5) * t - 4) * t + 2
            exact[k] = near if t < 1 else (far if t < 2 else 0.0)
            total += exact[k]
        for k in range(count[j]):
            weights[j, k] = exact[k] / total
    return first, count, weights


@njit(**STRICT)
def resize(
    plane: ndarray,
    rows: int,
    columns: int,
    across: tuple[ndarray, ndarray, ndarray],
    down: tuple[ndarray, ndarray, ndarray],
    flip: bool,
    shift: float,
    scale: float,
    out: ndarray,
) -> None:
    """Resample rows * columns levels to `out` (H, W) by the taps of either direction, flip and normalise.

    Both passes add whole lines, which are contiguous: the first one therefore works on the transposed plane.
    """
    size = len(out)
    turned = np.empty((columns, rows), float32)
    middle = np.empty((rows, size), float32)
    for y in range(rows):
        for x in range(columns):
            turned[x, y] = plane[y * columns + x]
    line = np.empty(max(rows, size), float32)
    first, count, weights = across
    for j in range(size):
        weigh_lines(turned, first[j], count[j], weights[j], line)
        place = size - 1 - j if flip else j
        for y in range(rows):
            middle[y, place] = round_level(line[y])  # PIL rounds between the passes
    first, count, weights = down
    for i in range(size):
        weigh_lines(middle, first[i], count[i], weights[i], line)
        for x in range(size):
            out[i, x] = (round_level(line[x]) - shift) / scale


@njit(**FUSED)
def weigh_lines(lines: ndarray, first: int, count: int, weights: ndarray, out: ndarray) -> None:
    """The weighted sum of `count` rows of `lines`, in their order and fused: as MKL's product rounds it."""
    n = lines.shape[1]
    for x in range(n):
        out[x] = weights[0] * lines[first, x]
    for k in range(1, count):
        line, weight = lines[first + k], weights[k]
        for x in range(n):
            out[x] += weight * line[x]


@njit(**STRICT)
def round_level(x: float) -> float:
    """Clipped to [0, 255] and rounded, half to even."""
    return np.rint(min(max(x, float32(0)), float32(255)))
