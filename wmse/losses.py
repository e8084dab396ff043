"""Losses of the baselines. W-MSE itself is in `wmse.whitening`."""

from __future__ import annotations

from itertools import combinations, permutations

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


def byol_loss(predictions: Tensor, targets: Tensor, normalize: bool = True) -> Tensor:
    """BYOL's regression of each view's target from every other view, both directions of a pair added.

    Args:
        predictions, targets: (d, N, k), d >= 2; `targets` should carry no gradient.
        normalize: squared distance of the unit vectors, 2 - 2 cos; False is the mean squared error, whose mean also
            runs over the k dimensions.

    Returns:
        A scalar in float32 (float64 for float64 input): the mean over the d(d-1)/2 pairs.

    Source: Grill et al. (2020), equation 2, made symmetric as in the authors' code.
    """
    d, k = len(predictions), predictions.shape[-1]
    with torch.autocast(predictions.device.type, enabled=False):
        p, t = (x if x.dtype == torch.float64 else x.float() for x in (predictions, targets))
        if normalize:
            p, t = unit_length(p, dim=-1), unit_length(t, dim=-1)
        distances = [(p[i] - t[j]).square().sum(dim=-1).mean() for i, j in permutations(range(d), 2)]
        return torch.stack(distances).mean() * (2 if normalize else 2 / k)


def _nt_xent_pair(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    n = len(a)
    both = torch.cat([a, b])
    logits = both @ both.T / temperature
    logits.fill_diagonal_(-torch.inf)  # a sample is not its own negative
    positive = torch.arange(2 * n, device=a.device).roll(n)
    return cross_entropy(logits, positive)
