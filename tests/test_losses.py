"""The losses of the baselines against their definitions."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from wmse.losses import byol_loss, nt_xent


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


def assert_same_value_and_gradient(fast: Tensor, slow: Tensor, value: Tensor, expected: Tensor) -> None:
    """Relative error at most 1e-10, and every view has a gradient."""
    value.backward()
    expected.backward()
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-14)
    largest = slow.grad.abs().max().item()
    assert (fast.grad - slow.grad).abs().max() <= 1e-10 * max(largest, 1e-3)
    assert (slow.grad.flatten(1).norm(dim=1) > 1e-6 * largest).all()


PROPERTIES = settings(max_examples=25, deadline=None, derandomize=True, database=None)
SHAPES = {"d": st.integers(2, 8), "n": st.integers(2, 5), "k": st.integers(2, 6), "seed": st.integers(0, 1000)}


@PROPERTIES
@given(**SHAPES, normalize=st.booleans(), temperature=st.sampled_from([0.1, 0.5, 2.0]))
def test_nt_xent_has_value_and_gradient_of_the_plain_loop(
    d: int, n: int, k: int, seed: int, normalize: bool, temperature: float
) -> None:
    fast, slow = (embeddings(d, n, k, seed).requires_grad_() for _ in range(2))
    value, expected = nt_xent(fast, temperature, normalize), loop(slow, temperature, normalize)
    assert_same_value_and_gradient(fast, slow, value, expected)


def byol_loop(p: Tensor, t: Tensor, normalize: bool) -> Tensor:
    """Grill et al. (2020), equation 2, both directions of every pair of views, one image at a time."""

    def distance(a: Tensor, b: Tensor) -> Tensor:
        return 2 - 2 * (a @ b) / (a.norm() * b.norm()) if normalize else ((a - b) ** 2).mean()

    pairs = []
    for i, j in combinations(range(len(p)), 2):
        directions = [distance(p[i, s], t[j, s]) + distance(p[j, s], t[i, s]) for s in range(p.shape[1])]
        pairs.append(torch.stack(directions).mean())
    return torch.stack(pairs).mean()


@PROPERTIES
@given(**SHAPES, normalize=st.booleans())
def test_byol_has_value_and_gradient_of_the_plain_loop(d: int, n: int, k: int, seed: int, normalize: bool) -> None:
    targets = embeddings(d, n, k, seed + 1)
    fast, slow = (embeddings(d, n, k, seed).requires_grad_() for _ in range(2))
    value, expected = byol_loss(fast, targets, normalize), byol_loop(slow, targets, normalize)
    assert_same_value_and_gradient(fast, slow, value, expected)


def test_byol_is_float32_under_autocast_and_zero_where_all_agree() -> None:
    p, t = embeddings(2, 6, 4).float(), embeddings(2, 6, 4, 1).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = byol_loss(p, t)
    torch.testing.assert_close(under, byol_loss(p, t), rtol=0, atol=0)
    same = embeddings(1, 6, 4).expand(3, -1, -1)
    assert byol_loss(same, 3 * same) < 1e-15
    assert byol_loss(same, -same).item() == pytest.approx(8)  # both directions of opposite unit vectors


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
