"""A small synthetic benchmark in memory."""

from __future__ import annotations

import numpy as np

from wmse.datasets import ArrayDataset, ArraySplit


def make_images(n: int, seed: int) -> ArraySplit:
    """n images of ten classes that a classifier can tell apart: a class colour under noise."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 10
    colour = np.random.default_rng(0).integers(0, 256, (10, 3, 1, 1))
    noise = rng.integers(-60, 60, (n, 3, 32, 32))
    return ArraySplit(labels.astype(np.int64), images=np.clip(colour[labels] + noise, 0, 255).astype(np.uint8))


def tiny_data() -> ArrayDataset:
    """200 training and 60 test images in the shape of CIFAR-10."""
    train = make_images(200, 1)
    return ArrayDataset(pretrain=train, train=train, test=make_images(60, 2))
