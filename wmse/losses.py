"""The losses: W-MSE of the paper (Section 3), and those of its baselines.

Functions of tensors (d, N, k): d views, N images, k embedding dimensions.
"""

from __future__ import annotations

from itertools import combinations, permutations

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.functional import cross_entropy
from torch.nn.functional import normalize as unit_length

from wmse.whitening import at_least_float32, check_factorisations, draw_slices, whiten_sub_batches


def wmse_loss(
    embeddings: Tensor,
    *,
    w_size: int,
    w_iter: int = 1,
    normalize: bool = True,
    whitening: str = "cholesky",
    generator: torch.Generator | None = None,
) -> Tensor:
    """W-MSE: the mean squared distance between the whitened views of an image, over all pairs of views.

    Args:
        embeddings: (d, N, k) outputs of the projection head for d >= 2 views of N images.
        w_size: samples in a whitened sub-batch; divides N and exceeds k.
        w_iter: independent slicings whose losses are averaged.
        normalize: scale the whitened vectors to unit length, so that the distance is 2 - 2 cos. False is the
            paper's Euclidean ablation, whose mean also runs over the k dimensions (as in the authors' code).
        whitening: as in `whiten_sub_batches`; anything but "cholesky" is an ablation.
        generator: a CPU generator of the permutations.

    Returns:
        A scalar in float32 (float64 for float64 embeddings); gradient reaches every view.

    Raises:
        SingularCovarianceError: a sub-batch cannot be whitened; the message says which one, of which view.

    Source: equations 3 to 6 of the paper and its Section 3.1.
    """
    slices = None if whitening == "identity" else draw_slices(embeddings.shape[-2], w_size, w_iter, generator)
    if slices is not None:
        slices = slices.to(embeddings.device)
    loss, info = wmse_loss_unchecked(embeddings, slices, normalize=normalize, whitening=whitening)
    if info is not None:
        check_factorisations(info, w_size, embeddings.shape[-1])
    return loss


class WMSELoss(nn.Module):
    """`wmse_loss` for training loops that hold a loss as a module: `WMSELoss(w_size=128)(z0, z1)`.

    Args:
        w_size: samples in a whitened sub-batch, as of `wmse_loss`.
        w_iter: independent slicings, as there.
        normalize: cosine instead of Euclidean distance, as there.

    It has no parameters and no state; each call draws its slices from torch's global CPU generator. Of several
    processes, each whitens the images that it is given: w_size must divide their number.
    """

    def __init__(self, w_size: int = 128, w_iter: int = 1, normalize: bool = True) -> None:
        super().__init__()
        self.w_size, self.w_iter, self.normalize = w_size, w_iter, normalize

    def forward(self, *views: Tensor) -> Tensor:
        """The loss, a scalar, of the embeddings (N, k) of each of d >= 2 views, or of all in one tensor (d, N, k)."""
        embeddings = views[0] if len(views) == 1 else torch.stack(views)
        return wmse_loss(embeddings, w_size=self.w_size, w_iter=self.w_iter, normalize=self.normalize)

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"w_size={self.w_size}, w_iter={self.w_iter}, normalize={self.normalize}"


def wmse_loss_unchecked(
    embeddings: Tensor, slices: Tensor | None, *, normalize: bool = True, whitening: str = "cholesky"
) -> tuple[Tensor, Tensor | None]:
    """`wmse_loss` of given slices without the check: also returns the states of the factorisations.

    `slices` and the states are those of `whiten_sub_batches`.
    """
    if embeddings.dim() != 3 or embeddings.shape[0] < 2:
        raise ValueError(f"embeddings must have shape (d >= 2, N, k), got {tuple(embeddings.shape)}")
    if whitening == "cholesky" and slices is not None and slices.shape[-1] <= embeddings.shape[-1]:
        raise ValueError(f"w_size ({slices.shape[-1]}) must exceed the embedding size ({embeddings.shape[-1]})")
    z, info = whiten_sub_batches(embeddings, slices, whitening)
    loss = _UnitPairDistance.apply(z) if normalize else mean_pair_distance(z) / z.shape[-1]
    return loss, info


def mean_pair_distance(z: Tensor) -> Tensor:
    """Mean over all pairs of views and all samples of ||z_i - z_j||^2, linear in the number of views.

    Args:
        z: (d, ..., k), one slice a view.

    Since sum_{i<j} ||z_i - z_j||^2 = d * sum_i ||z_i - mean||^2, the d(d-1)/2 pairs need not be formed. Unlike the
    form 2d/(d-1) * (1 - ||mean||^2) for unit vectors, this one does not cancel when the views agree.
    """
    d, samples = z.shape[0], z[0].numel() // z.shape[-1]
    return (z - z.mean(dim=0)).square().sum() * (2 / ((d - 1) * samples))


class _UnitPairDistance(torch.autograd.Function):
    """`mean_pair_distance` of z (d, ..., k) scaled to unit length, with its gradient in closed form."""

    @staticmethod
    def forward(ctx: FunctionCtx, z: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(z, dim=-1, keepdim=True).clamp_min_(1e-12)
        unit = z / length
        apart = unit - unit.mean(dim=0)
        ctx.save_for_backward(unit, apart, length)
        ctx.scale = 2 / ((len(z) - 1) * (z[0].numel() // z.shape[-1]))
        return apart.square().sum() * ctx.scale

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> Tensor:
        unit, apart, length = ctx.saved_tensors
        product = apart * unit
        along = product.sum(dim=-1, keepdim=True)  # a change along z changes nothing
        return torch.addcmul(apart, unit, along, value=-1, out=product).mul_(2 * ctx.scale * grad / length)


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
        z = at_least_float32(embeddings)
        z = unit_length(z, dim=-1) if normalize else z
        pairs = [_nt_xent_pair(z[i], z[j], temperature) for i, j in combinations(range(len(z)), 2)]
        return torch.stack(pairs).mean()


def byol_loss(predictions: Tensor, targets: Tensor, normalize: bool = True) -> Tensor:
    """BYOL's regression of each view's target from every other view, both directions of a pair added.

    Args:
        predictions: (d, N, k), d >= 2.
        targets: (d, N, k), which should carry no gradient.
        normalize: squared distance of the unit vectors, 2 - 2 cos; False is the mean squared error, whose mean also
            runs over the k dimensions.

    Returns:
        A scalar in float32 (float64 for float64 input): the mean over the d(d-1)/2 pairs.

    Source: Grill et al. (2020), equation 2, made symmetric as in the authors' code.
    """
    d, k = len(predictions), predictions.shape[-1]
    with torch.autocast(predictions.device.type, enabled=False):
        p, t = at_least_float32(predictions), at_least_float32(targets)
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
