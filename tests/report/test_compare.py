"""Which runs and which of the paper's values stand in one row."""

from __future__ import annotations

from pathlib import Path

from builders.results import cells, edit, make_run, tables
from wmse.report.compare import compare
from wmse.report.paper import load_paper
from wmse.report.results import load_runs


def test_mean_spread_and_difference(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, seed=seed, linear=v, knn=v - 5) for seed, v in enumerate((54.0, 55.0, 57.0))]
    row = cells(tables(runs, tmp_path / "out"), "CIFAR-10", "W-MSE 4")
    # mean 55.333, sample standard deviation 1.5275
    assert row == [
        *("W-MSE 4", "**reduced** [1]", "10 / 1000"),
        *("91.99", "55.33 ± 1.53 (n=3)", "-36.66"),
        *("89.87†", "50.33 ± 1.53 (n=3)", "-39.54"),
    ]


def test_one_seed_has_no_spread(tmp_path: Path) -> None:
    row = cells(tables([make_run(tmp_path)], tmp_path / "out"), "CIFAR-10", "W-MSE 4")
    assert row[4] == "55.00 (n=1)"


def test_table3_matches_runs_by_their_epochs(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path, "imagenet", epochs=100, differences={}, linear=69.0),
        make_run(tmp_path, "imagenet", epochs=1, linear=2.0),
        make_run(tmp_path, "imagenet", "random", linear=5.0),
    ]
    text = tables(runs, tmp_path / "out")
    assert cells(text, "ImageNet, 100 epochs", "W-MSE 4")[2:6] == ["100 / 100", "69.43‡", "69.00 (n=1)", "-0.43"]
    assert cells(text, "ImageNet, 400 epochs", "W-MSE 4")[3:5] == ["72.56†", "not run"]
    assert cells(text, "ImageNet, 400 epochs", "SimSiam")[3:5] == ["70.8", "cited only"]
    other = "ImageNet, other runs (the paper has no value at these epochs)"
    assert cells(text, other, "W-MSE 4")[1:6] == ["**reduced** [1]", "1 / —", "—", "2.00 (n=1)", "—"]
    assert cells(text, other, "Random encoder")[4] == "5.00 (n=1)"


def test_table3_at_400_epochs_is_the_papers_recipe_too(tmp_path: Path) -> None:
    longer = {"epochs": {"run": 400, "paper": 100}}
    runs = [make_run(tmp_path, "imagenet", epochs=400, differences=longer, linear=72.0)]
    text = tables(runs, tmp_path / "out")
    assert cells(text, "ImageNet, 400 epochs", "W-MSE 4")[1:6] == [
        "paper",
        "400 / 400",
        "72.56†",
        "72.00 (n=1)",
        "-0.56",
    ]


def test_specs_that_differ_beyond_the_seed_are_not_averaged(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, seed=s, linear=50.0 + s, lr=3e-3, w_iter=2) for s in (0, 1)]
    runs.append(make_run(tmp_path, seed=0, linear=60.0, lr=1e-3, w_iter=2))
    text = tables(runs, tmp_path / "out")
    assert cells(text, "CIFAR-10", "W-MSE 4 (lr=0.003)")[4] == "50.50 ± 0.71 (n=2)"
    assert cells(text, "CIFAR-10", "W-MSE 4 (lr=0.001)")[4] == "60.00 (n=1)"


def test_a_variant_never_stands_beside_the_papers_value_of_the_method(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, epochs=1000, differences={}, variant="mine"), make_run(tmp_path, variant="")]
    text = tables(runs, tmp_path / "out")
    assert cells(text, "CIFAR-10", "W-MSE 4, mine")[1:6] == ["no paper value", "1000 / —", "—", "55.00 (n=1)", "—"]
    assert cells(text, "CIFAR-10", "W-MSE 4")[1:4] == ["**reduced** [1]", "10 / 1000", "91.99"]
    only = tables(runs[:1], tmp_path / "only")
    assert cells(only, "CIFAR-10", "W-MSE 4")[3:5] == ["91.99", "not run"]


def test_the_longer_training_of_table_3_stands_beside_the_papers_value(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, "imagenet", epochs=400, differences={}, linear=72.0, variant="400-epochs")]
    text = tables(runs, tmp_path / "out")
    assert cells(text, "ImageNet, 400 epochs", "W-MSE 4")[1:5] == ["paper", "400 / 400", "72.56†", "72.00 (n=1)"]
    assert cells(text, "ImageNet, 100 epochs", "W-MSE 4")[4] == "not run"


def test_a_result_older_than_a_parameter_joins_those_that_have_its_default(tmp_path: Path) -> None:
    old = make_run(tmp_path, seed=0, linear=50.0)
    new = make_run(tmp_path, seed=1, linear=52.0, whitening="auto", target_decay=0.99, lr_drops=[50, 25])
    other = make_run(tmp_path, seed=2, linear=60.0, whitening="batch_norm")
    text = tables([old, new, other], tmp_path / "out")
    assert cells(text, "CIFAR-10", "W-MSE 4 (whitening=auto)")[4] == "51.00 ± 1.41 (n=2)"
    assert cells(text, "CIFAR-10", "W-MSE 4 (whitening=batch_norm)")[4] == "60.00 (n=1)"


def test_seed_order_and_repeated_paths_change_nothing(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, seed=s, linear=50.0 + s) for s in (0, 1, 2)]
    assert tables(runs, tmp_path / "a") == tables([*reversed(runs), runs[0]], tmp_path / "b")


def test_times_of_different_hardware_are_not_averaged(tmp_path: Path) -> None:
    from wmse.report.plots import bars_of_time

    runs = [make_run(tmp_path, seed=seed) for seed in range(3)]
    edit(runs[2], "provenance.hardware.gpu", "NVIDIA H100")
    sections = [section for section in compare(load_runs(runs), load_paper()) if section.main]
    bars = bars_of_time(sections)
    assert {hardware: [len(group.runs) for _, group in rows] for (_, hardware), rows in bars.items()} == {
        "AMD | EPYC, 2 cores, 1 thread": [2],
        "NVIDIA H100": [1],
    }
