"""The report: checked results in, tables and plots out, and never a number that is in no result file."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from wmse.config import RunSpec, experiments, parse_label
from wmse.datasets import prepare
from wmse.errors import DataError
from wmse.files import digests, write_sealed_json
from wmse.report import build_report, write_dag, write_plots, write_tables
from wmse.report.compare import compare
from wmse.report.dag import direct, layers, parse_dot
from wmse.report.paper import METRICS, load_paper
from wmse.report.results import load_runs

REDUCED = {"epochs": {"run": 10, "paper": 1000}, "width": {"run": 16, "paper": 64}}
PNG = b"\x89PNG\r\n\x1a\n"


def make_run(
    root: Path,
    benchmark: str = "cifar10",
    method: str = "wmse",
    d: int | None = 4,
    seed: int = 0,
    linear: float = 55.0,
    knn: float = 50.0,
    top5: float | None = 94.0,
    epochs: int = 10,
    differences: dict[str, Any] | None = REDUCED,
    **spec_extra: Any,
) -> Path:
    """Write one synthetic run and return its directory."""
    trained = method not in ("random", "pixels")
    if not trained:
        epochs, differences, d = 0, None, None
    spec = {"benchmark": benchmark, "method": method, "seed": seed, "epochs": epochs, **spec_extra}
    spec |= {} if d is None else {"d": d}
    digest = RunSpec.from_dict(spec, runnable=False).hash
    label = f"wmse-{d}" if method == "wmse" else method
    run = f"{benchmark}/{label}/seed{seed}-{digest[:8]}"
    pretrain = {"epochs": epochs, "wall_seconds": 2800.4, "views_per_second": 712.6, "resumed": 0}
    pretrain |= {"steps": 100 * epochs, "views": 2e5 * epochs, "embedding_std": 0.9, "effective_rank": 12.0}
    content = {
        "format": 1,
        "run": run,
        "benchmark": benchmark,
        "method": method,
        "d": d,
        "seed": seed,
        "preset": "cpu",
        "spec": spec,
        "spec_hash": digest,
        "paper_differences": differences,
        "metrics": {"linear_top1": linear, "linear_top5": top5, "knn5_top1": knn},
        "pretrain": pretrain if trained else None,
        "evaluation": {"wall_seconds": 30.0, "train_images": 50000, "test_images": 10000, "features": 128},
        "data": {"benchmark": benchmark, "digest": "sha256:" + "ab" * 32},
        "provenance": {
            "commit": "0123456789abcdef",
            "dirty": seed == 1,
            "versions": {"python": "3.11.2", "torch": "2.15.0", "wmse": "0.1.0"},
            "hardware": {"cpu": "AMD | EPYC", "cores": 2, "gpu": None},
            "runtime": {"device": "cpu", "precision": "bf16", "threads": 1},
            "finished": "2026-11-23T20:00:00+00:00",
        },
    }
    directory = root / run
    directory.mkdir(parents=True)
    if trained:
        _write_history(directory / "history.csv", epochs, linear, seed)
    write_sealed_json(directory / "result.json", {**content, "files": {}})
    return directory


def _write_history(file: Path, epochs: int, level: float, seed: int) -> None:
    head = "epoch,step,views,seconds,loss,lr,views_per_second,embedding_std,effective_rank,knn5_top1,peak_memory_mb"
    lines = [head]
    for epoch in range(1, epochs + 1):
        part = epoch / epochs
        knn = f"{level * part + seed:.2f}" if epoch % 2 == 0 else ""
        lines.append(f"{epoch},{epoch},{epoch},{60 * epoch}.0,{2 - part + seed / 10},0.003,700,0.1,{40 * part},{knn},")
    file.write_text("\n".join(lines) + "\n")


def edit(directory: Path, key: str, value: Any = None, delete: bool = False) -> None:
    """Change or delete one dotted key of a run's result.json, as if it had been written so."""
    file = directory / "result.json"
    content = json.loads(file.read_text())
    *parents, last = key.split(".")
    target = content
    for parent in parents:
        target = target[parent]
    if delete:
        del target[last]
    else:
        target[last] = value
    write_sealed_json(file, content)


