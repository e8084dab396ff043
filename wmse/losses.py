"""Losses of the baselines. W-MSE itself is in `wmse.whitening`."""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.functional import normalize as unit_length


def nt_xent(embeddings: Tensor, temperature: float = 0.5, normalize: bool = True) -> Tensor:
    """SimCLR's contrastive loss, averaged over all pairs of views and over both directions of each pair.

    For a pair of views, the 2N - 2 other samples of both views are the negatives of each sample.

    Args:
        embeddings: (d, N, k), d >= 2.
        normalize: compare by cosine.

    Returns:
        A scalar in float32 (float64 for float64 embeddings).

    Source: Chen et al. (2020), equation 1, as used by the paper's baseline (temperature 0.5).
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        z = embeddings if embeddings.dtype == torch.float64 else embeddings.float()
        z = unit_length(z, dim=-1) if normalize else z
        pairs = [_nt_xent_pair(z[i], z[j], temperature) for i, j in combinations(range(len(z)), 2)]
        return torch.stack(pairs).mean()


def _nt_xent_pair(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    n = len(a)
    both = torch.cat([a, b])
    logits = both @ both.T / temperature
    logits.fill_diagonal_(-torch.inf)  # a sample is not its own negative
    positive = torch.arange(2 * n, device=a.device).roll(n)
    return cross_entropy(logits, positive)
