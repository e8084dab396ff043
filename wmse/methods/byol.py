"""BYOL (Grill et al. 2020) as the paper's baseline: positives only, against a slowly moving copy of the network."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from wmse.config import RunSpec
from wmse.encoder import Encoder, projection_head
from wmse.losses import byol_loss
from wmse.methods import Method, StepOutput, of_views


class BYOL(Method):
    """Encoder, head and predictor learn; the target's encoder and head follow them by a moving average.

    As in the authors' code, the target stays in train mode: its batch norms
    use the batch's statistics, and only parameters are averaged, never buffers.
    """

    def __init__(self, encoder: Encoder, spec: RunSpec) -> None:
        super().__init__(encoder, spec)
        self.head = projection_head(
            encoder.features, spec.head_hidden, spec.embedding, spec.head_layers, spec.head_batch_norm
        )
        self.predictor = projection_head(spec.embedding, spec.head_hidden, spec.embedding)
        self.target = copy.deepcopy(nn.Sequential(self.encoder, self.head)).requires_grad_(False)

    def forward(self, views: list[Tensor], slices: Tensor | None) -> StepOutput:
        joint = self.spec.joint_batch_norm
        embeddings = of_views(lambda view: self.head(self.encoder(view)), views, joint)
        predictions = of_views(self.predictor, embeddings.unbind(), joint)
        with torch.no_grad():
            targets = of_views(self.target, views, joint)
        return StepOutput(byol_loss(predictions, targets, self.spec.normalize), embeddings.detach())

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Move the target by 1 - decay towards the networks; the decay rises from `target_decay` to 1 by a cosine."""
        decay = 1 - (1 - self.spec.target_decay) * (math.cos(math.pi * progress) + 1) / 2
        online = [*self.encoder.parameters(), *self.head.parameters()]
        torch._foreach_lerp_(list(self.target.parameters()), online, 1 - decay)
