"""Whitening and the W-MSE loss (paper, Sections 3 and 3.1).

Shapes: D views, N images, K embedding dimensions, n samples of one whitened group.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable


class SingularCovarianceError(ArithmeticError):
    """The covariance of a group of samples is not positive definite, so the group cannot be whitened."""

    def __init__(self, where: str, size: int, dim: int) -> None:
        super().__init__(
            f"{where}: the covariance of {size} samples of {dim} dimensions is singular. Either the sub-batch is too "
            "small (w_size of at least twice the embedding size is advised), or the embeddings have collapsed or are "
            "not finite"
        )


def whiten(x: Tensor, eps: float = 0.0) -> Tensor:
    """Whiten each group of n samples: zero mean and identity covariance over the second-last axis.

    Args:
        x: (..., n, k) samples; float64 stays float64, everything else is computed in float32 whatever autocast says.
        eps: shrinkage of the covariance towards the identity, ``(1 - eps) * cov + eps * I``. The paper uses 0, and
            any other value changes the method.

    Returns:
        (..., n, k) whitened samples ``L^-1 (x - mean)`` with ``L L^T = cov`` (Cholesky, divided by n - 1).

    Raises:
        SingularCovarianceError: a group's covariance is not positive definite (or not finite). A covariance that is
            singular but for rounding can pass.

    Source: Section 3 of the paper, "whitening" by Cholesky decomposition following Siarohin et al. (2019).
    """
    z, info = whiten_unchecked(x, eps)
    if info.any():
        group = ", ".join(map(str, info.nonzero()[0].tolist())) if info.dim() else "the only one"
        raise SingularCovarianceError(f"group {group}", x.shape[-2], x.shape[-1])
    return z


def whiten_unchecked(x: Tensor, eps: float = 0.0) -> tuple[Tensor, Tensor]:
    """`whiten` that leaves the check to the caller, so that a GPU needs no synchronisation.

    Returns:
        The (..., n, k) whitened samples and the (...) int32 state of each factorisation: 0 where it succeeded.
        The samples of a failed group are meaningless.
    """
    n = x.shape[-2]
    if n < 2:
        raise ValueError(f"whitening needs at least 2 samples in a group, got {n}")
    with torch.autocast(x.device.type, enabled=False):
        return _Whitening.apply(x if x.dtype == torch.float64 else x.float(), eps)


class _Whitening(torch.autograd.Function):
    """Cholesky whitening of (..., n, k) with its gradient in closed form.

    With Z = X L^-T for the centred X and C = L L^T, a gradient G of Z gives the gradient (G - Z P / (n - 1)) L^-1 of X,
    where P is G^T Z with its upper triangle replaced by the mirrored lower one: the general derivative of the Cholesky
    factor (Murray 2016), in which most factors cancel because C itself comes from X.

    L^-1 is formed once and multiplied with, forward and backward, as in the authors' code: the backward pass is then
    three products. Together with `_Permutation` and `_UnitPairDistance`, the loss at k = 128 took 0.55 of the time that
    autograd alone took on a CPU, where `_LossByLoops` has since gone further.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        n, k = x.shape[-2:]
        x = x - x.mean(dim=-2, keepdim=True)
        cov = (x.mT @ x).div_(n - 1)
        eye = torch.eye(k, dtype=x.dtype, device=x.device)
        if eps:
            cov = (1 - eps) * cov + eps * eye
        chol, info = torch.linalg.cholesky_ex(cov)
        inverse = torch.linalg.solve_triangular(chol, eye.expand_as(chol), upper=False)
        z = x @ inverse.mT
        ctx.save_for_backward(z, inverse)
        ctx.factor = (1 - eps) / (n - 1)
        ctx.mark_non_differentiable(info)
        return z, info

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor, _: Tensor) -> tuple[Tensor, None]:
        z, inverse = ctx.saved_tensors
        x = (grad - (z @ mirror_lower(grad.mT @ z)).mul_(ctx.factor)) @ inverse
        return x.sub_(x.mean(dim=-2, keepdim=True)), None


