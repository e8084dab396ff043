"""Counts are exact, and runs with equal steps are told from others."""

from __future__ import annotations

from pathlib import Path

import pytest

from builders import ROOT
from builders.runs import CPU, make_job, tiny_spec
from wmse.config import load_project
from wmse.datasets import ArrayDataset
from wmse.errors import ConfigError
from wmse.estimate.plan import extraction_key, feature_count, image_counts, step_key, workload
from wmse.methods import build_encoder
from wmse.training import Trainer


def test_counts_are_those_of_the_trainer(data: ArrayDataset, tmp_path: Path) -> None:
    spec = tiny_spec("wmse-4", epochs=7, lr_drops=[2], eval_every=3, eval_every_final=1)
    trainer = Trainer(make_job(spec, data, tmp_path, CPU))
    history = trainer.run()
    work = workload(spec, 200)
    assert work.steps == trainer.progress.step == 7 * (200 // 64)
    assert work.views == history[-1].views == 7 * 3 * 64 * 4
    assert work.evaluations == sum(record.knn5_top1 is not None for record in history) == 3  # after epochs 3, 6 and 7


def test_counts_of_the_paper() -> None:
    spec = load_project({"preset": "paper"}).find("cifar10/wmse-4/seed0")
    work = workload(spec, image_counts("cifar10", ROOT / "nowhere")["pretrain"])
    assert work.steps == 1000 * (50_000 // 256)
    assert work.views == work.steps * 1024
    assert work.evaluations == 950 // 20 + 50 // 5


def test_a_baseline_trains_nothing_and_a_large_batch_is_an_error() -> None:
    assert set(vars(workload(tiny_spec("random"), 10)).values()) == {0}
    with pytest.raises(ConfigError, match=r"batch_size \(64\) exceeds the 63 images"):
        workload(tiny_spec(), 63)


def test_runs_with_equal_steps_share_a_warm_up() -> None:
    spec = tiny_spec("wmse-2", benchmark="cifar10")
    for same in (
        tiny_spec("wmse-2", seed=1, epochs=9, lr=1e-3, lr_drops=[3], eval_every=1),
        tiny_spec("wmse-2", normalize=False, whitening="cholesky"),
        tiny_spec("wmse-2", benchmark="cifar100"),
    ):
        assert step_key(same) == step_key(spec)
        assert extraction_key(same) == extraction_key(spec)
    for other in (
        tiny_spec("wmse-4"),
        tiny_spec("simclr"),
        tiny_spec("wmse-2", batch_size=128),
        tiny_spec("wmse-2", w_iter=2),
        tiny_spec("wmse-2", width=8),
        tiny_spec("wmse-2", embedding=16),
        tiny_spec("wmse-2", whitening="identity"),
        tiny_spec("wmse-2", precision="bf16"),
        tiny_spec("wmse-2", benchmark="stl10"),  # larger images
        tiny_spec("wmse-2", benchmark="imagenet"),  # decodes files
    ):
        assert step_key(other) != step_key(spec)
    assert len({step_key(run) for run in load_project({"preset": "paper"}).runs if run.trained}) <= 27


@pytest.mark.parametrize("label", ["wmse-2", "random", "pixels"])
def test_the_length_of_the_features(label: str) -> None:
    spec = tiny_spec(label, arch="resnet50") if label == "wmse-2" else tiny_spec(label)
    expected = 3 * 8 * 8 if label == "pixels" else build_encoder(spec, 0).features
    assert feature_count(spec) == expected
