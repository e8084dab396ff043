"""Results that are damaged or do not fit: left out or refused, with file and key."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from builders import ROOT
from builders.results import cells, edit, make_run
from wmse.datasets import prepare
from wmse.errors import DataError
from wmse.files import digests
from wmse.report import build_report, write_tables
from wmse.report.results import load_history, load_runs


def test_a_result_that_does_not_fit_is_left_out_and_every_page_says_so(tmp_path: Path) -> None:
    good = [make_run(tmp_path, seed=seed, linear=55.0) for seed in (0, 1)]
    changed, other_spec, other_data, history = (make_run(tmp_path, seed=seed, linear=11.0) for seed in (2, 3, 4, 5))
    result = changed / "result.json"
    result.write_text(result.read_text().replace('"linear_top1": 11.0', '"linear_top1": 92.0'))
    edit(other_spec, "spec.lr", 0.5)
    edit(other_data, "data.digest", "sha256:" + "cd" * 32)
    edit(history, "files", digests(history, "history.csv"))
    (history / "history.csv").write_text((history / "history.csv").read_text().replace("1.9", "1.8"))
    runs = [*good, changed, other_spec, other_data, history]
    left_out = build_report(runs, tmp_path / "out")
    reasons = (
        "was changed after it was written",
        "the hash of 'spec' is",
        "data with digest sha256:cdcd",
        "history.csv: is not what result.json vouches for",
    )
    assert [reason for reason in reasons if not any(reason in line for line in left_out)] == []
    for run in (changed, other_spec, other_data, history):
        assert sum(run.name in line for line in left_out) == 1
    for page in ("tables.md", "claims.md"):
        text = (tmp_path / "out" / page).read_text()
        assert "4 results are left out of this page" in text[:200]
        assert all(line in text for line in left_out)
    assert cells((tmp_path / "out/tables.md").read_text(), "CIFAR-10", "W-MSE 4")[4] == "55.00 ± 0.00 (n=2)"
    assert build_report(good, tmp_path / "out") == []
    assert "left out" not in (tmp_path / "out/tables.md").read_text()


def test_runs_must_have_been_computed_on_the_prepared_data_or_on_the_same(tmp_path: Path) -> None:
    digest = prepare("fashion_mnist", tmp_path / "data", log=lambda line: None).digest
    runs = [make_run(tmp_path, "fashion_mnist", differences=None, seed=seed) for seed in range(3)]
    edit(runs[0], "data.digest", digest)
    (left_out, _) = write_tables(runs, tmp_path / "out", tmp_path / "data")  # the majority is no proof
    assert "the prepared data in" in left_out
    assert digest in left_out
    assert len(write_tables(runs[:2], tmp_path / "out")) == 2  # one against one: neither can be trusted
    assert len(write_tables(runs, tmp_path / "out")) == 1


@pytest.mark.parametrize("preset", ["cpu", "quick", "small", "tour"])
def test_the_committed_results_vouch_for_themselves_and_have_their_curves(preset: str) -> None:
    found = sorted((ROOT / "results/reference" / preset).glob("runs/*/*/*"))
    runs = load_runs(found)
    assert len(runs) == len(found) >= 8
    curves = {run.name: len(load_history(run)) for run in runs if run.trained}
    assert curves == {run.name: run.epochs for run in runs if run.trained}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format", 2, "'format' is 2"),
        ("spec_hash", "xyz", "spec_hash"),
        ("spec_hash", "0" * 64, "the hash of 'spec' is"),
        ("spec.epochs", 7, "the hash of 'spec' is"),
        ("spec.epoch", 7, "'spec' is no specification of this version"),
        ("seed", 3, "'spec.seed' does not agree with 'seed'"),
        ("seed", True, "'seed' must be of type int"),
        ("benchmark", "stl10", "'spec.benchmark'"),
        ("run", "cifar10/wmse-4/seed9-12345678", "'run'"),
        ("metrics.linear_top1", float("nan"), "NaN"),
        ("metrics.linear_top1", "91", "'metrics.linear_top1'"),
        ("metrics.knn5_top1", 0.551e3, "percentage"),
        ("paper_differences", {"epochs": 10}, "'paper_differences.epochs'"),
        ("pretrain", None, "'pretrain'"),
        ("pretrain.epochs", 7, "'pretrain.epochs' is 7"),
        ("provenance.hardware", None, "'provenance.hardware'"),
    ],
)
def test_wrong_values_name_file_and_key(tmp_path: Path, key: str, value: Any, message: str) -> None:
    run = make_run(tmp_path)
    edit(run, key, value)
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        load_runs([run])
    assert str(run / "result.json") in str(caught.value)


@pytest.mark.parametrize(
    "key",
    [
        *("format", "run", "benchmark", "method", "d", "seed", "spec", "spec_hash", "paper_differences", "metrics"),
        *("metrics.linear_top1", "metrics.knn5_top1", "pretrain", "pretrain.epochs", "pretrain.wall_seconds"),
        *("evaluation", "data.digest", "provenance", "provenance.commit", "provenance.versions", "spec.seed"),
    ],
)
def test_missing_keys_name_file_and_key(tmp_path: Path, key: str) -> None:
    run = make_run(tmp_path)
    edit(run, key, delete=True)
    with pytest.raises(DataError, match=f"key '{re.escape(key)}' is missing") as caught:
        load_runs([run])
    assert str(run / "result.json") in str(caught.value)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "\xff\xfe"])
def test_a_result_that_is_no_json_object(tmp_path: Path, content: str) -> None:
    run = make_run(tmp_path)
    (run / "result.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match=r"result\.json"):
        load_runs([run])


def test_a_damaged_result_leaves_the_old_report(tmp_path: Path) -> None:
    good, bad = make_run(tmp_path), make_run(tmp_path, d=2)
    out = tmp_path / "out"
    build_report([good], out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    (bad / "history.csv").unlink()
    with pytest.raises(DataError, match=r"history\.csv"):
        build_report([good, bad], out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_missing_directory_and_the_same_run_twice(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        write_tables([tmp_path / "nowhere"], tmp_path / "out")
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b")]
    with pytest.raises(DataError, match="are both run"):
        write_tables(runs, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_top5_may_be_null_or_absent(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, top5=None), make_run(tmp_path, seed=1)]
    edit(runs[1], "metrics.linear_top5", delete=True)
    write_tables(runs, tmp_path / "out")
    assert "linear_top5" not in (tmp_path / "out/tables/table1.csv").read_text()
