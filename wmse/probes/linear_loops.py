"""The linear probe's training on a CPU in compiled loops, which read every sample once a step. By one thread."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numba import njit
from numpy import float32, int32, ndarray
from torch import Tensor

from wmse.compiled import ANY_ORDER, STRICT, cached

ROWS = 8  # Samples that are taken together; their scores and their gradient are found while they are in the cache.
LINE = 16  # Numbers in a cache line; every row of parameters begins with one.


def fit_by_loops(
    train: Tensor,
    labels: Tensor,
    weight: Tensor,
    bias: Tensor,
    batches: Iterable[tuple[Tensor, float]],
    weight_decay: float,
) -> tuple[Tensor, Tensor]:
    """The weight (c, f) and bias (c,) after Adam's steps on `batches` of samples' indices and learning rates.

    Args:
        train: (n, f) on the CPU, computed in float32; labels: (n,) int64.
    """
    classes, f = weight.shape
    layer, mean, square = torch.zeros(3, classes, -(-(f + 1) // LINE) * LINE)
    layer[:, :f] = weight
    layer[:, f] = bias
    tensors = (train.float(), labels, layer, mean, square)
    features, targets, *state = (tensor.contiguous().numpy() for tensor in tensors)
    for step, (index, lr) in enumerate(batches, start=1):
        linear_step(features, targets, index.numpy(), *state, step, lr, weight_decay)
    return layer[:, :f], layer[:, f]


@cached
def linear_step(
    features: ndarray,
    labels: ndarray,
    index: ndarray,
    layer: ndarray,
    mean: ndarray,
    square: ndarray,
    step: int,
    lr: float,
    weight_decay: float,
) -> None:
    """One step of a linear classifier on the batch `index`, with the mean cross-entropy and torch's Adam.

    Args:
        features: (n, f) float32 with labels (n,) int64; index: (m,) int64.
        layer: (c, at least f + 1) float32, weights, the bias and zeros.
        mean, square: the same, moving averages of the gradient and of its square, 0 before step 1.
    """
    f = features.shape[1]
    grad = np.zeros_like(layer)
    p = np.zeros((ROWS, layer.shape[0]), float32)
    samples = np.zeros((ROWS, layer.shape[1]), float32)
    samples[:, f] = 1  # what the bias is multiplied with
    for first in range(0, len(index), ROWS):
        rows = index[first : first + ROWS]
        for j, row in enumerate(rows):
            for i in range(f):
                samples[j, i] = features[row, i]
        class_scores(layer, samples, p)
        softmax(p)
        p[len(rows) :] = 0  # of the samples that were there before
        for j, row in enumerate(rows):
            p[j, labels[row]] -= 1
        add_gradient(p, samples, grad)
    grad /= float32(len(index))
    adam(grad, layer, mean, square, step, lr, weight_decay)


@njit(**ANY_ORDER)
def class_scores(layer: ndarray, samples: ndarray, out: ndarray) -> None:
    """Fill `out` (ROWS, c) with samples @ layer.T, four samples at a time: a weight is loaded once for all."""
    for k in range(layer.shape[0]):
        for j in range(0, ROWS, 4):
            a, b, c, d = float32(0), float32(0), float32(0), float32(0)
            for i in range(layer.shape[1]):
                a += layer[k, i] * samples[j, i]
                b += layer[k, i] * samples[j + 1, i]
                c += layer[k, i] * samples[j + 2, i]
                d += layer[k, i] * samples[j + 3, i]
            out[j, k] = a
            out[j + 1, k] = b
            out[j + 2, k] = c
            out[j + 3, k] = d


@njit(**ANY_ORDER)
def add_gradient(p: ndarray, samples: ndarray, grad: ndarray) -> None:
    """Add p.T @ samples to `grad` (c, f)."""
    for k in range(grad.shape[0]):
        for i in range(grad.shape[1]):
            total = grad[k, i]
            for j in range(ROWS):
                total += p[j, k] * samples[j, i]
            grad[k, i] = total


@njit(**STRICT)
def softmax(x: ndarray) -> None:
    """In place, of each row of x (ROWS, c)."""
    for row in x:
        row -= row.max()
    flat = x.reshape(-1)
    for i in range(len(flat)):
        flat[i] = exp(flat[i])
    for row in x:
        row /= row.sum()


@njit(**STRICT)
def exp(x: float) -> float:
    """e^x for x <= 0 within two units of the last digit; unlike the C library's, a loop of it becomes vectors."""
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
    rate = float32(lr / (1 - 0.9**step))
    root = float32(np.sqrt(1 - 0.999**step))
    decay = float32(weight_decay)
    for k in range(layer.shape[0]):
        for i in range(layer.shape[1]):
            g = grad[k, i] + decay * layer[k, i]
            mean[k, i] += float32(0.1) * (g - mean[k, i])
            square[k, i] += float32(0.001) * (g * g - square[k, i])
            layer[k, i] -= rate * mean[k, i] / (np.sqrt(square[k, i]) / root + float32(1e-8))
