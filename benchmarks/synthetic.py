"""Data sets of noise in memory."""

from __future__ import annotations

import numpy as np

from wmse.datasets import ArrayDataset, ArraySplit


def arrays(n: int, side: int = 32) -> ArrayDataset:
    """n images for pretraining and 100 for the probes."""
    images = np.random.default_rng(0).integers(0, 256, (n, 3, side, side), dtype=np.uint8)
    return dataset(images)


def dataset(images: np.ndarray) -> ArrayDataset:
    """uint8 images (n, 3, side, side) for pretraining, the first 100 of them for the probes."""
    few = ArraySplit(np.arange(100) % 10, images=images[:100])
    return ArrayDataset(pretrain=ArraySplit(np.arange(len(images)) % 10, images=images), train=few, test=few)