def tables(run_dirs: list[Path], out: Path) -> str:
    write_tables(run_dirs, out)
    return (out / "tables.md").read_text(encoding="utf-8")


def section(text: str, title: str) -> str:
    """The part of tables.md under one heading."""
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0]


def cells(text: str, title: str, method: str) -> list[str]:
    """Cells of the first row of a section that begins with `method`."""
    line = next(line for line in section(text, title).splitlines() if line.startswith(f"| {method} "))
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def read_csv(file: Path) -> list[dict[str, str]]:
    with open(file, encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


# --- the paper's numbers


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


# --- tables


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


def test_reduced_runs_are_labelled_with_what_differs(tmp_path: Path) -> None:
    text = tables([make_run(tmp_path), make_run(tmp_path, d=2)], tmp_path / "out")
    part = section(text, "CIFAR-10")
    assert part.count("**reduced** [1]") == 2
    assert part.count("epochs 10 (paper: 1000), width 16 (paper: 64)") == 1
    assert "Not the paper's recipe" in part


def test_paper_recipe_and_changed_runs(tmp_path: Path) -> None:
    paper = make_run(tmp_path, epochs=1000, differences={})
    more = make_run(tmp_path, d=2, epochs=2000, differences={"epochs": {"run": 2000, "paper": 1000}})
    text = tables([paper, more], tmp_path / "out")
    assert cells(text, "CIFAR-10", "W-MSE 4")[1:3] == ["paper", "1000 / 1000"]
    assert cells(text, "CIFAR-10", "W-MSE 2")[1] == "**changed** [1]"


def test_not_run_cells_marks_and_order_of_sections(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, "fashion_mnist", differences=None), make_run(tmp_path, "fashion_mnist", "pixels")]
    text = tables(runs, tmp_path / "out")
    titles = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    assert titles[0] == "Fashion-MNIST sample (not in the paper)"
    assert titles[1:-2] == [
        *("CIFAR-10", "CIFAR-100", "STL-10", "Tiny ImageNet", "ImageNet-100"),
        *("ImageNet, 100 epochs", "ImageNet, 400 epochs"),
    ]
    own = cells(text, titles[0], "W-MSE 4")
    assert own == ["W-MSE 4", "—", "10 / —", "—", "55.00 (n=1)", "—", "—", "50.00 (n=1)", "—"]
    assert cells(text, titles[0], "Raw pixels")[1:6] == ["—", "— / —", "—", "55.00 (n=1)", "—"]
    assert cells(text, titles[0], "SimCLR")[4] == "not run"
    assert cells(text, "STL-10", "W-MSE 4")[2:6] == ["— / 2000", "91.75‡", "not run", "—"]
    assert cells(text, "STL-10", "BYOL")[3:] == ["91.99", "not run", "—", "88.64†", "not run", "—"]
    rows = [line for line in section(text, "CIFAR-10").splitlines() if line.startswith("| ")][2:]
    assert [line.split("|")[1].strip() for line in rows] == [
        *("SimCLR", "BYOL", "W-MSE 2", "W-MSE 4", "Random encoder", "Raw pixels")
    ]


def test_other_methods_get_rows(tmp_path: Path) -> None:
    text = tables([make_run(tmp_path, d=8), make_run(tmp_path, method="vicreg", d=2)], tmp_path / "out")
    assert cells(text, "CIFAR-10", "W-MSE 8")[3:5] == ["—", "55.00 (n=1)"]
    assert cells(text, "CIFAR-10", "vicreg")[4] == "55.00 (n=1)"


def test_table2_prints_top1_and_top5_with_cited_rows(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, "imagenet100", epochs=240, differences={}, linear=78.0, top5=94.0)]
    text = tables(runs, tmp_path / "out")
    row = cells(text, "ImageNet-100", "W-MSE 4")
    assert row[1:] == ["paper", "240 / 240", "79.02‡", "78.00 (n=1)", "-1.02", "94.46‡", "94.00 (n=1)", "-0.46"]
    assert cells(text, "ImageNet-100", "MoCo")[3:5] == ["72.80‡", "cited only"]
    assert "ResNet-50" in cells(text, "ImageNet-100", "L_align + L_uniform")[0]


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


