"""Features of the frozen encoder, computed once and used by both probes (Section 5)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from wmse.errors import TrainingError
from wmse.images import ArrayImages, FileImages
from wmse.runtime import Runtime


@torch.no_grad()
def extract(
    encoder: nn.Module,
    images: ArrayImages | FileImages,
    runtime: Runtime,
    between: Callable[[], None] = lambda: None,
) -> Tensor:
    """(n, f) float32 features of the un-augmented images, in eval mode, not normalised; on the runtime's device.

    `between` is called before every batch and may raise. The encoder's mode is restored in any case. Raises
    TrainingError if a feature is not finite.
    """
    was_training = encoder.training
    encoder.eval()
    try:
        parts = []
        for batch in images.plain(batch=500):
            between()
            with runtime.autocast():
                parts.append(encoder(runtime.batch(batch)).float())
        features = torch.cat(parts)
        if not features.isfinite().all():
            raise TrainingError("the encoder gives features that are not finite: its training has diverged")
        return features
    finally:
        encoder.train(was_training)


@torch.no_grad()
def raw_pixels(images: ArrayImages | FileImages) -> Tensor:
    """(n, 3 * H * W) float32: the normalised pixels themselves as features."""
    return torch.cat([batch.flatten(1) for batch in images.plain()])
