"""The contrastive loss against its definition."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from torch import Tensor

from wmse.losses import nt_xent


def embeddings(d: int, n: int, k: int, seed: int = 0) -> Tensor:
    return torch.randn(d, n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loop(v: Tensor, temperature: float, normalize: bool) -> Tensor:
    """Chen et al. (2020), equation 1, one sample of one pair of views in one direction at a time."""

    def similarity(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b / (a.norm() * b.norm()) if normalize else a @ b) / temperature

    terms = []
    for i, j in combinations(range(len(v)), 2):
        both = [*v[i], *v[j]]
        n = len(v[i])
        for s, sample in enumerate(both):
            positive = similarity(sample, both[(s + n) % (2 * n)])
            others = torch.stack([similarity(sample, other) for t, other in enumerate(both) if t != s])
            terms.append(others.logsumexp(dim=0) - positive)
    return torch.stack(terms).mean()


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_value_and_gradient_are_those_of_the_plain_loop(d: int, normalize: bool, temperature: float) -> None:
    fast, slow = (embeddings(d, 5, 4).requires_grad_() for _ in range(2))
    value, expected = nt_xent(fast, temperature, normalize), loop(slow, temperature, normalize)
    value.backward()
    expected.backward()
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    assert (fast.grad - slow.grad).abs().max() <= 1e-12 * slow.grad.abs().max()
    assert (slow.grad.flatten(1).norm(dim=1) > 1e-3).all()


def test_the_default_temperature_is_the_papers() -> None:
    v = embeddings(2, 6, 4)
    assert nt_xent(v) == nt_xent(v, 0.5)


@pytest.mark.parametrize("d", [2, 3])
def test_the_views_are_interchangeable(d: int) -> None:
    v = embeddings(d, 6, 4)
    torch.testing.assert_close(nt_xent(v.flip(0)), nt_xent(v), rtol=1e-13, atol=0)


def test_the_order_and_the_lengths_of_the_samples_do_not_matter() -> None:
    v = embeddings(2, 6, 4)
    scaled = v[:, [3, 1, 5, 0, 2, 4]] * torch.arange(1, 7)[:, None]
    torch.testing.assert_close(nt_xent(scaled), nt_xent(v), rtol=1e-13, atol=0)


def test_collapsed_embeddings_have_the_loss_of_guessing() -> None:
    assert nt_xent(torch.ones(2, 8, 4).double()).item() == pytest.approx(math.log(15), rel=1e-12)


def test_autocast_does_not_lower_the_precision() -> None:
    v = embeddings(2, 16, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        single, double, half = nt_xent(v.float()), nt_xent(v), nt_xent(v.bfloat16())
    assert (single.dtype, double.dtype, half.dtype) == (torch.float32, torch.float64, torch.float32)
    torch.testing.assert_close(single, nt_xent(v.float()), rtol=0, atol=0)
    torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=0)