def variant(root: Path, method: str, name: str, d: int = 2, **settings: Any) -> Path:
    """A run of a variant on the benchmark of the quick preset."""
    return make_run(root, "fashion_mnist", method, d, differences=None, variant=name, **settings)


def rows_of(part: str) -> list[str]:
    """First cells of a section's table, without its head."""
    return [line.split(" | ")[0].strip("| ") for line in part.splitlines() if line.startswith("| ")][2:]


@pytest.mark.parametrize(
    "name", [name for name, e in experiments().items() if name not in ("table1", "table2", "table3")]
)
def test_every_experiment_has_a_table_with_all_its_rows_and_both_baselines(tmp_path: Path, name: str) -> None:
    experiment = experiments()[name]
    own = next(label for label in experiment["methods"] if "@" in label)
    method, d, found = parse_label(own)
    runs = [variant(tmp_path, method, found, d, linear=61.0, knn=62.0), make_run(tmp_path, "fashion_mnist", "pixels")]
    part = section(tables(runs, tmp_path / "out"), f"{experiment['title']}, Fashion-MNIST sample")
    rows = rows_of(part)
    assert len(rows) == len(experiment["methods"])
    assert rows[-2:] == ["Random encoder", "Raw pixels"]
    assert part.count("not run") == 2 * (len(rows) - 2)
    assert ("(missing)" in part) == (name == "table4")
    ours = next(line for line in part.splitlines() if "61.00" in line)
    # spread, effective rank, 2800.4 s / 1000 steps, views
    assert [cell.strip() for cell in ours.strip("| ").split(" | ")][3:] == [
        *("61.00 (n=1)", "62.00 (n=1)", "0.90", "12.0", "2,800", "2,000,000")
    ]
    lines = read_csv(tmp_path / "out" / "tables" / f"{name}.csv")
    assert {line["metric"] for line in lines if line["ours_mean"] == "61.00"} == {"linear_top1"}
    assert {"embedding_std", "effective_rank", "ms_per_step", "views"} <= {line["metric"] for line in lines}


def test_variants_of_an_experiment_stand_in_its_table_alone(tmp_path: Path) -> None:
    runs = [variant(tmp_path, "wmse", "euclidean"), make_run(tmp_path, "fashion_mnist", d=2, differences=None)]
    text = tables(runs, tmp_path / "out")
    assert "euclidean" not in section(text, "Fashion-MNIST sample (not in the paper)")
    part = section(text, "Ablation: Euclidean distance instead of cosine, Fashion-MNIST sample")
    assert rows_of(part) == ["W-MSE 2", "W-MSE 2, euclidean", "Random encoder", "Raw pixels"]
    assert "Ablation: whitening" not in text  # none of its variants was run
    assert "Ablation" not in tables(runs[1:], tmp_path / "without")


def test_the_miniatures_have_the_layouts_of_tables_2_and_3(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path, "imagenet100_mini", d=2, differences=None, top5=93.0),
        make_run(tmp_path, "imagenet_mini", differences=None),
        make_run(tmp_path, "imagenet_mini", differences=None, variant="400-epochs", epochs=40),
    ]
    text = tables(runs, tmp_path / "out")
    two = section(text, "ImageNet-100 in miniature (not in the paper)")
    assert "linear top-5: paper" in two
    assert rows_of(two) == ["W-MSE 2", "W-MSE 4", "Random encoder", "Raw pixels"]
    three = section(text, "ImageNet in miniature (not in the paper)")
    assert rows_of(three) == ["W-MSE 4", "W-MSE 4, 400-epochs", "Random encoder", "Raw pixels"]
    assert "5-nn" not in three


