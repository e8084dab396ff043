"""`wmse compare`: what differs between two runs, finished or not, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from builders.results import edit, make_run
from wmse.cli import main
from wmse.report.two_runs import as_text, compare_runs, read_side

CONFIG = {"experiments": [{"benchmarks": ["cifar10"], "methods": ["wmse-2", "wmse-4", "random"]}], "preset": "cpu"}


def words(line: str) -> list[str]:
    return line.split()


def test_what_differs_stands_side_by_side_and_what_is_equal_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = make_run(tmp_path, linear=55.0, lr=1e-3)
    second = make_run(tmp_path, d=2, seed=1, linear=50.5, top5=None, epochs=20)
    edit(second, "provenance.versions.torch", "2.16.0")
    edit(second, "provenance.hardware.gpu", "H100")
    assert main(["compare", str(first), str(second)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [f"first   {first.relative_to(tmp_path)}", f"second  {second.relative_to(tmp_path)}"]
    parts = "\n".join(lines).split("\n\n")[1:]
    configuration, circumstances, results, noise = (part.splitlines() for part in parts)
    assert configuration[0].startswith("configuration: 4 of ")
    assert [words(line) for line in configuration[1:]] == [
        ["first", "second"],
        ["d", "4", "2"],
        ["seed", "0", "1"],
        ["epochs", "10", "20"],
        ["lr", "0.001", "0.003"],
    ]
    assert circumstances[0].startswith("circumstances: 3 of ")
    assert [words(line) for line in circumstances[2:]] == [
        ["dirty", "false", "true"],
        ["versions.torch", "2.15.0", "2.16.0"],
        ["hardware.gpu", "—", "H100"],
    ]
    assert ["linear", "top-1", "55.00", "50.50", "-4.50"] in [words(line) for line in results]
    assert ["linear", "top-5", "94.00", "—", "—"] in [words(line) for line in results]
    assert ["steps", "1,000", "2,000", "+1,000"] in [words(line) for line in results]
    assert "10,000 test images" in noise[0]
    assert "about 1.4 points" in noise[0]  # 2 sqrt((55 * 45 + 50.5 * 49.5) / 10000)


def test_the_same_for_machines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = make_run(tmp_path), make_run(tmp_path, method="random", linear=30.0)
    assert main(["compare", str(first), str(second), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["runs"] == [str(path.relative_to(tmp_path)) for path in (first, second)]
    assert content["configuration"] == {"method": ["wmse", "random"], "d": [4, 1], "epochs": [10, 0]}
    assert content["circumstances"] == {}
    assert content["results"]["linear_top1"] == {"values": [55.0, 30.0], "difference": -25.0}
    assert content["results"]["steps"] == {"values": [1000, None], "difference": None}
    assert content["missing"] == []


def test_an_evaluation_elsewhere_is_told_and_one_beside_its_training_is_not(tmp_path: Path) -> None:
    first, second = make_run(tmp_path), make_run(tmp_path, seed=1)
    for path, cpu, where in ((first, "A", "A"), (second, "B", "B")):
        edit(path, "provenance.hardware.cpu", cpu)
        edit(path, "provenance.dirty", False)
        edit(path, "evaluation_provenance", {"hardware": {"cpu": where}})
    assert compare_runs(read_side(first), read_side(second)).circumstances == {"hardware.cpu": ("A", "B")}
    edit(second, "evaluation_provenance", {"hardware": {"cpu": "C"}})
    found = compare_runs(read_side(first), read_side(second)).circumstances
    assert found == {"hardware.cpu": ("A", "B"), "evaluation.hardware.cpu": ("A", "C")}


def test_a_run_equals_itself(tmp_path: Path) -> None:
    side = read_side(make_run(tmp_path))
    text = "\n".join(as_text(compare_runs(side, side)))
    assert "configuration: none of" in text
    assert "circumstances: none of" in text
    assert "+0.00" in text


def test_runs_that_are_not_finished_are_compared_as_far_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    names = ["cifar10/wmse-2/seed0", "cifar10/random/seed0"]
    assert main(["compare", *names, "--root", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "results" not in printed
    assert "is not finished: run `wmse pretrain cifar10/wmse-2/seed0`" in printed
    assert "is not finished: run `wmse evaluate cifar10/random/seed0`" in printed
    trained = make_run(tmp_path / "other")
    (trained / "result.json").rename(trained / "pretrain.json")
    assert main(["compare", names[0], str(trained), "--root", str(tmp_path), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["results"]["steps"]["values"] == [None, 1000]
    assert "is not evaluated: run `wmse evaluate cifar10/wmse-4/seed0`" in content["missing"][1]


def test_what_is_no_run_or_not_to_be_trusted_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path)
    assert main(["compare", str(run), str(tmp_path), "--root", str(tmp_path)]) == 1
    assert "holds neither result.json nor pretrain.json" in capsys.readouterr().err
    assert main(["compare", str(run), str(tmp_path / "nowhere"), "--root", str(tmp_path)]) == 1
    assert "`wmse runs` lists them" in capsys.readouterr().err
    text = (run / "result.json").read_text()
    (run / "result.json").write_text(text.replace("55.0", "99.0"))
    assert main(["compare", str(run), str(run)]) == 1
    assert "was changed after it was written: remove it and run" in capsys.readouterr().err
