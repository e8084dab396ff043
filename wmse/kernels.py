"""Compiled loops for the CPU: a view of an image, and a step of the linear probe.

On a CPU, operations on tensors stream every intermediate result through the caches. Here an image, or four rows of
features, goes through all operations while it is in the innermost one: views take 0.3 (32 pixels) to 0.13 (from 96 to
64) of the time per core, a step of the linear probe 0.4. Nothing here draws or decides anything: `wmse.views`
and `wmse.probes` call it, say what is computed, and hold the same arithmetic as operations on tensors, for GPUs and as
the tests' reference.

Functions of numpy arrays. Importing this module takes 0.3 s, so it is imported where a kernel is due. Arithmetic is
strict IEEE but in PRODUCT, whose multiplications and additions are fused, and in SUMS, whose order is the compiler's.
"""

from __future__ import annotations

import os
import pickle
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import binding
from numba import njit
from numpy import float32, float64, int32, int64, ndarray, uint8

from wmse.views import BRIGHTNESS, CONTRAST, HUE, SATURATION

# --- compilation and threads ------------------------------------------------------------------------------------------

STRICT = {"error_model": "numpy", "nogil": True}
PRODUCT = {**STRICT, "fastmath": {"contract"}}
SUMS = {**STRICT, "fastmath": {"contract", "reassoc", "nsz"}}


def cache_folder() -> Path | None:
    """A folder of this user's for compiled code, None where there is none that can be written.

    One for each kind of CPU and version: jobs that start on different machines of a cluster at once would otherwise
    write different code into files of the same name.
    """
    cpu = f"{binding.get_host_cpu_name()}-{zlib.crc32(binding.get_host_cpu_features().flatten().encode()):08x}"
    try:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = root / "wmse-repro" / f"numba-{numba.__version__}-{cpu}"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = folder.stat().st_uid
    except (OSError, RuntimeError):  # no such place, or no home
        return None
    # Compiled code that somebody else could have put there is not run.
    return folder if owner == os.getuid() and os.access(folder, os.W_OK) else None


if not numba.config.CACHE_DIR:
    numba.config.CACHE_DIR = str(cache_folder() or "")


def cached(function: Callable[..., None]) -> Callable[..., None]:
    """Compile a function at its first call, or load what an earlier process compiled.

    A cache that cannot be written or read costs the compilation once more, never the run. numba replaces its files
    in one step, so that processes may compile at the same time.
    """
    in_memory = njit(**STRICT)(function)
    try:
        kernel = njit(cache=True, **STRICT)(function)
    except RuntimeError:  # numba finds no folder
        kernel = in_memory

    def call(*arguments: Any) -> None:
        try:
            kernel(*arguments)
        except (OSError, EOFError, pickle.UnpicklingError):  # a full disk, a damaged file
            in_memory(*arguments)

    return call


