"""The claims: every kind of check with runs that lead to each verdict, and the data file itself."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import yaml

from builders.results import edit, make_run
from wmse.errors import DataError
from wmse.report import write_claims
from wmse.report.claims import (
    REFUTED,
    SUPPORTED,
    UNTESTED,
    Claim,
    Verdict,
    judge,
    knn_at,
    load_claims,
    value_of,
)
from wmse.report.paper import load_paper
from wmse.report.results import load_run, load_runs

FOUR = ("cifar10", "cifar100", "stl10", "tiny_imagenet")


def verdict(number: int, runs: list[Path]) -> Verdict:
    """The verdict on one of the seven claims."""
    return judge(load_claims()[number - 1 : number], load_runs(runs), load_paper())[0]


def seeds(root: Path, values: list[float], **settings: Any) -> list[Path]:
    """One run per value of both accuracies."""
    return [make_run(root, seed=seed, linear=v, knn=v, **settings) for seed, v in enumerate(values)]


def paper(root: Path, values: list[float], benchmark: str, method: str, d: int, **settings: Any) -> list[Path]:
    """Runs with the paper's recipe."""
    return seeds(root, values, benchmark=benchmark, method=method, d=d, differences={}, epochs=10, **settings)


def test_the_seven_claims_of_the_paper_are_there() -> None:
    claims = load_claims()
    assert len(claims) == 7
    assert [claim.recipe for claim in claims] == ["any", "paper", "paper", "paper", "paper", "paper", "paper"]
    for claim in claims:  # one seed may decide only where no seeds are compared
        compares = any("better" in check and check["than"] != "cited" for check in claim.checks)
        assert claim.seeds >= (2 if compares else 1)


def collapse_runs(root: Path, spread: float = 0.9, collapsed: float = 0.03, random: float = 40.0) -> list[Path]:
    runs = seeds(root, [50.0, 52.0], d=2, embedding=16)
    broken = seeds(root, [30.0, 31.0], d=2, embedding=16, variant="no-whitening")
    edit(runs[1], "pretrain.embedding_std", spread)
    edit(broken[0], "pretrain.embedding_std", 0.02)
    edit(broken[1], "pretrain.embedding_std", collapsed)
    return [*runs, *broken, make_run(root, method="random", knn=random)]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, SUPPORTED),
        ({"spread": 0.5}, SUPPORTED),
        ({"spread": 0.49}, REFUTED),  # one seed is enough
        ({"collapsed": 0.11}, REFUTED),
        ({"random": 50.0}, REFUTED),  # not above
        ({"random": 49.9}, SUPPORTED),
    ],
)
def test_collapse_is_judged_by_every_seed(tmp_path: Path, change: dict[str, float], expected: str) -> None:
    assert verdict(1, collapse_runs(tmp_path, **change)).verdict == expected


def test_runs_on_images_without_labels_are_no_evidence_and_no_obstacle(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, d=d) for d in (2, 4)]
    for run in runs:
        edit(run, "metrics", dict.fromkeys(("linear_top1", "linear_top5", "knn5_top1")))
        edit(run, "evaluation.test_images", 0)
    write_claims(runs, tmp_path / "out")
    assert (tmp_path / "out/claims.md").read_text().count("**not tested at this budget**") == 2 * 7


def test_a_low_effective_rank_is_a_collapse_too(tmp_path: Path) -> None:
    runs = collapse_runs(tmp_path)
    edit(runs[0], "pretrain.effective_rank", 3.9)  # of 16
    assert verdict(1, runs).verdict == REFUTED
    edit(runs[0], "pretrain.effective_rank", 4.0)
    assert verdict(1, runs).verdict == SUPPORTED


def test_without_the_ablation_collapse_is_not_tested(tmp_path: Path) -> None:
    runs = collapse_runs(tmp_path)
    found = verdict(1, [*runs[:2], runs[4]])
    assert (found.verdict, found.reason) == (UNTESTED, "no runs")


def competitive_runs(
    root: Path, ours: list[float], rival: list[float], benchmarks: tuple[str, ...] = FOUR
) -> list[Path]:
    runs = []
    for benchmark in benchmarks:
        for method, d, values in (
            ("wmse", 2, [20.0] * 3),
            ("wmse", 4, ours),
            ("simclr", 2, rival),
            ("byol", 2, [10.0] * 3),
        ):
            runs += paper(root, values, benchmark, method, d)
    return runs


