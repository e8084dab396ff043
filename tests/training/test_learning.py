"""Every recipe is seen to learn: 5-nn accuracy rises clearly above that of the same encoder without training."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import torch

import learning
from builders import ROOT
from builders.tensors import seeded
from wmse.losses import wmse_loss


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.mark.long
@pytest.mark.parametrize("case", learning.CASES)
def test_a_recipe_learns(case: str, data_root: Path) -> None:
    found = [asdict(learning.learn(case, seed, data_root)) for seed in learning.SEEDS]
    assert min(learning.gain([run]) for run in found) > 0, found
    assert learning.gain(found) > learning.MARGIN, found


def test_the_committed_table_has_every_recipe_and_each_has_learnt() -> None:
    rows = learning.read()
    expected = [(case, seed) for case in learning.CASES for seed in learning.SEEDS]
    assert [(row["run"], int(row["seed"])) for row in rows] == expected
    for case in learning.CASES:
        own = [row for row in rows if row["run"] == case]
        assert min(learning.gain([row]) for row in own) > 0, own
        assert learning.gain(own) > learning.MARGIN, own
    assert learning.as_table(rows) in (ROOT / "docs/learning.md").read_text()


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
