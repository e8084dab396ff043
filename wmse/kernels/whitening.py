"""The W-MSE loss and its gradient, one random sub-batch of all views at a time, which stays in the second cache.

Nearly all work is in products of small matrices, most of them triangular, of which `add_tile` leaves out the zeros. One
thread: handing a part of a few milliseconds to a second one, and waiting for it, costs as much as it saves.

Arrays of samples are padded with zeros to whole tiles; on a padded dimension the covariance is the identity, so that
nothing passes from there to the others.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy import float64, ndarray

from wmse.kernels import PRODUCT, STRICT, SUMS, cached
from wmse.kernels.tiles import ROWS, TERMS, add_tile, tile_columns


@cached
def wmse(
    x: ndarray,
    order: ndarray,
    w_size: int,
    normalize: bool,
    backward: bool,
    loss: ndarray,
    info: ndarray,
    grad: ndarray,
) -> None:
    """`wmse.whitening.wmse_loss_unchecked` and its gradient.

    Args:
        x: (d, N, k) float32 or float64; order: (w_iter, N) int64, the permutations of the images.
        normalize: to unit length; otherwise the mean also runs over the k dimensions.
        backward: whether the gradient is wanted.
        loss: (1,), info: (d, w_iter, N / w_size) int32: filled.
        grad: (d, N, k), to which the gradient is added.
    """
    d, images, k = x.shape
    n, width = -(-w_size // ROWS) * ROWS, -(-k // tile_columns(x)) * tile_columns(x)
    # The samples of each view, later the gradient of the whitened ones; and these, later the gradient of the samples.
    samples, whitened = np.empty((d, n, width), x.dtype), np.empty((d, n, width), x.dtype)
    inverse = np.empty((d, width, width), x.dtype)
    square, turned = np.empty((width, width), x.dtype), np.zeros((width, width), x.dtype)
    scale = 2 / ((d - 1) * len(order) * images) / (1 if normalize else k)
    total = 0.0
    for iteration in range(len(order)):
        for part in range(images // w_size):
            rows = order[iteration, part * w_size : (part + 1) * w_size]
            for view in range(d):
                for i in range(w_size):
                    samples[view, i, :k] = x[view, rows[i]]
                samples[view, w_size:], samples[view, :, k:] = 0, 0  # a failed sub-batch has left NaN everywhere
                center(samples[view], w_size)
                info[view, iteration, part] = whiten(samples[view], w_size, k, square, inverse[view], whitened[view])
            total += pair_distance(whitened, w_size, normalize, scale, samples)
            if backward:
                for view in range(d):
                    whiten_backward(samples[view], whitened[view], w_size, inverse[view], square, turned)
                    for i in range(w_size):
                        target, source = grad[view, rows[i]], whitened[view, i]
                        for j in range(k):
                            target[j] += source[j]
    loss[0] = total * scale


@njit(**STRICT)
def center(x: ndarray, n: int) -> None:
    """Subtract the mean of the first n rows from them."""
    mean = np.zeros(x.shape[1])  # in double: where it is far from 0, its error is one of the covariance
    for i in range(n):
        row = x[i]
        for j in range(len(mean)):
            mean[j] += row[j]
    single = (mean / n).astype(x.dtype)
    for i in range(n):
        row = x[i]
        for j in range(len(single)):
            row[j] -= single[j]


@njit(**STRICT)
def whiten(x: ndarray, n: int, k: int, square: ndarray, inverse: ndarray, z: ndarray) -> int:
    """Fill z with x L^-T, where L L^T is the covariance of the n centred samples x, and `inverse` with L^-T.

    Returns:
        0, or the number of the leading minor that is not positive (or not finite), as LAPACK does.
    """
    one = x.dtype.type(1)
    add_gram(x, x, one / x.dtype.type(n - 1), square)
    for i in range(k, len(square)):
        square[i, i] = 1
    state = cholesky(square)
    invert(square, inverse)
    z[:] = 0
    columns = tile_columns(z)
    for j in range(0, z.shape[1], columns):
        for i in range(0, len(z), ROWS):  # below row j + columns, L^-T is 0 in these columns
            add_tile(z[i : i + ROWS, j:], x[i : i + ROWS, : j + columns], inverse[:, j:], one)
    return state


@njit(**STRICT)
def whiten_backward(g: ndarray, z: ndarray, n: int, inverse: ndarray, square: ndarray, turned: ndarray) -> None:
    """Fill z, the whitened samples, with the gradient of the n samples from that of the whitened ones, g, which is
    overwritten: (G - Z P / (n - 1)) L^-1, centred, as in `wmse.whitening._Whitening`."""
    one = z.dtype.type(1)
    columns = tile_columns(z)
    add_gram(z, g, one, square)
    for i in range(len(square)):
        for j in range(i):
            square[i, j] = square[j, i]
            turned[i, j] = inverse[j, i]
        turned[i, i] = inverse[i, i]
    for j in range(0, z.shape[1], columns):
        for i in range(0, len(z), ROWS):
            add_tile(g[i : i + ROWS, j:], z[i : i + ROWS], square[:, j:], -one / z.dtype.type(n - 1))
    z[:] = 0
    for j in range(0, z.shape[1], columns):
        for i in range(0, len(z), ROWS):  # above row j, L^-1 is 0 in these columns
            add_tile(z[i : i + ROWS, j:], g[i : i + ROWS, j:], turned[j:, j:], one)
    center(z, n)


@njit(**SUMS)
def pair_distance(z: ndarray, n: int, normalize: bool, scale: float, grad: ndarray) -> float:
    """The summed squared distances of n samples' views z (d, n, k) from their means, as `mean_pair_distance` has it.

    Fills `grad` with the gradient of `scale` times that.
    """
    d, _, k = z.shape
    one, factor = z.dtype.type(1), z.dtype.type(2 * scale)
    mean, inverse_length = np.empty(k, z.dtype), np.ones(d, z.dtype)
    total = 0.0
    for i in range(n):
        mean[:] = 0
        for view in range(d):
            row = z[view, i]
            if normalize:
                square = row[0] * 0
                for j in range(k):
                    square += row[j] * row[j]
                inverse_length[view] = one / max(np.sqrt(square), z.dtype.type(1e-12))
            for j in range(k):
                mean[j] += row[j] * inverse_length[view]
        mean /= z.dtype.type(d)
        for view in range(d):
            row, out, inverse = z[view, i], grad[view, i], inverse_length[view]
            square, along = row[0] * 0, row[0] * 0
            for j in range(k):
                apart = row[j] * inverse - mean[j]
                out[j] = apart
                square += apart * apart
                along += apart * row[j]
            total += float64(square)
            along *= inverse * inverse if normalize else 0  # a change along z changes nothing
            for j in range(k):
                out[j] = (out[j] - along * row[j]) * (factor * inverse)
    return total


@njit(**STRICT)
def add_gram(a: ndarray, b: ndarray, scale: float, out: ndarray) -> None:
    """Fill the upper triangle of `out` with scale * a^T b, and some of the lower one."""
    out[:] = 0
    columns = tile_columns(out)
    for j in range(0, len(out), columns):
        for i in range(0, min(j + columns, len(out)), ROWS):
            for r in range(0, len(a), TERMS):
                add_tile(out[i : i + ROWS, j:], a[r : r + TERMS, i : i + ROWS].T, b[r : r + TERMS, j:], scale)


@njit(**PRODUCT)
def cholesky(c: ndarray) -> int:
    """Overwrite the upper triangle with U, U^T U = c; the states of `whiten`. Block of rows by block of rows."""
    minus = -c.dtype.type(1)
    columns = tile_columns(c)
    for first in range(0, len(c), ROWS):
        for j in range(first // columns * columns, len(c), columns):
            add_tile(c[first : first + ROWS, j:], c[:first, first : first + ROWS].T, c[:, j:], minus)
        for i in range(first, first + ROWS):
            row = c[i, i:]
            for above in range(first, i):
                other = c[above, i:]
                factor = other[0]
                for j in range(len(row)):
                    row[j] -= factor * other[j]
            if not 0 < row[0] < np.inf:
                return i + 1
            row /= np.sqrt(row[0])
    return 0


@njit(**PRODUCT)
def invert(u: ndarray, out: ndarray) -> None:
    """Fill `out` with the inverse of an upper triangle, from its last block of rows to its first."""
    one = u.dtype.type(1)
    columns = tile_columns(out)
    out[:] = 0
    for first in range(len(u) - ROWS, -1, -ROWS):
        behind = first + ROWS
        for j in range(first // columns * columns, len(u), columns):
            end = min(j + columns, len(u))
            if behind < end:
                add_tile(out[first:behind, j:], u[first:behind, behind:end], out[behind:, j:], -one)
        for i in range(behind - 1, first - 1, -1):
            row = out[i, i:]
            for below in range(i + 1, behind):
                other, factor, tail = out[below, below:], u[i, below], out[i, below:]
                for j in range(len(other)):
                    tail[j] -= factor * other[j]
            row[0] += one
            row /= u[i, i]
