"""The command `wmse estimate` from end to end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from builders import ROOT
from builders.runs import TINY
from wmse.cli import main
from wmse.config import load_project, read_yaml


def project(folder: Path, methods: list[str], benchmarks: list[str], **parameters: Any) -> Path:
    shutil.copytree(ROOT / "workflow", folder / "workflow")
    blocks = [{"benchmarks": benchmarks, "methods": methods}]
    config = {"preset": "quick", "experiments": blocks, "parameters": {"*": {**TINY, **parameters}}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_the_command_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = ["wmse-2", "simclr", "byol", "random", "pixels"]
    root = project(tmp_path, labels, ["fashion_mnist", "imagenet100_mini"], w_size=32)
    common = ["estimate", "--root", str(root), "--data-root", str(tmp_path), "--threads", "1", "--seconds", "0.5"]
    assert main([*common, "--watts", "200", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    rows = {row["run"]: row for row in content["runs"]}
    assert set(rows) == {f"{b}/{m}/seed0" for b in ("fashion_mnist", "imagenet100_mini") for m in labels}
    row = rows["fashion_mnist/wmse-2/seed0"]
    assert row["views"] == 3 * (10_000 // 64) * 64 * 2
    assert row["hours"] > row["evaluation_hours"] > 0
    assert row["kwh"] == pytest.approx(row["hours"] * 0.2)
    assert rows["fashion_mnist/pixels/seed0"]["steps"] == 0
    assert content["sum"]["hours"] == pytest.approx(sum(row["hours"] for row in rows.values()))
    assert content["runtimes"][0]["threads"] == 1
    run = load_project(read_yaml(root / "config.yaml")).runs[0].run
    (root / "results/runs" / run).mkdir(parents=True)
    (root / "results/runs" / run / "result.json").write_text("{}")
    assert main(common) == 0
    shown = capsys.readouterr()
    assert "sum of 9 (1 done)" in shown.out
    assert '"precision": "fp32"' in shown.out
    assert "training step" in shown.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "results", "workflow"]


@pytest.mark.parametrize("option", ["--watts", "--seconds"])
def test_bad_numbers_are_one_message(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", "--root", str(ROOT), option, "0"]) == 1
    assert f"wmse: error: {option}: must be a positive number" in capsys.readouterr().err


def test_too_large_a_batch_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = project(tmp_path, ["wmse-2"], ["fashion_mnist"], batch_size=32 * 1000)
    assert main(["estimate", "--root", str(root)]) == 1
    assert "batch_size (32000) exceeds the 10000 images" in capsys.readouterr().err
