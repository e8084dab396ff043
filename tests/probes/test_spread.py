"""The spread and the effective rank of embeddings."""

from __future__ import annotations

import pytest
import torch

from builders.tensors import seeded
from wmse.probes import embedding_spread


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
