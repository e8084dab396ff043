"""W-MSE, forward and backward, at the paper's shapes: against the double loop of its text, and lightly's WMSELoss."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import torch
from timing import Table, alternate, milliseconds, ratio
from torch import Tensor
from torch.nn.functional import normalize

from wmse.losses import wmse_loss_unchecked
from wmse.views.params import on_device
from wmse.whitening import draw_slices

SHAPES = [(2, 512, 64, 128, 1), (4, 256, 64, 128, 1), (2, 512, 128, 256, 4), (4, 256, 128, 256, 1)]  # d, N, k, w, iter


def plain_loop(x: Tensor, w_size: int, w_iter: int) -> Tensor:
    """The loss as the paper describes it: each sub-batch of each view alone, each pair of views alone."""
    d, n, _ = x.shape
    total = x.new_zeros(())
    for _ in range(w_iter):
        z = torch.empty_like(x)
        for rows in torch.randperm(n, device=x.device).split(w_size):
            for view in range(d):
                v = x[view, rows] - x[view, rows].mean(0)
                chol = torch.linalg.cholesky(v.T @ v / (w_size - 1))
                z[view, rows] = torch.linalg.solve_triangular(chol, v.T, upper=False).T
        for i, j in combinations(range(d), 2):
            total = total + 2 - 2 * (normalize(z[i]) * normalize(z[j])).sum(-1).mean()
    return total / (w_iter * d * (d - 1) / 2)


def measure(device: torch.device) -> list[Table]:
    from lightly.loss import WMSELoss

    table = Table(
        "Loss",
        ["d, N, k, w_size, w_iter", "ours, ms", "plain loop, ms", "lightly, ms", "loop / ours", "lightly / ours"],
        "Forward and backward; ratios of medians with the quartiles of the rounds' ratios.",
    )
    for d, n, k, w_size, w_iter in SHAPES:
        x = torch.randn(d, n, k, device=device, requires_grad=True)
        theirs = WMSELoss(embedding_dim=k, w_size=w_size, w_iter=w_iter, num_samples=d).to(device)
        forward: dict[str, Callable[[], Tensor]] = {
            # Without the check, which the trainer makes a step later without waiting for the device.
            "ours": lambda: wmse_loss_unchecked(x, on_device(draw_slices(n, w_size, w_iter), device))[0],
            "loop": lambda: plain_loop(x, w_size, w_iter),
            "lightly": lambda: theirs(x.flatten(0, 1)),
        }
        contestants = {name: (lambda loss=loss: loss().backward()) for name, loss in forward.items()}
        seconds = alternate(contestants, 41, device)
        ours, loop, lightly = seconds.values()
        table.rows.append(
            [
                f"{d}, {n}, {k}, {w_size}, {w_iter}",
                *map(milliseconds, (ours, loop, lightly)),
                ratio(loop, ours),
                ratio(lightly, ours),
            ]
        )
    return [table]
