"""The paper's numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from wmse.errors import DataError
from wmse.report.paper import load_paper


@pytest.mark.parametrize(
    ("cell", "text", "status"),
    [
        ((1, "cifar10", "simclr", 2, "linear_top1", 1000), "91.80", "confirmed"),
        ((1, "cifar10", "byol", 2, "knn5_top1", 1000), "89.45", "confirmed"),
        ((1, "cifar10", "wmse", 2, "knn5_top1", 1000), "89.69", "confirmed"),
        ((1, "cifar10", "wmse", 4, "linear_top1", 1000), "91.99", "confirmed"),
        ((1, "cifar10", "wmse", 4, "knn5_top1", 1000), "89.87", "single"),
        ((1, "cifar100", "wmse", 4, "linear_top1", 1000), "67.64", "confirmed"),
        ((1, "cifar100", "wmse", 4, "knn5_top1", 1000), "56.45", "single"),
        ((1, "cifar100", "byol", 2, "knn5_top1", 1000), "56.82", "confirmed"),
        ((1, "stl10", "byol", 2, "linear_top1", 2000), "91.99", "confirmed"),
        ((1, "stl10", "byol", 2, "knn5_top1", 2000), "88.64", "single"),
        ((1, "stl10", "simclr", 2, "linear_top1", 2000), "90.51", "single"),
        ((1, "stl10", "wmse", 2, "knn5_top1", 2000), "87.10", "single"),
        ((1, "stl10", "wmse", 4, "linear_top1", 2000), "91.75", "recalled"),
        ((1, "stl10", "wmse", 4, "knn5_top1", 2000), "88.59", "recalled"),
        ((1, "tiny_imagenet", "simclr", 2, "knn5_top1", 1000), "32.86", "confirmed"),
        ((1, "tiny_imagenet", "wmse", 4, "linear_top1", 1000), "49.20", "single"),
        ((1, "tiny_imagenet", "wmse", 4, "knn5_top1", 1000), "35.44", "single"),
        ((2, "imagenet100", "moco", None, "linear_top5", None), "91.64", "recalled"),
        ((2, "imagenet100", "align_uniform", None, "linear_top1", None), "74.60", "recalled"),
        ((2, "imagenet100", "wmse", 2, "linear_top5", 240), "93.14", "recalled"),
        ((2, "imagenet100", "wmse", 4, "linear_top1", 240), "79.02", "recalled"),
        ((3, "imagenet", "simsiam", None, "linear_top1", 100), "68.1", "confirmed"),
        ((3, "imagenet", "byol", 2, "linear_top1", 400), "73.2", "confirmed"),
        ((3, "imagenet", "wmse", 4, "linear_top1", 100), "69.43", "recalled"),
        ((3, "imagenet", "wmse", 4, "linear_top1", 400), "72.56", "single"),
    ],
)
def test_paper_cells(cell: tuple[Any, ...], text: str, status: str) -> None:
    found = [v for v in load_paper() if (v.table, v.benchmark, v.method, v.d, v.metric, v.epochs) == cell]
    assert [(value.text, value.status) for value in found] == [(text, status)]


def test_paper_file_is_complete() -> None:
    values = load_paper()
    assert [sum(value.table == table for value in values) for table in (1, 2, 3)] == [32, 8, 12]
    statuses = [value.status for value in values if value.table == 1]
    assert {status: statuses.count(status) for status in set(statuses)} == {"confirmed": 21, "single": 9, "recalled": 2}
    assert all(value.status == "missing" and value.value is None for value in values if value.table == 4)
    keys = [(v.table, v.benchmark, v.method, v.d, v.epochs, v.metric) for v in values]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("1,cifar10,wmse,4,1000,ResNet-18,accuracy,91.99,confirmed,s,", "accuracy"),
        ("1,cifar10,wmse,4,1000,ResNet-18,knn5_top1,91.99,sure,s,", "sure"),
        ("1,cifar10,wmse,4,1000,ResNet-18,knn5_top1,,confirmed,s,", "missing"),
        ("1,cifar10,wmse,4,1000,ResNet-18,knn5_top1,991.9,confirmed,s,", "percentage"),
        ("one,cifar10,wmse,4,1000,ResNet-18,knn5_top1,91.9,confirmed,s,", "one"),
    ],
)
def test_damaged_paper_file(tmp_path: Path, row: str, problem: str) -> None:
    file = tmp_path / "paper.csv"
    file.write_text("table,benchmark,method,d,epochs,encoder,metric,value,status,source,note\n" + row + "\n")
    with pytest.raises(DataError, match=rf"paper\.csv, line 2: .*{problem}"):
        load_paper(file)