def test_the_longer_training_of_table_3_stands_beside_the_papers_value(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, "imagenet", epochs=400, differences={}, linear=72.0, variant="400-epochs")]
    text = tables(runs, tmp_path / "out")
    assert cells(text, "ImageNet, 400 epochs", "W-MSE 4")[1:5] == ["paper", "400 / 400", "72.56†", "72.00 (n=1)"]
    assert cells(text, "ImageNet, 100 epochs", "W-MSE 4")[4] == "not run"


def test_every_table_has_both_baselines(tmp_path: Path) -> None:
    text = tables([make_run(tmp_path), variant(tmp_path, "wmse", "no-whitening")], tmp_path / "out")
    parts = [part for part in text.split("\n## ")[1:] if "| method" in part]
    assert len(parts) == 8
    for part in parts:
        assert rows_of(part)[-2:] == ["Random encoder", "Raw pixels"]


def test_a_result_older_than_a_parameter_joins_those_that_have_its_default(tmp_path: Path) -> None:
    old = make_run(tmp_path, seed=0, linear=50.0)
    new = make_run(tmp_path, seed=1, linear=52.0, whitening="auto", target_decay=0.99, lr_drops=[50, 25])
    other = make_run(tmp_path, seed=2, linear=60.0, whitening="batch_norm")
    text = tables([old, new, other], tmp_path / "out")
    assert cells(text, "CIFAR-10", "W-MSE 4 (whitening=auto)")[4] == "51.00 ± 1.41 (n=2)"
    assert cells(text, "CIFAR-10", "W-MSE 4 (whitening=batch_norm)")[4] == "60.00 (n=1)"


def test_setting_labels_are_short_and_their_details_complete(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path, epochs=10, w_iter=1, momentum=0.5),
        make_run(tmp_path, epochs=20, w_iter=2, momentum=0.6),
    ]
    part = section(tables(runs, tmp_path / "out"), "CIFAR-10")
    assert part.index("| W-MSE 4 (epochs=20)") < part.index("| W-MSE 4 (epochs=10)")
    assert "- W-MSE 4 (epochs=10): epochs=10, momentum=0.5, w_iter=1" in part


def test_csv_holds_the_numbers_of_the_markdown(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, seed=s, linear=55 + s / 7, knn=50 + s / 3) for s in range(3)]
    runs += [
        make_run(tmp_path, "imagenet100", d=2, epochs=240, differences={}),
        make_run(tmp_path, "cifar10", "random"),
    ]
    out = tmp_path / "out"
    text = tables(runs, out)
    compared = 0
    for table in (1, 2, 3):
        for line in read_csv(out / "tables" / f"table{table}.csv"):
            printed = [
                m
                for m in METRICS
                if m
                in {1: ("linear_top1", "knn5_top1"), 2: ("linear_top1", "linear_top5")}.get(table, ("linear_top1",))
            ]
            if line["metric"] not in printed:
                continue
            section_of = next(s for s in compare(load_runs(runs), load_paper()) if s.title == line["section"])
            label = next(r.label for r in section_of.rows if (r.method, str(r.d or "")) == (line["method"], line["d"]))
            column = 3 + 3 * printed.index(line["metric"])
            paper, ours, difference = cells(text, line["section"], label)[column : column + 3]
            assert paper.rstrip("†‡—") == line["paper"]
            found = re.fullmatch(r"(\S+)(?: ± (\S+))? \(n=(\d+)\)", ours)
            assert (found.groups("") if found else ("", "", "0")) == (line["ours_mean"], line["ours_std"], line["n"])
            assert difference.lstrip("+").rstrip("—") == line["difference"]
            compared += 1
    assert compared > 60


def test_seed_order_and_repeated_paths_change_nothing(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, seed=s, linear=50.0 + s) for s in (0, 1, 2)]
    assert tables(runs, tmp_path / "a") == tables([*reversed(runs), runs[0]], tmp_path / "b")


def test_provenance(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, seed=1), make_run(tmp_path, method="pixels")]
    text = section(tables(runs, tmp_path / "out"), "Provenance")
    records = read_csv(tmp_path / "out/tables/provenance.csv")
    assert [record["run"] for record in records] == sorted(str(run.relative_to(tmp_path)) for run in runs)
    trained = next(record for record in records if "wmse-4" in record["run"])
    for part in (trained["spec_hash"][:12], "0123456789ab-dirty", "AMD \\| EPYC, 2 cores", "cpu, bf16", "2.15.0"):
        assert part in text
    for part in ("0:46:40", "713", "0:00:30", "abababababab"):
        assert part in text
    assert "abab" * 4 not in text


