"""What a plugin does to every view, after the operations of the recipe."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from wmse.config import RunSpec, owner


class Augmentation(Protocol):
    """An augmentation of a plugin: what it draws for a batch, and what it does to the views with that.

    Drawing and doing are apart so that a run is the same one on every device, after a stop, and shared by processes.
    """

    def draw(self, n: int, size: int, generator: torch.Generator) -> Tensor:
        """Whatever is random, for one view of size x size pixels of n images: (n, ...), with a CPU generator."""

    def __call__(self, views: Tensor, drawn: Tensor) -> Tensor:
        """The views (m, 3, size, size) float32, normalised, changed as `drawn` (m, ...) says; both on the device."""


def build_augmentation(spec: RunSpec) -> Augmentation | None:
    """The augmentation that a run names. ConfigError: its plugin cannot be imported, or has no such class."""
    plugin = owner("AUGMENTATIONS", spec.augmentation)
    return plugin.thing("AUGMENTATIONS", spec.augmentation)() if plugin else None
