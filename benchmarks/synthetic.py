"""Data sets of noise in memory, with the interface of a prepared benchmark."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class Split:
    """The interface of `wmse.datasets.Split`: uint8 images (n, 3, side, side) and int64 labels (n,)."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


class Data(dict[str, Split]):
    """The interface of `wmse.datasets.Prepared`."""

    digest = "sha256:synthetic"


def arrays(n: int, side: int = 32) -> Data:
    """n images for pretraining and 100 for the probes."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, 3, side, side), dtype=np.uint8)
    few = Split(images[:100], np.arange(100) % 10)
    return Data(pretrain=Split(images, np.arange(n) % 10), train=few, test=few)
