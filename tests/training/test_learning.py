"""Every recipe is seen to learn: 5-nn accuracy rises clearly above that of the same encoder without training."""

from __future__ import annotations

from pathlib import Path

import pytest

import learning


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