def test_no_runs_gives_the_papers_tables(tmp_path: Path) -> None:
    build_report([], tmp_path)
    assert "No run was given" in (tmp_path / "tables.md").read_text(encoding="utf-8")
    assert (tmp_path / "plots/accuracy.png").read_bytes().startswith(PNG)


# --- damaged results


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


def test_the_committed_results_vouch_for_themselves() -> None:
    found = sorted((ROOT / "results/reference").glob("*/runs/*/*/*"))
    assert len(load_runs(found)) == len(found) == 8


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


# --- plots


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("runs")
    runs = [make_run(root, "cifar10", "wmse", 4, seed, 55 + seed) for seed in range(3)]
    runs += [make_run(root, b, m, 2, 0, 50, 45) for b in ("cifar10", "stl10") for m in ("wmse", "simclr", "byol")]
    runs += [make_run(root, "fashion_mnist", differences=None)]
    return runs + [make_run(root, b, m) for b in ("cifar10", "stl10") for m in ("random", "pixels")]


def test_plots_exist_and_are_deterministic(several: list[Path], tmp_path: Path) -> None:
    build_report(several, tmp_path / "a")
    build_report(list(reversed(several)), tmp_path / "b")
    names = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    figures = ("training", "dynamics", "accuracy", "collapse", "time")
    expected = {f"plots/{name}.{kind}" for name in figures for kind in ("png", "svg")}
    expected |= {"tables.md", "claims.md", *(f"tables/{name}.csv" for name in ("provenance", "claims", *experiments()))}
    assert {str(name) for name in names} == expected
    for name in names:
        content = (tmp_path / "a" / name).read_bytes()
        assert content == (tmp_path / "b" / name).read_bytes(), name
        assert name.suffix != ".png" or content.startswith(PNG)
        assert name.suffix != ".svg" or b"<svg" in content


@pytest.mark.parametrize("loss", ["0.0", "-1.5", "0.9", "1e-9"])
def test_plots_of_extreme_losses_and_unevaluated_epochs(tmp_path: Path, loss: str) -> None:
    run = make_run(tmp_path)
    lines = ["epoch,seconds,loss,knn5_top1,embedding_std,effective_rank", f"1,10,{loss},,,", "2,20,0.9,,0.0,1.0"]
    (run / "history.csv").write_text("\n".join(lines) + "\n")
    write_plots([run], tmp_path / "out")
    assert (tmp_path / "out/plots/training.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize(
    ("benchmark", "seeds", "words"),
    [
        ("fashion_mnist", 1, []),
        ("fashion_mnist", 2, ["ours ± std over seeds"]),
        ("cifar10", 1, ["ours", "paper", "paper, † one copy"]),
    ],
)
def test_accuracies_have_a_legend_where_there_is_something_to_tell_apart(
    tmp_path: Path, benchmark: str, seeds: int, words: list[str]
) -> None:
    write_plots([make_run(tmp_path, benchmark, seed=seed) for seed in range(seeds)], tmp_path / "out")
    _, *legend = (tmp_path / "out/plots/accuracy.svg").read_text(encoding="utf-8").split('<g id="legend_1">')
    assert [word for part in legend for word in re.findall("<!-- (.*) -->", part)] == words


