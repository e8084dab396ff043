"""The disk that a configuration needs, against the files that real preparations and trainings leave."""

from __future__ import annotations

from pathlib import Path

import pytest

from builders.raw import put
from builders.runs import make_job, tiny_spec
from wmse.config import load_project
from wmse.datasets import SOURCES, ArrayDataset, prepare
from wmse.estimate.disk import FILE, LISTED, data_bytes, run_size, runs_bytes
from wmse.runs.folder import RunFolder
from wmse.training import Trainer, pretrain

TENSOR = 1000  # More bytes than torch and safetensors write around a tensor.


@pytest.mark.parametrize(
    ("label", "overrides"), [("wmse-2", {}), ("byol", {}), ("simclr", {"optimizer": "lars"}), ("wmse-2", {"width": 8})]
)
def test_files_of_a_training_are_as_large_as_foretold(
    data: ArrayDataset, tmp_path: Path, label: str, overrides: dict[str, object]
) -> None:
    spec = tiny_spec(label, epochs=1, lr_drops=[], **overrides)
    job = make_job(spec, data, tmp_path)
    pretrain(job)
    (checkpoint,) = job.folder.checkpoints.iterdir()
    size = run_size(spec)
    tensors = len(Trainer(job).method.state_dict())
    assert 0 <= checkpoint.stat().st_size - size.checkpoint < 4 * tensors * TENSOR
    assert 0 <= job.folder.encoder.stat().st_size - size.encoder < tensors * TENSOR


def test_a_configuration_needs_what_its_runs_have_not_written_yet(tmp_path: Path) -> None:
    block = {"benchmarks": ["fashion_mnist"], "methods": ["wmse-2", "random"]}
    project = load_project({"experiments": [block], "seeds": [0, 1], "keep_checkpoints": 3})
    size = run_size(project.runs[0])
    assert runs_bytes(project, tmp_path) == 2 * (3 * size.checkpoint + size.encoder) + size.checkpoint
    folder = RunFolder.of(tmp_path, project.runs[0].run)
    put(folder.checkpoints / "step.pt", "x" * 1000)
    assert runs_bytes(project, tmp_path) == 2 * (3 * size.checkpoint + size.encoder) + size.checkpoint - 1000
    put(folder.pretrained, "{}")
    assert runs_bytes(project, tmp_path) == 4 * size.checkpoint + size.encoder


def test_prepared_data_are_as_large_as_foretold_and_need_nothing_more(tmp_path: Path) -> None:
    needed = data_bytes(["garments", "imagenet_mini"], tmp_path)
    assert needed == 12_000 * (3 * 32 * 32 + 8) + 1_200 * (FILE + LISTED)
    for name in ("garments", "imagenet_mini"):
        prepare(name, tmp_path, log=lambda line: None)
    assert data_bytes(["garments", "imagenet_mini"], tmp_path) == 0
    written = [path.stat() for path in tmp_path.rglob("*") if path.is_file()]
    assert 0.8 * needed < sum(512 * status.st_blocks for status in written) < 1.1 * needed


def test_archives_count_once_and_not_when_they_are_there(tmp_path: Path) -> None:
    archive = SOURCES["cifar10"].archives[0]
    prepared = 60_000 * (3 * 32 * 32 + 8)
    assert data_bytes(["cifar10"], tmp_path) == archive.size + prepared
    part = put(tmp_path / "cifar10/raw" / f"{archive.name}.part", "x" * 100)
    assert data_bytes(["cifar10"], tmp_path) == archive.size - 100 + prepared
    part.rename(part.with_suffix(""))
    assert data_bytes(["cifar10"], tmp_path) == prepared
    images = sum(archive.size for archive in SOURCES["imagenet"].archives)
    listed = LISTED * (1_281_167 + 50_000 + 126_689 + 5_000)
    assert data_bytes(["imagenet", "imagenet100"], tmp_path) == images + listed
    (tmp_path / "imagenet/raw/train").mkdir(parents=True)
    assert data_bytes(["imagenet", "imagenet100"], tmp_path) == listed
