"""The linear probe's training in operations on tensors of any device, without autograd."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


@torch.no_grad()
def fit_by_tensors(
    train: Tensor,
    labels: Tensor,
    weight: Tensor,
    bias: Tensor,
    batches: Iterable[tuple[Tensor, float]],
    weight_decay: float,
) -> tuple[Tensor, Tensor]:
    """The weight (c, f) and bias (c,) after Adam's steps on `batches` of samples' indices and learning rates.

    Args:
        train: (n, f) on any device; labels: (n,) int64.
    """
    weight, bias = weight.to(train.device), bias.to(train.device)
    weight.grad, bias.grad = torch.empty_like(weight), torch.empty_like(bias)
    optimizer = torch.optim.Adam([weight, bias], weight_decay=weight_decay, fused=True)
    rows: Tensor | None = None
    for index, lr in batches:
        rows = train.new_empty(len(index), train.shape[1]) if rows is None else rows  # the first batch is the largest
        x = torch.index_select(train, 0, index, out=rows[: len(index)])
        cross_entropy_gradient(x, labels[index], weight, bias)
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
    return weight, bias


PARTS = 4  # Parts of a batch, computed side by side: a product with so few classes keeps only one core busy.


def cross_entropy_gradient(x: Tensor, labels: Tensor, weight: Tensor, bias: Tensor) -> None:
    """Fill `weight.grad` and `bias.grad` of a linear classifier's mean cross-entropy, without autograd.

    Args:
        x: (n, f) samples with labels (n,); weight: (c, f); bias: (c,).

    The classes run down the columns, because a softmax along such short rows is slow.
    """
    n, f = x.shape
    parts = PARTS if n % PARTS == 0 else 1
    x = x.view(parts, n // parts, f)
    p = torch.baddbmm(bias[:, None], weight.expand(parts, -1, -1), x.mT).softmax(dim=1)
    p.scatter_add_(1, labels.view(parts, 1, -1), p.new_full((1, 1, 1), -1.0).expand(parts, 1, n // parts)).div_(n)
    torch.sum(p, dim=(0, 2), out=bias.grad)
    torch.sum(torch.bmm(p, x), dim=0, out=weight.grad)
