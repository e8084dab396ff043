"""Views by compiled loops on a CPU: each image goes through all operations on its own, in as many threads as torch has.

The pixels are those of `wmse.views.tensors`, whose operations of the same purpose say what is computed.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit
from numpy import float32, float64, int32, int64, ndarray, uint8
from torch import Tensor

from wmse.compiled import STRICT, cached, in_threads
from wmse.views.params import (
    BLUR_PASSES,
    BOX_BITS,
    BRIGHTNESS,
    CONTRAST,
    HUE,
    SATURATION,
    WEIGHT_BITS,
    ViewParams,
    ViewRecipe,
    box_filter,
)


def view_by_loops(images: Tensor, recipe: ViewRecipe, params: ViewParams, sizes: Tensor) -> Tensor:
    """One view of each image, as `make_view` describes it, all on the CPU."""
    gray = params.gray if recipe.grayscale_p > 0 else torch.zeros_like(params.gray)
    box_filters = box_filter(params.sigma if recipe.blur_p > 0 else torch.zeros_like(params.sigma))
    shift, scale = 255 * torch.tensor(recipe.mean), 255 * torch.tensor(recipe.std)  # as in `normalize`
    out = torch.empty(len(images), 3, recipe.size, recipe.size)
    drawn = (params.order, params.factors, gray, params.box, params.flip, box_filters)
    arrays = [tensor.contiguous().numpy() for tensor in (images, sizes, *drawn, shift, scale, out)]
    in_threads(lambda start, stop: fill_views(start, stop, recipe.crop_first, *arrays), len(images))
    return out


@cached
def fill_views(
    start: int,
    stop: int,
    crop_first: bool,
    images: ndarray,
    sizes: ndarray,
    order: ndarray,
    factors: ndarray,
    gray: ndarray,
    box: ndarray,
    flip: ndarray,
    box_filters: ndarray,
    shift: ndarray,
    scale: ndarray,
    out: ndarray,
) -> None:
    """Jitter, gray, crop, resize, flip, blur and normalise the images from `start` to before `stop`.

    Args:
        crop_first: crop, resize and flip come before jitter and gray.
        images: (N, 3, h, w) uint8; sizes: (N, 2) int64, height and width of each.
        order, factors, gray, box, flip: as in `ViewParams`; box_filters: (N, 3) int64, of the blur.
        shift, scale: (3,) float32; a level x becomes (x - shift) / scale.
        out: (N, 3, H, W) float32.
    """
    for i in range(start, stop):
        drawn = order[i], factors[i], gray[i], box[i], flip[i], box_filters[i]
        one_view(crop_first, images[i], sizes[i], *drawn, shift, scale, out[i])


@njit(**STRICT)
def one_view(
    crop_first: bool,
    image: ndarray,
    image_size: ndarray,
    order: ndarray,
    factors: ndarray,
    gray: bool,
    box: ndarray,
    flip: bool,
    box_filter: ndarray,
    shift: ndarray,
    scale: ndarray,
    out: ndarray,
) -> None:
    """`fill_views` of one image; levels stay uint8 between the operations, which round to whole levels anyway."""
    size = len(out[0])
    top, left, rows, columns = box
    height, width = rows, columns  # of what is cut out of the image: the crop, but
    if factors[CONTRAST] != 1 and not crop_first:  # the contrast looks beyond it
        height, width = image_size
        planes = cut(image, 0, 0, height, width)
    else:
        planes = cut(image, top, left, rows, columns)
        top, left = 0, 0
    if not crop_first:
        recolor(planes, width, height * width, (top, left, rows, columns), order, factors, gray)
    across, down = bicubic_taps(columns, size), bicubic_taps(rows, size)
    levels = np.empty((3, size * size), uint8)
    for channel in range(3):
        resize(planes[channel], rows, columns, across, down, flip, levels[channel])
    if crop_first:
        recolor(levels, size, size * size, (0, 0, size, size), order, factors, gray)
    for channel in range(3):
        if box_filter[1] < 1 << BOX_BITS:
            blur(levels[channel], size, box_filter[0], box_filter[1], box_filter[2])
        for y in range(size):
            for x in range(size):
                out[channel, y, x] = (float32(levels[channel, y * size + x]) - shift[channel]) / scale[channel]


@njit(**STRICT)
def recolor(
    planes: ndarray, width: int, n: int, box: tuple[int, int, int, int], order: ndarray, factors: ndarray, gray: bool
) -> None:
    """Jitter and gray of the box of three planes of n pixels, in place; the box moves to their front.

    What comes before the contrast, which needs the mean of all, is done to all pixels, the rest to the box.
    """
    r, g, b = planes[0], planes[1], planes[2]
    top, left, rows, columns = box
    mean = float32(0)
    first = 0
    if factors[CONTRAST] != 1:
        while order[first] != CONTRAST:
            adjust(r, g, b, n, order[first], factors[order[first]], mean)
            first += 1
        mean = mean_luma(r, g, b, n)
        for plane in (r, g, b):
            for y in range(rows):  # never to where it has yet to be read
                for x in range(columns):
                    plane[y * columns + x] = plane[(top + y) * width + left + x]
    n = rows * columns
    for position in range(first, 4):
        adjust(r, g, b, n, order[position], factors[order[position]], mean)
    if gray:
        turn_gray(r, g, b, n)


@njit(**STRICT)
def cut(image: ndarray, top: int, left: int, rows: int, columns: int) -> ndarray:
    """A box of the (3, h, w) image as planes (3, rows * columns)."""
    planes = np.empty((3, rows * columns), uint8)
    for channel in range(3):
        for y in range(rows):
            for x in range(columns):
                planes[channel, y * columns + x] = image[channel, top + y, left + x]
    return planes


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
    """The mean luminance, rounded half up."""
    total = int64(0)
    for i in range(n):
        total += luma(r[i], g[i], b[i])
    return float32((2 * total + n) // (2 * n))


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
    """`shift_hue` of the tensors, with the hue computed instead of looked up."""
    steps = int32(np.trunc(float64(shift) * 255))
    for i in range(n):
        x, y, z = float32(r[i]), float32(g[i]), float32(b[i])
        value = max(max(x, y), z)
        chroma = value - min(min(x, y), z)
        divisor = max(chroma, float32(1))
        # Pillow's distances and sixths are float, the sums between them double: the last digit decides about a level.
        x_far, y_far = float64((value - x) / divisor), float64((value - y) / divisor)
        z_far = float64((value - z) / divisor)
        sixths = z_far - y_far if x == value else (x_far - z_far + 2 if y == value else y_far - x_far + 4)
        turns = float64(float32(sixths)) / 6 + 1
        hue = float32(np.floor(float64(float32(turns - np.floor(turns))) * 255) if chroma > 0 else 0)
        hue = float32((int32(hue) + steps) & 255)
        saturation = np.floor(chroma * float32(255) / max(value, float32(1)))
        r[i] = darken(value, saturation, float32(510) - abs(float32(6) * hue - float32(765)))
        g[i] = darken(value, saturation, abs(float32(6) * hue - float32(510)) - float32(255))
        b[i] = darken(value, saturation, abs(float32(6) * hue - float32(1020)) - float32(255))


@njit(**STRICT)
def darken(value: float, saturation: float, distance: float) -> int:
    """A channel at a `distance` from the pure hue, in 255ths; no quotient lies half-way between two levels."""
    distance = min(max(distance, float32(0)), float32(255))
    return uint8(value - np.floor(value * saturation * distance / float32(65025) + float32(0.5)))


@njit(**STRICT)
def bicubic_taps(length: int, size: int) -> tuple[ndarray, ndarray, ndarray]:
    """The weights of the tensors' function of this name, for one axis.

    Returns:
        For each output pixel the first input pixel and their number, (size,) int64, and the weights (size, most) int32.
    """
    scale = length / size
    stretch = max(scale, 1.0)
    support = 2 * stretch
    shrink = 1 / stretch
    most = 2 * int(np.ceil(support)) + 1
    first = np.empty(size, int64)
    count = np.empty(size, int64)
    weights = np.empty((size, most), int32)
    exact = np.empty(most)
    for j in range(size):
        center = (j + 0.5) * scale
        first[j] = max(int(center - support + 0.5), 0)
        count[j] = min(int(center + support + 0.5), length) - first[j]
        total = 0.0
        for k in range(count[j]):
            t = abs((k + first[j] - center + 0.5) * shrink)
            near = (1.5 * t - 2.5) * t * t + 1
            far = (((t - 5) * t + 8) * t - 4) * -0.5
            exact[k] = near if t < 1 else (far if t < 2 else 0.0)
            total += exact[k]
        for k in range(count[j]):
            weight = exact[k] / total * (1 << WEIGHT_BITS)
            weights[j, k] = int32(weight - 0.5 if weight < 0 else weight + 0.5)
    return first, count, weights


@njit(**STRICT)
def resize(
    plane: ndarray,
    rows: int,
    columns: int,
    across: tuple[ndarray, ndarray, ndarray],
    down: tuple[ndarray, ndarray, ndarray],
    flip: bool,
    out: ndarray,
) -> None:
    """Resample rows * columns levels to levels `out` (size * size) by the taps of either direction, and flip.

    Both passes add whole lines, which are contiguous: the first one therefore works on the transposed plane.
    """
    size = len(across[0])
    turned = np.empty((columns, rows), int32)
    middle = np.empty((rows, size), int32)
    for y in range(rows):
        for x in range(columns):
            turned[x, y] = plane[y * columns + x]
    line = np.empty(max(rows, size), int32)
    first, count, weights = across
    for j in range(size):
        weigh_lines(turned, first[j], count[j], weights[j], line)
        place = size - 1 - j if flip else j
        for y in range(rows):
            middle[y, place] = line[y]  # Pillow rounds between the passes
    first, count, weights = down
    for i in range(size):
        weigh_lines(middle, first[i], count[i], weights[i], line)
        for x in range(size):
            out[i * size + x] = uint8(line[x])


@njit(**STRICT)
def weigh_lines(lines: ndarray, first: int, count: int, weights: ndarray, out: ndarray) -> None:
    """Fill `out` with the weighted sum of `count` of the `lines`, in whole levels."""
    n = lines.shape[1]
    for x in range(n):
        out[x] = 1 << (WEIGHT_BITS - 1)
    for k in range(count):
        line, weight = lines[first + k], weights[k]
        for x in range(n):
            out[x] += weight * line[x]
    for x in range(n):
        out[x] = min(max(out[x] >> WEIGHT_BITS, 0), 255)


@njit(**STRICT)
def blur(plane: ndarray, size: int, radius: int, full: int, part: int) -> None:
    """Pillow's Gaussian blur in place: a box filter three times along the rows, then three times along the columns.

    Args:
        radius, full, part: a row of `box_filter`.
    """
    turned = np.empty((size, size), uint8)
    lines = plane.reshape(size, size)
    for _ in range(2):  # on the transposed image, so that whole lines are added
        for y in range(size):
            for x in range(size):
                turned[x, y] = lines[y, x]
        for _ in range(BLUR_PASSES):
            box_pass(turned, size, radius, full, part)
        lines[:] = turned


@njit(**STRICT)
def box_pass(lines: ndarray, size: int, radius: int, full: int, part: int) -> None:
    """Replace each line by the weighted sum of it and those up to `radius + 1` lines away; the edges are repeated."""
    last = size - 1
    before = lines.copy()
    total = np.empty(size, int64)
    for x in range(size):
        total[x] = 0
    for k in range(-radius, radius + 1):
        row = before[min(max(k, 0), last)]
        for x in range(size):
            total[x] += row[x]
    for i in range(size):
        near, far = before[max(i - radius - 1, 0)], before[min(i + radius + 1, last)]
        out = lines[i]
        for x in range(size):
            out[x] = (total[x] * full + (int64(near[x]) + int64(far[x])) * part + (1 << (BOX_BITS - 1))) >> BOX_BITS
        gone = before[max(i - radius, 0)]
        for x in range(size):
            total[x] += int64(far[x]) - int64(gone[x])
