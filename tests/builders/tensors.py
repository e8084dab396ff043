"""Tensors of random numbers, and whitening by its definition."""

from __future__ import annotations

import torch
from torch import Tensor


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def natural(n: int, h: int, w: int, seed: int = 0) -> Tensor:
    """(n, 3, h, w) uint8 images like photographs: most energy in low frequencies, channels correlated, some noise."""
    generator = seeded(seed)
    x = torch.zeros(n, 3, h, w)
    for cells, amplitude in ((3, 1.0), (6, 0.5), (12, 0.25)):
        coarse = torch.randn(n, 3, cells, cells, generator=generator)
        coarse = coarse.mean(dim=1, keepdim=True) + 0.6 * coarse
        x += amplitude * torch.nn.functional.interpolate(coarse, size=(h, w), mode="bicubic")
    x += 0.05 * torch.randn(n, 3, h, w, generator=generator)
    return ((0.5 + 0.25 * x).clamp(0, 1) * 255).round().to(torch.uint8)


def gaussian(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64, spread: float = 1.0) -> Tensor:
    """Correlated samples (..., n, k) with an offset; the singular values of the mixing span a factor `spread`."""
    generator = seeded(seed)
    k = shape[-1]
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    left, _ = torch.linalg.qr(torch.randn(k, k, generator=generator, dtype=torch.float64))
    right, _ = torch.linalg.qr(torch.randn(k, k, generator=generator, dtype=torch.float64))
    scale = torch.logspace(0, -1, k, base=spread, dtype=torch.float64) if spread > 1 else torch.ones(k).double()
    offset = torch.randn(k, generator=generator, dtype=torch.float64)
    return (x @ (left * scale) @ right + offset).to(dtype)


def whiten_one(x: Tensor) -> Tensor:
    """One group (n, k), as in the paper: W = inv(Cholesky factor of the covariance)."""
    centred = x - x.mean(dim=0)
    covariance = centred.T @ centred / (len(x) - 1)
    return centred @ torch.linalg.inv(torch.linalg.cholesky(covariance)).T


def clusters(n: int, f: int, classes: int, seed: int, distance: float) -> tuple[Tensor, Tensor]:
    """n samples of Gaussian classes, whose centres are the same for every seed and about `distance` apart."""
    centres = torch.randn(classes, f, generator=seeded(99)) * distance / (2 * f) ** 0.5
    labels = torch.randint(0, classes, (n,), generator=seeded(seed))
    return centres[labels] + torch.randn(n, f, generator=seeded(seed + 1)), labels
