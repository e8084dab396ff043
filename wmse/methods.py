"""The self-supervised methods: what happens to the views of a batch between the encoder and the loss.

A method is a module that owns the encoder and the head. `forward` maps the views to a `StepOutput`; the trainer does
everything else. A new method is one class here, one entry of `METHODS` and one block of `wmse/recipes.yaml`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wmse.config import RunSpec
from wmse.encoder import Encoder, projection_head
from wmse.losses import nt_xent
from wmse.whitening import wmse_loss_unchecked


@dataclass
class StepOutput:
    """What one step of a method gives.

    Attributes:
        loss: scalar.
        embeddings: (d, N, k), detached: for the collapse diagnostics.
        factorisations: (d, w_iter, sub-batches) states of the whitening's Cholesky factors, None without whitening.
    """

    loss: Tensor
    embeddings: Tensor
    factorisations: Tensor | None = None


def embed(encoder: nn.Module, head: nn.Module, views: list[Tensor]) -> Tensor:
    """Encoder once per view, so that its batch norm sees one view at a time; head once on all views joined.

    Args:
        views: d tensors (N, 3, H, W).

    Returns:
        (d, N, k)
    """
    features = torch.cat([encoder(view) for view in views])
    return head(features).unflatten(0, (len(views), -1))


class WMSE(nn.Module):
    """W-MSE (Section 3): whitened positives only, gradient through every view."""

    def __init__(self, encoder: Encoder, spec: RunSpec) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = projection_head(encoder.features, spec.head_hidden, spec.embedding, spec.head_layers)
        self.spec = spec

    def forward(self, views: list[Tensor], generator: torch.Generator) -> StepOutput:
        v = embed(self.encoder, self.head, views)
        spec = self.spec
        loss, info = wmse_loss_unchecked(
            v, w_size=spec.w_size, w_iter=spec.w_iter, normalize=spec.normalize, generator=generator
        )
        return StepOutput(loss, v.detach(), info)


class SimCLR(nn.Module):
    """SimCLR as the paper's baseline: NT-Xent, with an extra batch norm after the head."""

    def __init__(self, encoder: Encoder, spec: RunSpec) -> None:
        super().__init__()
        self.encoder = encoder
        head = projection_head(encoder.features, spec.head_hidden, spec.embedding, spec.head_layers)
        self.head = nn.Sequential(*head, nn.BatchNorm1d(spec.embedding))
        self.spec = spec

    def forward(self, views: list[Tensor], generator: torch.Generator) -> StepOutput:
        v = embed(self.encoder, self.head, views)
        return StepOutput(nt_xent(v, self.spec.temperature, self.spec.normalize), v.detach())


METHODS: dict[str, type[WMSE] | type[SimCLR]] = {"wmse": WMSE, "simclr": SimCLR}


def build_method(spec: RunSpec, generator_seed: int) -> WMSE | SimCLR:
    """The method of a run with its initial weights, which depend on `generator_seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator_seed)
        encoder = Encoder(spec.arch, spec.stem, spec.width)
        return METHODS[spec.method](encoder, spec)


def build_encoder(spec: RunSpec, generator_seed: int) -> Encoder:
    """The run's encoder with the initial weights that `build_method` gives it for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator_seed)
        return Encoder(spec.arch, spec.stem, spec.width)