def test_baselines_alone_need_no_history(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, method=method) for method in ("random", "pixels")]
    write_plots(runs, tmp_path / "out")
    assert not (tmp_path / "out/tables.md").exists()
    assert (tmp_path / "out/plots/training.svg").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("loss", "cost", "column 'loss' is missing"),
        ("1.9", "nan", "line 2: column 'loss' is not a finite number"),
        ("180.0", "1e999", "line 4: column 'seconds' is not a finite number: 1e999"),
        ("0.1,", "x,", "line 2: column 'embedding_std' is not a finite number: x"),
        ("1,1,1,60.0", "1,1,1,60.0\0\n1", "history.csv"),
    ],
)
def test_damaged_history_names_file_and_column(tmp_path: Path, old: str, new: str, message: str) -> None:
    run = make_run(tmp_path)
    file = run / "history.csv"
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(DataError, match=message) as caught:
        write_plots([run], tmp_path / "out")
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "cannot be read"), (b"epoch,loss\n", "holds no epoch"), (b"\xff", "cannot be read")]
)
def test_a_history_that_is_no_table(tmp_path: Path, content: bytes, message: str) -> None:
    run = make_run(tmp_path)
    (run / "history.csv").write_bytes(content)
    with pytest.raises(DataError, match=rf"history\.csv: {message}"):
        write_plots([run], tmp_path / "out")


def test_histories_are_read_by_their_heads_and_averaged_by_epoch(tmp_path: Path) -> None:
    from wmse.report.plots import curves_of

    head = "loss,seconds,epoch,extra,knn5_top1,embedding_std,effective_rank"
    texts = ["2.0,10,1,x,,1,2", "1.0,20,2,x,40,1,2"], ["4.0,12,1,x,,1,2", "2.0,24,2,x,43,1,2", "1.0,36,3,x,nan,1,2"]
    runs = [make_run(tmp_path, seed=seed) for seed in range(2)]
    for run, lines in zip(runs, texts, strict=True):
        (run / "history.csv").write_text("\n".join([head, *lines]) + "\n")
    sections = [section for section in compare(load_runs(runs), load_paper()) if section.main]
    (curve,) = curves_of(sections)["cifar10"]
    assert curve.mean["loss"].to_dict() == {1: 3.0, 2: 1.5, 3: 1.0}
    assert curve.mean["knn5_top1"].dropna().to_dict() == {2: 41.5}
    assert curve.std["seconds"].to_dict() == pytest.approx({1: 2**0.5, 2: 8**0.5, 3: 0})


def test_tables_need_neither_torch_nor_matplotlib() -> None:
    check = "import sys, wmse.report; print([m for m in ('torch', 'matplotlib') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_command_line_loads_pandas_for_the_report_alone() -> None:
    check = "import sys; from wmse.cli import main; main(['runs', '--preset', 'quick']); print('pandas' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


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


# --- the figure of the rules

GRAPH = """digraph snakemake_dag {
    0[label = "all", color = "0.1 0.6 0.85"];
    1[label = "tables", color = "0.1 0.6 0.85"];
    2[label = "evaluate", color = "0.1 0.6 0.85"];
    3[label = "dag", color = "0.1 0.6 0.85"];
    1 -> 0
    2 -> 0
    2 -> 1
    3 -> 0
}"""


def test_rules_stand_after_what_they_need() -> None:
    needs = parse_dot(GRAPH)
    assert list(needs) == ["all", "tables", "evaluate", "dag"]
    assert needs == {"all": {"tables", "evaluate", "dag"}, "tables": {"evaluate"}, "evaluate": set(), "dag": set()}
    assert layers(needs) == {"evaluate": 0, "tables": 1, "dag": 1, "all": 2}
    assert direct(needs) == {**needs, "all": {"tables", "dag"}}


@pytest.mark.parametrize("arrow", ["0 -> 2", "0 -> 0", "3 -> 9"])
def test_a_circle_or_an_arrow_to_no_rule_is_no_workflow(arrow: str) -> None:
    with pytest.raises(DataError, match="no workflow's graph"):
        parse_dot(GRAPH.replace("3 -> 0", f"3 -> 0\n{arrow}"))


def test_the_figure_of_the_rules_names_them_with_their_jobs(tmp_path: Path) -> None:
    write_dag(GRAPH, {"evaluate": 28}, tmp_path)
    assert (tmp_path / "plots/dag.png").read_bytes().startswith(PNG)
    with pytest.raises(DataError, match="no rule in the input"):
        write_dag("Traceback ...", {}, tmp_path)
