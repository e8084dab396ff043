"""Every recipe is seen to learn: 5-nn accuracy rises clearly above that of the same encoder without training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import learning
from builders.tensors import seeded
from wmse.losses import wmse_loss


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.mark.long
@pytest.mark.parametrize("case", learning.CASES)
def test_a_recipe_learns(case: str, data_root: Path) -> None:
    found = [learning.learn(case, seed, data_root) for seed in learning.SEEDS]
    gains = [run.trained - run.untrained for run in found]
    assert min(gains) > 0, found
    assert sum(gains) / len(gains) > learning.MARGIN, found


def test_a_low_loss_needs_no_embeddings_that_agree() -> None:
    """A quarter of the images far away is enough for the others to agree in nothing but where those are not.

    The larger a sub-batch is compared with the embedding size (16), the more so (docs/learning.md).
    """
    noise = torch.randn(4, 512, 16, generator=seeded(), dtype=torch.float64)
    far = noise.clone()
    far[:, :128] += 100 * noise[0, :128].flip(0)  # the same in all views
    sizes = (32, 64, 128)
    apart = [wmse_loss(noise, w_size=size, generator=seeded(1)).item() for size in sizes]
    assert apart == pytest.approx([2, 2, 2], abs=0.1)
    losses = [wmse_loss(far, w_size=size, generator=seeded(1)).item() for size in sizes]
    assert losses == pytest.approx([1.45, 0.74, 0.16], abs=0.01)
