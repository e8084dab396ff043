"""W-MSE forward and backward at the paper's shapes: one batched factorisation against the double loop of its text.

python benchmarks/loss.py [--device cuda]
"""

from __future__ import annotations

import argparse
from itertools import combinations

import torch
from timing import alternate, show
from torch import Tensor
from torch.nn.functional import normalize

from wmse.whitening import wmse_loss

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


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    device = torch.device(parser.parse_args().device)
    for d, n, k, w_size, w_iter in SHAPES:
        x = torch.randn(d, n, k, device=device, requires_grad=True)

        def finish(loss: Tensor) -> None:
            loss.backward()
            loss.item()  # waits for a GPU

        medians = alternate(
            {
                "wmse_loss": lambda: finish(wmse_loss(x, w_size=w_size, w_iter=w_iter)),
                "plain loop": lambda: finish(plain_loop(x, w_size, w_iter)),
            }
        )
        show(f"d={d} N={n} k={k} w_size={w_size} w_iter={w_iter} on {device}", medians, "wmse_loss")


if __name__ == "__main__":
    main()
