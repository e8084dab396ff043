"""A step of the linear probe, on four rows of features at a time."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy import float32, int32, ndarray

from wmse.kernels import STRICT, SUMS, cached


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

    By one thread: sharing a step of a quarter of a millisecond between two takes longer than it saves.

    Args:
        features: (n, f) float32 with labels (n,) int64; index: (m,) int64.
        layer: (c, at least f + 1) float32, weights, the bias and zeros; grad: the same, for the gradient.
        mean, square: the same, moving averages of the gradient and of its square, 0 before step 1.
    """
    grad[:] = 0
    add_gradient(features, labels, index, layer, grad)
    adam(grad, layer, mean, square, step, lr, weight_decay)


@njit(**STRICT)
def add_gradient(features: ndarray, labels: ndarray, index: ndarray, layer: ndarray, grad: ndarray) -> None:
    """Add the gradient. Four rows by two classes at a time: what was fetched is used more than once (0.75 of the time
    of one class by one)."""
    classes, f = len(layer), features.shape[1]
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