@pytest.mark.parametrize(
    ("ours", "rival", "expected"),
    [
        ([90.0, 90.1, 90.2], [90.5, 90.6, 90.7], SUPPORTED),  # half a point below, the margin is one
        ([88.0, 88.1, 88.2], [90.5, 90.6, 90.7], REFUTED),
        ([87.0, 90.0, 93.0], [90.5, 90.6, 90.7], UNTESTED),  # the spread hides it
        ([90.0, 90.1], [90.5, 90.6, 90.7], UNTESTED),  # two seeds
    ],
)
def test_competitive_means_within_a_point_of_the_better_rival(
    tmp_path: Path, ours: list[float], rival: list[float], expected: str
) -> None:
    found = verdict(2, competitive_runs(tmp_path, ours, rival))
    assert found.verdict == expected
    assert ("too wide" in found.reason) == (len(ours) == 3 and expected == UNTESTED)
    assert ("2 of 3 seeds" in found.reason) == (len(ours) == 2)
    assert {(o.left.split(":")[0], o.right.split(":")[0]) for o in found.outcomes} == {("W-MSE 4", "SimCLR")}


def test_every_benchmark_of_the_claim_is_needed_but_one_refutes(tmp_path: Path) -> None:
    good, bad = [90.0, 90.1, 90.2], [80.0, 80.1, 80.2]
    three = competitive_runs(tmp_path / "a", good, good, FOUR[:3])
    found = verdict(2, three)
    assert (found.verdict, "no runs" in found.reason) == (UNTESTED, True)
    assert found.reason.startswith("6 of 8 checks hold, 0 fail")
    assert verdict(2, [*three, *competitive_runs(tmp_path / "b", bad, good, FOUR[3:])]).verdict == REFUTED


def test_reduced_runs_show_figures_but_decide_nothing(tmp_path: Path) -> None:
    runs = competitive_runs(tmp_path, [90.0, 90.1, 90.2], [80.0, 80.1, 80.2])
    for run in runs:
        edit(run, "paper_differences", {"epochs": {"run": 10, "paper": 1000}})
    found = verdict(2, runs)
    assert (found.verdict, found.reason) == (UNTESTED, "0 of 8 checks hold, 0 fail; open: not the paper's recipe")
    assert found.outcomes[0].difference == pytest.approx(10)
    assert "90.10 ± 0.10 (n=3)" in found.outcomes[0].left


def test_other_benchmarks_are_shown_aside(tmp_path: Path) -> None:
    runs = competitive_runs(tmp_path, [90.0, 90.1, 90.2], [90.0, 90.1, 90.2], (*FOUR, "fashion_mnist"))
    found = verdict(2, runs)
    assert found.verdict == SUPPORTED
    aside = [o for o in found.outcomes if o.benchmark == "fashion_mnist"]
    assert [o.holds for o in aside] == [None, None]
    assert found.reason == "8 of 8 checks hold, 0 fail"


@pytest.mark.parametrize(("better", "expected"), [(4, SUPPORTED), (3, SUPPORTED), (2, REFUTED), (0, REFUTED)])
def test_four_positives_must_win_more_than_half(tmp_path: Path, better: int, expected: str) -> None:
    runs = []
    for i, benchmark in enumerate(FOUR):
        runs += paper(tmp_path, [60.0, 60.1, 60.2], benchmark, "wmse", 2)
        runs += paper(tmp_path, [61.0, 61.1, 61.2] if i < better else [59.0, 59.1, 59.2], benchmark, "wmse", 4)
    assert verdict(3, runs).verdict == expected


@pytest.mark.parametrize(
    ("whitened", "expected"), [([60.0, 60.2], SUPPORTED), ([62.0, 62.2], REFUTED), ([58.0, 63.0], UNTESTED)]
)
def test_whitening_must_not_help_the_contrastive_loss(tmp_path: Path, whitened: list[float], expected: str) -> None:
    runs = seeds(tmp_path, [60.0, 60.2], method="simclr", d=2, variant="short", differences={})
    runs += seeds(tmp_path, whitened, method="simclr", d=2, variant="short-whitened", differences={})
    assert verdict(5, runs).verdict == expected
    one = verdict(5, [runs[0], *runs[2:]])
    assert (one.verdict, "1 of 2 seeds" in one.reason) == (UNTESTED, True)


def test_slicing_compares_with_the_large_sub_batch_and_with_more_iterations(tmp_path: Path) -> None:
    base = seeds(tmp_path, [60.0, 60.1], d=2, differences={})
    large = seeds(tmp_path, [58.0, 58.1], d=2, variant="w-size-x4", differences={})
    more = seeds(tmp_path, [61.0, 61.1], d=2, variant="w-iter-4", differences={})
    assert verdict(6, [*base, *large, *more]).verdict == SUPPORTED
    worse = seeds(tmp_path / "worse", [55.0, 55.1], d=2, variant="w-iter-4", differences={})
    assert verdict(6, [*base, *large, *worse]).verdict == REFUTED