def mirror_lower(x: Tensor) -> Tensor:
    """Symmetric (..., k, k) matrices with the lower triangles of x."""
    return x.tril() + x.tril(-1).mT


def standardize(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Zero mean and unit variance of each dimension of each group (..., n, k): batch norm without learnt parameters."""
    with torch.autocast(x.device.type, enabled=False):
        x = x if x.dtype == torch.float64 else x.float()
        x = x - x.mean(dim=-2, keepdim=True)
        return x * (x.square().mean(dim=-2, keepdim=True) + eps).rsqrt()


def sub_batches(embeddings: Tensor, *, w_size: int, w_iter: int, generator: torch.Generator | None = None) -> Tensor:
    """Slice a batch into random sub-batches (Section 3.1, "batch slicing").

    Each of the `w_iter` iterations draws one permutation of the N images, shared by all views.

    Args:
        embeddings: (d, N, k).
        generator: a CPU generator of the permutations (the global one if None).

    Returns:
        (d, w_iter, N / w_size, w_size, k)
    """
    d, n, k = embeddings.shape
    order = draw_orders(n, w_size=w_size, w_iter=w_iter, generator=generator)
    if embeddings.is_cuda:
        order = order.pin_memory().to(embeddings.device, non_blocking=True)
    return _Permutation.apply(embeddings, order).view(d, w_iter, n // w_size, w_size, k)


def draw_orders(n: int, *, w_size: int, w_iter: int, generator: torch.Generator | None = None) -> Tensor:
    """A permutation of the n images for each of the `w_iter` iterations, whose slices are the sub-batches.

    Returns:
        (w_iter, n) int64 on the CPU, where they are drawn: the same seed gives the same slices on every device.
    """
    if w_size < 2 or n % w_size:
        raise ValueError(f"the number of images ({n}) must be a multiple of w_size ({w_size}), which is at least 2")
    if w_iter < 1:
        raise ValueError(f"w_iter must be at least 1, got {w_iter}")
    return torch.stack([torch.randperm(n, generator=generator) for _ in range(w_iter)])


class _Permutation(torch.autograd.Function):
    """The images of (d, N, k) in each of the orders (w_iter, N): (d, w_iter * N, k).

    The gradient comes back by the inverse permutations and a sum; indexing's own would be added up entry by entry.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, order: Tensor) -> Tensor:
        ctx.save_for_backward(order)
        return x.index_select(1, order.flatten())

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        (order,) = ctx.saved_tensors
        w_iter, n = order.shape
        start = n * torch.arange(w_iter, device=order.device)[:, None]
        back = grad.index_select(1, (order.argsort(dim=1) + start).flatten())
        return back if w_iter == 1 else back.unflatten(1, (w_iter, n)).sum(dim=1), None


WHITENINGS = ("cholesky", "batch_norm", "identity")


def whiten_sub_batches(
    embeddings: Tensor,
    *,
    whitening: str = "cholesky",
    w_size: int,
    w_iter: int = 1,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Whiten each random sub-batch of each view alone, or do less than that: the paper's method and its ablations.

    Args:
        embeddings: (d, N, k).
        whitening: "cholesky" is the paper's; "batch_norm" scales each dimension to unit variance but leaves the
            correlations; "identity" returns the embeddings as one untouched sub-batch.

    Returns:
        (d, w_iter, N / w_size, w_size, k) vectors, float32 (float64 for float64 embeddings), and the
        (d, w_iter, N / w_size) states of the factorisations as in `whiten_unchecked`, None where there are none.
    """
    if whitening == "identity":
        # The loss must not see half precision here either.
        return (embeddings if embeddings.dtype == torch.float64 else embeddings.float())[:, None, None], None
    sliced = sub_batches(embeddings, w_size=w_size, w_iter=w_iter, generator=generator)
    return (standardize(sliced), None) if whitening == "batch_norm" else whiten_unchecked(sliced)


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
    loss, info = wmse_loss_unchecked(
        embeddings, w_size=w_size, w_iter=w_iter, normalize=normalize, whitening=whitening, generator=generator
    )
    if info is not None:
        check_factorisations(info, w_size, embeddings.shape[-1])
    return loss


def wmse_loss_unchecked(
    embeddings: Tensor,
    *,
    w_size: int,
    w_iter: int = 1,
    normalize: bool = True,
    whitening: str = "cholesky",
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor | None]:
    """`wmse_loss` without the check: also returns the states of the factorisations (`whiten_sub_batches`)."""
    if embeddings.dim() != 3 or embeddings.shape[0] < 2:
        raise ValueError(f"embeddings must have shape (d >= 2, N, k), got {tuple(embeddings.shape)}")
    if whitening == "cholesky" and w_size <= embeddings.shape[-1]:
        raise ValueError(f"w_size ({w_size}) must exceed the embedding size ({embeddings.shape[-1]})")
    by_loops = whitening == "cholesky" and embeddings.device.type == "cpu"
    if not by_loops:
        return loss_by_tensors(embeddings, whitening, w_size, w_iter, normalize, generator)
    order = draw_orders(embeddings.shape[1], w_size=w_size, w_iter=w_iter, generator=generator)
    x = embeddings if embeddings.dtype == torch.float64 else embeddings.float()
    return _LossByLoops.apply(x, order, w_size, normalize)


def loss_by_tensors(
    embeddings: Tensor, whitening: str, w_size: int, w_iter: int, normalize: bool, generator: torch.Generator | None
) -> tuple[Tensor, Tensor | None]:
    """`wmse_loss_unchecked` in operations on tensors of any device."""
    z, info = whiten_sub_batches(embeddings, whitening=whitening, w_size=w_size, w_iter=w_iter, generator=generator)
    return (_UnitPairDistance.apply(z) if normalize else mean_pair_distance(z) / z.shape[-1]), info


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
        return torch.linalg.vector_norm(apart).square() * ctx.scale

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> Tensor:
        unit, apart, length = ctx.saved_tensors
        product = apart * unit
        along = product.sum(dim=-1, keepdim=True)  # a change along z changes nothing
        return torch.addcmul(apart, unit, along, value=-1, out=product).mul_(2 * ctx.scale * grad / length)


class _LossByLoops(torch.autograd.Function):
    """The whole loss on the CPU: compiled loops, which find the gradient on the way, in 0.3 of the tensors' time on one
    core, and 0.4 where these have two."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, order: Tensor, w_size: int, normalize: bool) -> tuple[Tensor, Tensor]:
        from wmse.kernels.whitening import wmse  # not needed on a GPU, and slow to import

        (d, n, k), backward = x.shape, ctx.needs_input_grad[0]
        loss, grad = x.new_empty(1), x.new_zeros(d if backward else 0, n, k)
        info = torch.empty(d, len(order), n // w_size, dtype=torch.int32)
        arrays = [tensor.numpy() for tensor in (loss, info, grad)]
        wmse(x.detach().contiguous().numpy(), order.numpy(), w_size, normalize, backward, *arrays)
        ctx.save_for_backward(grad)
        ctx.mark_non_differentiable(info)
        return loss[0], info

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.saved_tensors[0] * grad, None, None, None


def check_factorisations(info: Tensor, w_size: int, k: int) -> None:
    """Raise SingularCovarianceError for the first failed entry of the (d, w_iter, sub-batches) states `info`."""
    if info.any():
        view, iteration, sub_batch = info.nonzero()[0].tolist()
        where = f"view {view}, whitening iteration {iteration}, sub-batch {sub_batch}"
        raise SingularCovarianceError(where, w_size, k)
