"""The figures, and the histories that they are drawn from."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from builders.results import PNG, make_run
from wmse.config import experiments
from wmse.errors import DataError
from wmse.report import build_report, write_plots
from wmse.report.compare import compare
from wmse.report.paper import load_paper
from wmse.report.results import load_runs


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("runs")
    runs = [make_run(root, "cifar10", "wmse", 4, seed, 55 + seed) for seed in range(3)]
    runs += [make_run(root, b, m, 2, 0, 50, 45) for b in ("cifar10", "stl10") for m in ("wmse", "simclr", "byol")]
    runs += [make_run(root, "fashion_mnist", differences=None)]
    return runs + [make_run(root, b, m) for b in ("cifar10", "stl10") for m in ("random", "pixels")]


CLAIMS = ("claims", "claims-reduced")


def test_plots_exist_and_are_deterministic(several: list[Path], tmp_path: Path) -> None:
    build_report(several, tmp_path / "a")
    build_report(list(reversed(several)), tmp_path / "b")
    names = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    figures = ("training", "dynamics", "accuracy", "collapse", "time", "map")
    expected = {f"plots/{name}.{kind}" for name in figures for kind in ("png", "svg")}
    tables = (f"tables/{name}.csv" for name in ("provenance", *CLAIMS, *experiments()))
    expected |= {"tables.md", "claims.md", "report.html", *tables}
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
