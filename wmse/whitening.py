"""Whitening and the slicing of batches (paper, Sections 3 and 3.1). The W-MSE loss itself is in `wmse.losses`.

Shapes: d views, N images, k embedding dimensions, n samples of one whitened group.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable


class SingularCovarianceError(ArithmeticError):
    """The covariance of a group of samples is not positive definite, so the group cannot be whitened."""

    def __init__(self, where: str, size: int, dim: int) -> None:
        likely = "the sub-batch is too small (w_size of at least twice the embedding size is advised)"
        if size >= 2 * dim:
            smaller = ", or make w_size smaller, twice the embedding size" if size > 2 * dim else ""
            likely = (
                "a few images make up the whole covariance (lower the learning rate, lengthen the warm-up"
                f"{smaller}; docs/learning.md)"
            )
        super().__init__(
            f"{where}: the covariance of {size} samples of {dim} dimensions is singular. Either {likely}, or the "
            "embeddings have collapsed or are not finite"
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
        return _Whitening.apply(at_least_float32(x), eps)


def at_least_float32(x: Tensor) -> Tensor:
    """float64 stays float64, everything else becomes float32: no loss is computed in half precision."""
    return x if x.dtype == torch.float64 else x.float()


class _Whitening(torch.autograd.Function):
    """Cholesky whitening of (..., n, k) with its gradient in closed form.

    With Z = X L^-T for the centred X and C = L L^T, a gradient G of Z gives the gradient (G - Z P / (n - 1)) L^-1 of X,
    where P is G^T Z with its upper triangle replaced by the mirrored lower one: the general derivative of the Cholesky
    factor (Murray 2016), in which most factors cancel because C itself comes from X.

    L^-1 is formed once and multiplied with, forward and backward, as in the authors' code: a batched triangular solve
    for X is slower on a CPU, and the backward pass is then three products.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        n, k = x.shape[-2:]
        x = x - x.mean(dim=-2, keepdim=True)
        cov = (x.mT @ x).div_(n - 1)
        if eps:
            cov = (1 - eps) * cov + eps * torch.eye(k, dtype=x.dtype, device=x.device)
        inverse, info = inverse_cholesky(cov)
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


LAPACK_SIZE = 32  # Larger matrices are halved on a CPU, because LAPACK is slow on batches of them.


def inverse_cholesky(cov: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of the Cholesky factor of each (..., k, k) matrix, and the states as in `whiten_unchecked`.

    On a CPU, LAPACK takes the matrices of a batch one after the other, at a fraction of the speed of a batched product.
    So the factor [[A, 0], [B, D]] is found by halves: A from the first block, B = C21 A^-T, and D from C22 - B B^T.
    """
    k = cov.shape[-1]
    if cov.is_cuda or k <= LAPACK_SIZE:
        chol, info = torch.linalg.cholesky_ex(cov)
        eye = torch.eye(k, dtype=cov.dtype, device=cov.device)
        return torch.linalg.solve_triangular(chol, eye.expand_as(chol), upper=False), info
    half = k // 2
    inverse_a, info_a = inverse_cholesky(cov[..., :half, :half])
    b = cov[..., half:, :half] @ inverse_a.mT
    inverse_d, info_d = inverse_cholesky(cov[..., half:, half:] - b @ b.mT)
    inverse = torch.zeros_like(cov)
    inverse[..., :half, :half] = inverse_a
    inverse[..., half:, :half] = -(inverse_d @ b @ inverse_a)
    inverse[..., half:, half:] = inverse_d
    return inverse, torch.where(info_a != 0, info_a, info_d)


def mirror_lower(x: Tensor) -> Tensor:
    """Symmetric (..., k, k) matrices with the lower triangles of x."""
    return x.tril() + x.tril(-1).mT


def standardize(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Zero mean and unit variance of each dimension of each group (..., n, k): batch norm without learnt parameters."""
    with torch.autocast(x.device.type, enabled=False):
        x = at_least_float32(x)
        x = x - x.mean(dim=-2, keepdim=True)
        return x * (x.square().mean(dim=-2, keepdim=True) + eps).rsqrt()


def draw_slices(n: int, w_size: int, w_iter: int = 1, generator: torch.Generator | None = None) -> Tensor:
    """Slice a batch of n images into random sub-batches (Section 3.1, "batch slicing").

    Each of the `w_iter` iterations draws one permutation of the images, which all views will share.

    Args:
        generator: a CPU generator (the global one if None): the same seed gives the same slices on every device.

    Returns:
        (w_iter, n / w_size, w_size) int64 positions of images, on the CPU.
    """
    if w_size < 2 or n % w_size:
        raise ValueError(f"the number of images ({n}) must be a multiple of w_size ({w_size}), which is at least 2")
    if w_iter < 1:
        raise ValueError(f"w_iter must be at least 1, got {w_iter}")
    return torch.stack([torch.randperm(n, generator=generator) for _ in range(w_iter)]).view(w_iter, -1, w_size)


def sub_batches(embeddings: Tensor, slices: Tensor) -> Tensor:
    """The sub-batches (d, w_iter, S, w_size, k) of embeddings (d, N, k), given by `slices` as of `draw_slices`."""
    return _Permutation.apply(embeddings, slices.flatten(1)).unflatten(1, slices.shape)


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
    embeddings: Tensor, slices: Tensor | None, whitening: str = "cholesky"
) -> tuple[Tensor, Tensor | None]:
    """Whiten each random sub-batch of each view alone, or do less than that: the paper's method and its ablations.

    Args:
        embeddings: (d, N, k).
        slices: (w_iter, N / w_size, w_size) positions of images as of `draw_slices`, on the same device; None will do
            for "identity".
        whitening: "cholesky" is the paper's; "batch_norm" scales each dimension to unit variance but leaves the
            correlations; "identity" returns the embeddings as one untouched sub-batch.

    Returns:
        (d, w_iter, N / w_size, w_size, k) vectors, float32 (float64 for float64 embeddings), and the
        (d, w_iter, N / w_size) states of the factorisations as in `whiten_unchecked`, None where there are none.
    """
    if whitening not in WHITENINGS:
        raise ValueError(f"whitening must be one of {', '.join(WHITENINGS)}, got {whitening!r}")
    if whitening == "identity":
        return at_least_float32(embeddings)[:, None, None], None
    if slices is None:
        raise ValueError(f"whitening {whitening!r} needs slices")
    sliced = sub_batches(embeddings, slices)
    if whitening == "batch_norm":
        return standardize(sliced), None
    return whiten_unchecked(sliced)


def check_factorisations(info: Tensor, w_size: int, k: int) -> None:
    """Raise SingularCovarianceError for the first failed entry of the (d, w_iter, sub-batches) states `info`."""
    if info.any():
        view, iteration, sub_batch = info.nonzero()[0].tolist()
        where = f"view {view}, whitening iteration {iteration}, sub-batch {sub_batch}"
        raise SingularCovarianceError(where, w_size, k)


def __getattr__(name: str) -> Any:
    """`from wmse.whitening import wmse_loss`, as it was documented; on demand, as `wmse.losses` imports this module."""
    if name == "wmse_loss":
        return importlib.import_module("wmse.losses").wmse_loss
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
