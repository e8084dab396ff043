"""SimCLR, the paper's contrastive baseline, and the same loss on whitened vectors (its Table 4)."""

from __future__ import annotations

import torch
from torch import Tensor

from wmse.config import RunSpec
from wmse.encoder import Encoder, projection_head
from wmse.losses import nt_xent
from wmse.methods import Method, StepOutput, embed
from wmse.whitening import whiten_sub_batches


class SimCLR(Method):
    """NT-Xent with an extra batch norm after the head, as in the authors' code.

    With whitening, each sub-batch of each view is whitened alone as in W-MSE; the negatives still come from the whole
    batch. The batch norm stays: whitening undoes it, as it undoes every positive scaling of single dimensions.
    """

    def __init__(self, encoder: Encoder, spec: RunSpec) -> None:
        super().__init__(encoder, spec)
        self.head = projection_head(encoder.features, spec.head_hidden, spec.embedding, spec.head_layers, True)

    def forward(self, views: list[Tensor], slices: Tensor | None) -> StepOutput:
        v = self.gather(embed(self.encoder, self.head, views, self.spec.joint_batch_norm))
        spec = self.spec
        z, info = whiten_sub_batches(v, slices, spec.resolved_whitening)
        # Every view is sliced by the same permutation, so positives stay side by side.
        losses = [nt_xent(sliced.flatten(1, 2), spec.temperature, spec.normalize) for sliced in z.unbind(1)]
        return StepOutput(torch.stack(losses).mean(), v.detach(), info)
