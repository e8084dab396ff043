"""W-MSE (Section 3): whitened positives only, gradient through every view. Its ablations change one parameter each."""

from __future__ import annotations

from torch import Tensor

from wmse.config import RunSpec
from wmse.encoder import Encoder, projection_head
from wmse.losses import wmse_loss_unchecked
from wmse.methods import Method, StepOutput, embed


class WMSE(Method):
    """The paper's method, for any number of views d >= 2."""

    def __init__(self, encoder: Encoder, spec: RunSpec) -> None:
        super().__init__(encoder, spec)
        self.head = projection_head(
            encoder.features, spec.head_hidden, spec.embedding, spec.head_layers, spec.head_batch_norm
        )
        self.collapse_expected = spec.resolved_whitening != "cholesky"  # the ablation shows that collapse

    def forward(self, views: list[Tensor], slices: Tensor | None) -> StepOutput:
        v = self.gather(embed(self.encoder, self.head, views, self.spec.joint_batch_norm))
        spec = self.spec
        loss, info = wmse_loss_unchecked(v, slices, normalize=spec.normalize, whitening=spec.resolved_whitening)
        return StepOutput(loss, v.detach(), info)
