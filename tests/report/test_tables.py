"""The tables: sections, rows, labels and marks, and the same numbers as CSV."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from builders.results import PNG, cells, edit, make_run, read_csv, rows_of, section, tables
from wmse.config import experiments, parse_label
from wmse.report import build_report
from wmse.report.compare import compare
from wmse.report.paper import METRICS, load_paper
from wmse.report.results import load_runs


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


def variant(root: Path, method: str, name: str, d: int = 2, **settings: Any) -> Path:
    """A run of a variant on the benchmark of the quick preset."""
    return make_run(root, "fashion_mnist", method, d, differences=None, variant=name, **settings)


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


def test_a_variant_that_an_experiment_does_not_list_has_a_row_where_it_was_run(tmp_path: Path) -> None:
    listed, other = (variant(tmp_path, "wmse", name) for name in ("w-iter-2", "w-iter-1"))
    title = "Ablation: sub-batch size and iterations (batch slicing), Fashion-MNIST sample"
    rows = rows_of(section(tables([listed, other], tmp_path / "out"), title))
    assert rows[-3:] == ["W-MSE 2, w-iter-1", "Random encoder", "Raw pixels"]
    assert "W-MSE 2, w-iter-1" not in rows_of(section(tables([listed], tmp_path / "listed"), title))


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


def test_every_table_has_both_baselines(tmp_path: Path) -> None:
    text = tables([make_run(tmp_path), variant(tmp_path, "wmse", "no-whitening")], tmp_path / "out")
    parts = [part for part in text.split("\n## ")[1:] if "| method" in part]
    assert len(parts) == 8
    for part in parts:
        assert rows_of(part)[-2:] == ["Random encoder", "Raw pixels"]


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


def test_provenance_says_which_processes_shared_a_run(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for key, value in {"processes": 8, "nodes": 2, "backend": "nccl"}.items():
        edit(run, f"provenance.runtime.{key}", value)
    edit(run, "pretrain.images_per_process", 32)
    text = section(tables([run], tmp_path / "out"), "Provenance")
    assert "2 cores, 8 processes on 2 nodes (nccl) of 32 images each" in text
    (record,) = read_csv(tmp_path / "out/tables/provenance.csv")
    columns = ("processes", "nodes", "backend", "images_per_process")
    assert [record[name] for name in columns] == ["8", "2", "nccl", "32"]


def test_no_runs_gives_the_papers_tables(tmp_path: Path) -> None:
    build_report([], tmp_path)
    assert "No run was given" in (tmp_path / "tables.md").read_text(encoding="utf-8")
    assert (tmp_path / "plots/accuracy.png").read_bytes().startswith(PNG)


def test_tables_need_neither_torch_nor_matplotlib() -> None:
    check = "import sys, wmse.report; print([m for m in ('torch', 'matplotlib') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_command_line_loads_pandas_for_the_report_alone() -> None:
    check = "import sys; from wmse.cli import main; main(['runs', '--preset', 'quick']); print('pandas' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
