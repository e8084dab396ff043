"""How far embeddings are from collapse: the diagnostics of every epoch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize


def embedding_spread(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """How far embeddings are from collapse.

    Args:
        embeddings: (n, k).

    Returns:
        Two scalars: the mean standard deviation per dimension of the unit-length embeddings, times sqrt(k) (1 for an
        isotropic spread, 0 for a single point; Chen & He 2021), and the effective rank of the centred embeddings
        (the exponential of the entropy of the singular values' shares; Roy & Vetterli 2007).
    """
    x = embeddings.double()
    unit = normalize(x, dim=1)
    spread = unit.std(dim=0).mean() * x.shape[1] ** 0.5
    singular = torch.linalg.svdvals(x - x.mean(dim=0))
    share = singular / singular.sum().clamp(min=1e-300)
    rank = torch.exp(torch.special.entr(share).sum())
    return spread, rank


def principal_plane(x: Tensor) -> tuple[Tensor, Tensor]:
    """Where samples (n, f) lie in the plane in which they vary most, by principal component analysis.

    Returns:
        (n, 2) float64 coordinates about the mean, and the (2,) shares of the whole variance that they show. The sign of
        an axis is that with which its largest weight is positive, so that equal samples give equal maps.
    """
    x = x.double()
    x = x - x.mean(dim=0)
    variances, axes = torch.linalg.eigh(x.T @ x)  # (f, f), however many samples there are
    axes = axes[:, -2:].flip(1)
    largest = axes.gather(0, axes.abs().argmax(dim=0, keepdim=True))
    shares = variances[-2:].flip(0).clamp(min=0) / variances.sum().clamp(min=1e-300)
    return x @ (axes * largest.sign()), shares