def warm_up_runs(root: Path, ours: list[float], byol: list[float]) -> list[Path]:
    runs = paper(root, ours, "stl10", "wmse", 2) + paper(root, byol, "stl10", "byol", 2)
    for run, value in zip(runs, [*ours, *byol], strict=True):
        lines = ["epoch,seconds,loss,knn5_top1,embedding_std,effective_rank"]
        lines += [
            f"{epoch},1,1.0,{value if epoch == 2 else 99 - value if epoch % 2 == 0 else ''},1,1"
            for epoch in range(1, 11)
        ]
        (run / "history.csv").write_text("\n".join(lines) + "\n")
    return runs


def test_warm_up_is_read_at_a_tenth_of_the_epochs(tmp_path: Path) -> None:
    """Epoch 1 of 10 has no evaluation, epoch 2 is the nearest that has one."""
    fast, slow = [40.0, 40.1, 40.2], [30.0, 30.1, 30.2]
    runs = warm_up_runs(tmp_path / "a", fast, slow)
    assert knn_at(load_run(runs[0]), 0.1) == 40.0
    assert verdict(4, runs).verdict == SUPPORTED
    assert verdict(4, warm_up_runs(tmp_path / "b", slow, fast)).verdict == REFUTED
    (runs[0] / "history.csv").unlink()
    with pytest.raises(DataError, match=r"history\.csv"):
        verdict(4, runs)


@pytest.mark.parametrize(
    ("short", "long", "expected"),
    [(69.0, 72.5, SUPPORTED), (68.0, 74.0, REFUTED), (69.0, 72.0, REFUTED), (68.1, 72.2, SUPPORTED)],
)
def test_imagenet_is_compared_with_the_cited_values(tmp_path: Path, short: float, long: float, expected: str) -> None:
    """The best cited: SimSiam's 68.1 at 100 epochs, BYOL's 73.2 at 400."""
    common = {"benchmark": "imagenet", "differences": {}}
    runs = [make_run(tmp_path, linear=short, epochs=100, **common)]
    runs.append(make_run(tmp_path, linear=long, epochs=400, variant="400-epochs", **common))
    found = verdict(7, runs)
    assert found.verdict == expected
    assert [o.right for o in found.outcomes] == ["SimSiam, cited: 68.1", "BYOL, cited: 73.2"]
    assert verdict(7, runs[:1]).verdict in (UNTESTED, REFUTED)


def test_the_page_names_verdict_criterion_figures_and_runs(tmp_path: Path) -> None:
    runs = collapse_runs(tmp_path)
    write_claims(runs, tmp_path / "out")
    text = (tmp_path / "out/claims.md").read_text()
    assert "| **supported** (at any budget)" in text.split("\n## ")[0]
    first = text.split("\n## ")[1]
    assert "**supported**: 4 of 4 checks hold" in first
    assert "Criterion: Every seed of W-MSE 2 ends" in first
    assert "0.90, 0.90; at least 0.5" in first
    assert "no-whitening" in first.split("Runs: ")[1] or len(first.split("Runs: ")[1].split(",")) == 5
    assert text.count("**not tested at this budget**") == 2 * 6
    with open(tmp_path / "out/tables/claims.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["outcome"] for row in rows if row["claim"] == "1"] == ["holds"] * 4
    assert {row["claim"] for row in rows} == set("1234567")


def test_without_runs_nothing_is_tested(tmp_path: Path) -> None:
    assert {v.verdict for v in judge(load_claims(), [], load_paper())} == {UNTESTED}


def entry(**changes: Any) -> str:
    """A data file with one claim."""
    good = {"claim": "c", "criterion": "k", "recipe": "any", "seeds": 1, "rule": "every", "checks": []}
    return yaml.safe_dump([{**good, **changes}])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "cannot be read"),
        ("a: 1", "must hold a list"),
        ("- 3", "claim 1: must be a mapping"),
        ("- {claim: c}", "missing key 'criterion'"),
        (entry(x=1), "unknown key 'x'"),
        (entry(recipe="some"), "recipe one of any, paper"),
        (entry(seeds=0), "seeds must be"),
        (entry(checks=[{"of": ["wmse-2"]}]), "is neither"),
        (entry(checks=[{"of": ["wmse-2"], "figure": "f", "above": "simclr"}]), "figure 'f' is not one of"),
        (
            entry(checks=[{"better": ["mwse"], "than": ["byol"], "figures": ["knn5_top1"], "margin": 1}]),
            "did you mean 'wmse'",
        ),
    ],
)
def test_a_bad_data_file_is_refused_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "claims.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        load_claims(path)
    assert str(path) in str(caught.value)


def test_a_figure_that_a_run_lacks_is_named(tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path, method="random"))
    with pytest.raises(DataError, match=r"result\.json: has no 'embedding_std'"):
        value_of(run, "embedding_std")
    assert isinstance(load_claims()[0], Claim)
