"""The spread and the effective rank of embeddings."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from builders.tensors import seeded
from wmse.probes import embedding_spread, principal_plane


def test_an_isotropic_cloud_has_spread_one_and_full_rank() -> None:
    spread, rank = embedding_spread(torch.randn(20_000, 16, generator=seeded()))
    assert spread.item() == pytest.approx(1, abs=0.02)
    assert rank.item() == pytest.approx(16, abs=0.1)


def test_collapsed_embeddings_have_no_spread_and_rank_one() -> None:
    point = torch.randn(1, 16, generator=seeded())
    spread, rank = embedding_spread(point.expand(500, -1))
    assert spread.item() == pytest.approx(0, abs=1e-12)
    assert rank.item() == pytest.approx(1, abs=1e-6)
    along = torch.randn(500, 1, generator=seeded(1)).double() * point.double()
    assert embedding_spread(along)[1].item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("r", [2, 5])
def test_a_cloud_in_a_subspace_has_its_rank(r: int) -> None:
    basis, _ = torch.linalg.qr(torch.randn(16, r, generator=seeded()).double())
    cloud = torch.randn(5000, r, generator=seeded(1)).double() @ basis.T + 3
    assert embedding_spread(cloud)[1].item() == pytest.approx(r, rel=0.01)


def test_the_principal_plane_is_scikit_learns() -> None:
    x = torch.randn(200, 6, generator=seeded()) * torch.tensor([1.0, 5, 2, 0.1, 3, 1]) + 100
    points, shares = principal_plane(x)
    model = PCA(2, svd_solver="full").fit(x.double().numpy())
    signs = np.sign(model.components_[range(2), np.abs(model.components_).argmax(axis=1)])
    np.testing.assert_allclose(points.numpy(), model.transform(x.double().numpy()) * signs, atol=1e-9)
    np.testing.assert_allclose(shares.numpy(), model.explained_variance_ratio_, atol=1e-12)


def test_equal_samples_have_a_plane_too() -> None:
    points, shares = principal_plane(torch.ones(5, 3))
    assert not points.any()
    assert not shares.any()
