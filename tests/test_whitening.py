"""Whitening against its definition, written as plain loops."""

from __future__ import annotations

import pytest
import torch

from builders.tensors import gaussian, seeded, whiten_one
from wmse.whitening import (
    SingularCovarianceError,
    draw_slices,
    inverse_cholesky,
    standardize,
    sub_batches,
    whiten,
    whiten_unchecked,
)

# --- whitening --------------------------------------------------------------------------------------------------------

SHAPES = [(2, 1), (16, 8), (9, 8), (3, 40, 5), (2, 3, 4, 64, 16), (1, 300, 64)]
TOLERANCE = {torch.float32: 2e-4, torch.float64: 1e-11}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_whitened_samples_have_zero_mean_and_identity_covariance(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    z = whiten(gaussian(*shape, dtype=dtype))
    assert z.shape == shape
    assert z.dtype == dtype
    z = z.double()
    covariance = z.mT @ z / (shape[-2] - 1)
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(z.mean(dim=-2), torch.zeros_like(z[..., 0, :]), atol=tolerance, rtol=0)
    identity = torch.eye(shape[-1]).double().expand_as(covariance)
    torch.testing.assert_close(covariance, identity, atol=tolerance, rtol=0)


def test_each_group_is_whitened_alone_with_the_inverse_cholesky_factor() -> None:
    x = gaussian(2, 3, 20, 6, spread=30)
    alone = torch.stack([torch.stack([whiten_one(group) for group in row]) for row in x])
    torch.testing.assert_close(whiten(x), alone, rtol=0, atol=1e-11)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_autocast_does_not_lower_the_precision(half: torch.dtype) -> None:
    x = gaussian(32, 8, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z, double, low = whiten(x), whiten(x.double()), whiten(x.to(half))
    torch.testing.assert_close(z, whiten(x), rtol=0, atol=0)
    assert double.dtype == torch.float64
    torch.testing.assert_close(low, whiten(x.to(half).float()), rtol=0, atol=0)


@pytest.mark.parametrize("eps", [1e-3, 0.3, 1.0])
def test_eps_shrinks_the_covariance_towards_the_identity(eps: float) -> None:
    x = gaussian(30, 5, spread=10)
    shrunk = (1 - eps) * torch.cov(x.T) + eps * torch.eye(5).double()
    expected = (x - x.mean(dim=0)) @ torch.linalg.inv(torch.linalg.cholesky(shrunk)).T
    torch.testing.assert_close(whiten(x, eps), expected, rtol=0, atol=1e-12)


def test_a_lower_triangular_map_with_positive_diagonal_changes_nothing() -> None:
    """L' = A L is again a Cholesky factor, so L'^-1 A x = L^-1 x."""
    x = gaussian(40, 6)
    lower = gaussian(6, 6, seed=1).tril(-1) + torch.diag(torch.tensor([0.1, 1, 2, 5, 0.5, 3]).double())
    torch.testing.assert_close(whiten(x @ lower.T + 7), whiten(x), rtol=0, atol=1e-10)


def test_any_invertible_affine_map_rotates_the_whitened_samples_at_most() -> None:
    """L' = A L Q with an orthogonal Q: lengths and angles within a group stay."""
    x, a = gaussian(40, 6), gaussian(6, 6, seed=1)
    z, mapped = whiten(x), whiten(x @ a.T - 3)
    torch.testing.assert_close(mapped @ mapped.T, z @ z.T, rtol=0, atol=1e-9)
    assert (mapped - z).abs().max() > 0.1


def test_a_singular_group_is_named() -> None:
    x = gaussian(2, 3, 16, 4)
    x[1, 2, :, 3] = x[1, 2, :, 0]
    with pytest.raises(SingularCovarianceError, match=r"^group 1, 2: the covariance of 16 samples of 4 dimensions"):
        whiten(x)
    for size, advice in (
        (16, r"lower the learning rate, lengthen the warm-up, or make w_size smaller, twice the"),
        (8, r"lower the learning rate, lengthen the warm-up; docs"),
        (7, r"the sub-batch is too small \(w_size of at least twice"),
    ):
        with pytest.raises(SingularCovarianceError, match=rf"^group the only one: .*{advice}"):
            whiten(x[1, 2, :size])


def test_one_sample_cannot_be_whitened() -> None:
    with pytest.raises(ValueError, match="at least 2 samples in a group, got 1"):
        whiten(torch.zeros(3, 1, 2))


def test_the_unchecked_variant_returns_the_state_of_every_group() -> None:
    x = gaussian(2, 3, 16, 4)
    x[1, 2] = 0
    z, info = whiten_unchecked(x)
    assert (info != 0).nonzero().tolist() == [[1, 2]]
    torch.testing.assert_close(z[0], whiten(x[0]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("k", [1, 32, 33, 65, 127, 128])
def test_the_inverse_of_the_cholesky_factor_is_lapacks_whatever_the_halves(k: int) -> None:
    x = gaussian(3, 2, 2 * k + 3, k)
    covariance = x.mT @ x
    inverse, info = inverse_cholesky(covariance)
    expected = torch.linalg.inv(torch.linalg.cholesky(covariance))
    torch.testing.assert_close(inverse, expected, rtol=1e-9, atol=1e-11)
    assert not info.any()


def test_whitening_has_the_gradient_of_finite_differences() -> None:
    x = gaussian(2, 7, 3).requires_grad_()
    assert torch.autograd.gradcheck(whiten, (x,))


def test_standardised_groups_have_unit_variance_but_keep_their_correlations() -> None:
    x = gaussian(3, 200, 4, spread=30)
    z = standardize(x)
    torch.testing.assert_close(z.var(dim=1, correction=0), torch.ones(3, 4).double(), rtol=1e-3, atol=0)
    torch.testing.assert_close(torch.corrcoef(z[0].T), torch.corrcoef(x[0].T), rtol=0, atol=1e-10)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = standardize(x.float())
    torch.testing.assert_close(under, standardize(x.float()), rtol=0, atol=0)


# --- slicing ----------------------------------------------------------------------------------------------------------


def test_every_iteration_slices_all_images_once_and_alike_for_all_views() -> None:
    d, n, w_iter = 3, 12, 4
    named = torch.arange(n).float().expand(d, n)[:, :, None]  # an "embedding" that names its image
    sliced = sub_batches(named, draw_slices(12, 4, w_iter, seeded()))
    assert sliced.shape == (d, w_iter, 3, 4, 1)
    assert (sliced == sliced[:1]).all()
    orders = sliced[0].reshape(w_iter, n).long()
    assert (orders.sort(dim=1).values == torch.arange(n)).all()
    assert len({tuple(order.tolist()) for order in orders}) == w_iter