def in_threads(run: Callable[[int, int], None], n: int) -> None:
    """`run(start, stop)` on equal shares of range(n), by as many threads as torch uses, of which this is one.

    Not numba's own threads: which of its libraries for them is there, and safe, depends on the machine, and they double
    the time of the compilation.
    """
    threads = max(1, min(torch.get_num_threads(), n))
    bounds = [n * share // threads for share in range(threads + 1)]
    others = [_pool(os.getpid()).submit(run, *bounds[t : t + 2]) for t in range(1, threads)]
    run(*bounds[:2])
    for other in others:
        other.result()


@lru_cache(maxsize=1)
def _pool(process: int) -> ThreadPoolExecutor:
    """The threads of this process; a forked one has none of its parent's."""
    return ThreadPoolExecutor(os.cpu_count())


# --- views ------------------------------------------------------------------------------------------------------------


@cached
def views(
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
        order, factors, gray, box, flip: as in `wmse.views.ViewParams`.
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
    """`views` of one image; levels stay uint8 between the operations, which round to whole levels anyway.

    Only the contrast looks beyond the crop: what comes before it is done to the whole image, the rest to the box.
    """
    height, width = image_size
    top, left, rows, columns = box
    r, g, b = np.empty(height * width, uint8), np.empty(height * width, uint8), np.empty(height * width, uint8)
    mean, first = float32(0), 0
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
        to_gray(r, g, b, n)
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
            shift_hue(r, g, b, n, factor)
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
def to_gray(r: ndarray, g: ndarray, b: ndarray, n: int) -> None:
    for i in range(n):
        level = uint8(luma(r[i], g[i], b[i]))
        r[i], g[i], b[i] = level, level, level


@njit(**STRICT)
def shift_hue(r: ndarray, g: ndarray, b: ndarray, n: int, shift: float) -> None:
    """`wmse.views.shift_hue`, digit for digit, but for its products that stand for choices."""
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
    """`wmse.views.bicubic_weights` of a whole axis without its zeros.

    Returns:
        For each output pixel the first input pixel and their number, (size,) int64, and the weights (size, most)
        float32.
    """
    scale = length / size
    stretch = max(scale, 1.0)
    first, count = np.empty(size, int64), np.empty(size, int64)
    weights, exact = np.empty((size, int(4 * stretch) + 2), float32), np.empty(int(4 * stretch) + 2)
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
    turned, middle = np.empty((columns, rows), float32), np.empty((rows, size), float32)
    for y in range(rows):
        for x in range(columns):
            turned[x, y] = plane[y * columns + x]
    line = np.empty(max(rows, size), float32)
    first, count, weights = across
    for j in range(size):
        weigh_lines(turned, first[j], count[j], weights[j], line)
        place = size - 1 - j if flip else j
        for y in range(rows):
            middle[y, place] = to_level(line[y])  # PIL rounds between the passes
    first, count, weights = down
    for i in range(size):
        weigh_lines(middle, first[i], count[i], weights[i], line)
        for x in range(size):
            out[i, x] = (to_level(line[x]) - shift) / scale


@njit(**PRODUCT)
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
def to_level(x: float) -> float:
    """Clipped to [0, 255] and rounded, half to even."""
    return np.rint(min(max(x, float32(0)), float32(255)))


# --- linear probe -----------------------------------------------------------------------------------------------------


@cached
def linear_step(
    features: ndarray,
    labels: ndarray,
    index: ndarray,
    layer: ndarray,
    grad: ndarray,
    mean: ndarray,
    square: ndarray,
    step: int,
    lr: float,
    weight_decay: float,
) -> None:
    """One step of a linear classifier on the batch `index`, with the mean cross-entropy and torch's Adam.

    By one thread: sharing a step of a third of a millisecond between two takes longer than it saves.

    Args:
        features: (n, f) float32 with labels (n,) int64; index: (m,) int64.
        layer: (c, f + 1) float32, weights and the bias; grad: the same, for the gradient.
        mean, square: the same, moving averages of the gradient and of its square, 0 before step 1.
    """
    grad[:] = 0
    add_gradient(features, labels, index, layer, grad)
    adam(grad, layer, mean, square, step, lr, weight_decay)


@njit(**STRICT)
def add_gradient(features: ndarray, labels: ndarray, index: ndarray, layer: ndarray, grad: ndarray) -> None:
    """Add the gradient. Four rows by two classes at a time: what was fetched is used more than once (0.75 of the time
    of one class by one)."""
    classes, f = layer.shape[0], layer.shape[1] - 1
    share = float32(1 / len(index))
    p = np.empty((4, classes + classes % 2), float32)
    spare = np.empty(f + 1, float32)  # of an odd number of classes, the last one's partner is nobody
    for first in range(0, len(index), 4):
        count = min(4, len(index) - first)
        # Where fewer than four are left, the last one stands in for the others and counts nothing.
        a, b = features[index[first]], features[index[first + min(1, count - 1)]]
        c, d = features[index[first + min(2, count - 1)]], features[index[first + count - 1]]
        for k in range(0, classes, 2):
            products(layer[k], layer[min(k + 1, classes - 1)], a, b, c, d, f, p[:, k : k + 2])
        softmax(p, classes, share)
        p[count:] = 0
        for row in range(count):
            p[row, labels[index[first + row]]] -= share
        for k in range(0, classes, 2):
            add_rows(grad[k], grad[k + 1] if k + 1 < classes else spare, p[:, k : k + 2], a, b, c, d, f)


@njit(forceinline=True, **SUMS)
def products(w: ndarray, v: ndarray, a: ndarray, b: ndarray, c: ndarray, d: ndarray, f: int, out: ndarray) -> None:
    """Fill `out` (4, 2): for four rows of f features the outputs of two classes, their weights and bias w and v."""
    wa, wb, wc, wd = w[f], w[f], w[f], w[f]
    va, vb, vc, vd = v[f], v[f], v[f], v[f]
    for i in range(f):
        wa += w[i] * a[i]
        wb += w[i] * b[i]
        wc += w[i] * c[i]
        wd += w[i] * d[i]
        va += v[i] * a[i]
        vb += v[i] * b[i]
        vc += v[i] * c[i]
        vd += v[i] * d[i]
    out[0, 0], out[1, 0], out[2, 0], out[3, 0] = wa, wb, wc, wd
    out[0, 1], out[1, 1], out[2, 1], out[3, 1] = va, vb, vc, vd


@njit(forceinline=True, **SUMS)
def add_rows(w: ndarray, v: ndarray, p: ndarray, a: ndarray, b: ndarray, c: ndarray, d: ndarray, f: int) -> None:
    """Add the four rows times their factors p (4, 2) to w and v, and the factors alone to the last entries."""
    wa, wb, wc, wd = p[0, 0], p[1, 0], p[2, 0], p[3, 0]
    va, vb, vc, vd = p[0, 1], p[1, 1], p[2, 1], p[3, 1]
    for i in range(f):
        w[i] += wa * a[i] + wb * b[i] + wc * c[i] + wd * d[i]
        v[i] += va * a[i] + vb * b[i] + vc * c[i] + vd * d[i]
    w[f] += wa + wb + wc + wd
    v[f] += va + vb + vc + vd


@njit(**STRICT)
def softmax(x: ndarray, classes: int, share: float) -> None:
    """share * softmax of the first `classes` entries of each row of x, 0 behind them, in place."""
    for row in x:
        largest = row[0]
        for k in range(classes):
            largest = max(largest, row[k])
        for k in range(classes):
            row[k] -= largest
        row[classes:] = 0
    flat = x.reshape(-1)
    for i in range(len(flat)):
        flat[i] = exp(flat[i])
    for row in x:
        row[classes:] = 0
        total = float32(0)
        for k in range(classes):
            total += row[k]
        factor = share / total
        for k in range(classes):
            row[k] *= factor


@njit(**STRICT)
def exp(x: float) -> float:
    """e^x for x <= 0 within two units of the last digit; unlike the C library's a loop of it becomes vectors."""
    x = max(x, float32(-87))  # e^-87 is about the smallest normal number
    twos = np.rint(x * float32(1.4426950408889634))
    x = x - twos * float32(0.693359375) + twos * float32(2.12194440e-4)  # twos * ln 2 in two steps, the first one exact
    y = (float32(1 / 5040) * x + float32(1 / 720)) * x + float32(1 / 120)
    y = (((y * x + float32(1 / 24)) * x + float32(1 / 6)) * x + float32(1 / 2)) * x
    y = (y + float32(1)) * x + float32(1)
    return y * int32((int32(twos) + int32(127)) << int32(23)).view(float32)


@njit(**STRICT)
def adam(
    grad: ndarray, layer: ndarray, mean: ndarray, square: ndarray, step: int, lr: float, weight_decay: float
) -> None:
    rate, root = float32(lr / (1 - 0.9**step)), float32(np.sqrt(1 - 0.999**step))
    decay = float32(weight_decay)
    for k in range(layer.shape[0]):
        for i in range(layer.shape[1]):
            g = grad[k, i] + decay * layer[k, i]
            mean[k, i] += float32(0.1) * (g - mean[k, i])
            square[k, i] += float32(0.001) * (g * g - square[k, i])
            layer[k, i] -= rate * mean[k, i] / (np.sqrt(square[k, i]) / root + float32(1e-8))
