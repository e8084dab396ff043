"""The claims at reduced scale: intervals beside those of scipy, the outcomes, which runs count, and the page."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml
from scipy import stats

from builders.results import edit, make_run
from wmse.config import load_project
from wmse.errors import DataError
from wmse.report import write_claims
from wmse.report.measures import knn_after
from wmse.report.reduced import (
    NO_RUNS,
    REDUCED_FILE,
    REFUTED,
    SUPPORTED,
    UNASKED,
    UNDECIDED,
    Answer,
    describe,
    interval,
    judge_reduced,
    load_criteria,
    summarize,
)
from wmse.report.results import load_run, load_runs

CRITERIA = load_criteria()
SPECS = {(spec.label, spec.seed): spec for spec in CRITERIA.specs}


def small_runs(root: Path, label: str, values: list[float], **changes: Any) -> list[Path]:
    """Runs of a cell of the preset, one per value of both accuracies."""
    runs = []
    for seed, value in enumerate(values):
        values_of = {**SPECS[label, min(seed, 2)].compact(), "seed": seed, **changes}
        runs.append(make_run(root, linear=value, knn=value, **values_of))
    return runs


def answer(runs: list[Path], claim: int, asks: str) -> Answer:
    (found,) = [
        found
        for found in judge_reduced(CRITERIA, load_runs(runs))
        if (found.question.claim, found.question.asks) == (claim, asks)
    ]
    return found


@pytest.mark.parametrize(("a", "b"), [([50.0, 51.0, 53.5], [48.0, 48.1, 49.0, 52.0]), ([1.0, 2.0], [7.0, 7.5])])
def test_the_interval_of_a_difference_is_that_of_welch_test(a: list[float], b: list[float]) -> None:
    found, half = interval(a, b, 0.9)
    expected = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.9)
    assert (found - half, found + half) == pytest.approx((expected.low, expected.high))


def test_the_interval_of_a_mean_is_that_of_the_t_test() -> None:
    found, half = interval([0.8, 0.9, 0.7], None, 0.95)
    expected = stats.ttest_1samp([0.8, 0.9, 0.7], 0).confidence_interval(0.95)
    assert (found - half, found + half) == pytest.approx((expected.low, expected.high))
    assert interval([0.5, 0.5, 0.5], None, 0.95) == (0.5, 0.0)


@pytest.mark.parametrize(
    ("ours", "rival", "expected"),
    [
        ([50.0, 50.1, 50.2], [48.0, 48.1, 48.2], SUPPORTED),
        ([48.0, 48.1, 48.2], [50.0, 50.1, 50.2], REFUTED),
        ([50.0, 50.1, 50.2], [50.0, 50.1, 50.2], UNDECIDED),  # the interval holds the bound
        ([49.0, 52.0, 55.0], [48.0, 48.1, 48.2], UNDECIDED),  # a large difference, but so is its spread
        ([50.0, 50.1], [40.0, 40.1, 40.2], UNDECIDED),  # two seeds
        ([50.0, 50.1, 50.2], [], UNDECIDED),
    ],
)
def test_a_difference_counts_only_with_its_whole_interval(
    tmp_path: Path, ours: list[float], rival: list[float], expected: str
) -> None:
    found = answer([*small_runs(tmp_path, "wmse-4", ours), *small_runs(tmp_path, "wmse-2", rival)], 3, "equal epochs")
    assert found.verdict == expected
    assert {effect.verdict for effect in found.effects} == {expected}
    few = min(len(ours), len(rival)) < 3
    assert all(("of 3 seeds" in effect.reason) == few == (effect.estimate is None) for effect in found.effects)


def test_one_failed_check_refutes_and_an_undecided_one_withholds(tmp_path: Path) -> None:
    two = small_runs(tmp_path, "wmse-2", [48.0, 48.1, 48.2])
    four = small_runs(tmp_path, "wmse-4", [50.0, 50.1, 50.2])
    edit(four[0], "metrics.knn5_top1", 40.0)
    found = answer([*two, *four], 3, "equal epochs")
    assert [effect.verdict for effect in found.effects] == [SUPPORTED, UNDECIDED]
    assert found.verdict == UNDECIDED
    for run in four:
        edit(run, "metrics.knn5_top1", 40.0)
    assert answer([*two, *four], 3, "equal epochs").verdict == REFUTED


@pytest.mark.parametrize(("margin", "expected"), [(0.0, SUPPORTED), (0.9, SUPPORTED), (1.1, REFUTED)])
def test_not_worse_has_a_margin_of_a_point(tmp_path: Path, margin: float, expected: str) -> None:
    plain = [60.0, 60.0, 60.0]
    runs = small_runs(tmp_path, "simclr@short", plain)
    runs += small_runs(tmp_path, "simclr@short-whitened", [value + margin for value in plain])
    assert answer(runs, 5, "equal epochs").verdict == expected


@pytest.mark.parametrize(
    ("spread", "collapsed", "expected"),
    [(0.8, 0.02, SUPPORTED), (0.8, 0.2, REFUTED), (0.4, 0.02, REFUTED)],
)
def test_collapse_is_judged_by_bounds_on_the_mean(
    tmp_path: Path, spread: float, collapsed: float, expected: str
) -> None:
    good = small_runs(tmp_path, "wmse-2", [50.0, 50.1, 50.2])
    broken = small_runs(tmp_path, "wmse-2@no-whitening", [30.0, 30.1, 30.2])
    for runs, value in ((good, spread), (broken, collapsed)):
        for run in runs:
            edit(run, "pretrain.embedding_std", value)
    random = small_runs(tmp_path, "random", [30.0, 30.1, 30.2])
    assert answer([*good, *broken, *random], 1, "equal epochs").verdict == expected


@pytest.mark.parametrize("change", [{"epochs": 5}, {"width": 16}, {"view_size": 32}, {"probe_epochs": 500}])
def test_runs_at_another_scale_do_not_count(tmp_path: Path, change: dict[str, Any]) -> None:
    runs = small_runs(tmp_path, "wmse-4", [50.0, 50.1, 50.2], **change)
    runs += small_runs(tmp_path, "wmse-2", [48.0, 48.1, 48.2], **change)
    assert answer(runs, 3, "equal epochs").verdict == NO_RUNS


def test_further_seeds_count(tmp_path: Path) -> None:
    runs = small_runs(tmp_path, "wmse-4", [50.0, 50.1, 50.2, 50.3])
    runs += small_runs(tmp_path, "wmse-2", [48.0, 48.1, 48.2])
    assert [side.n for side in answer(runs, 3, "equal epochs").effects[0].sides] == [4, 3]


def write_history(run: Path, seconds: list[float], knn: list[float]) -> None:
    rows = [f"{i},{s},1,{k},1,1" for i, (s, k) in enumerate(zip(seconds, knn, strict=True), start=1)]
    (run / "history.csv").write_text("\n".join(["epoch,seconds,loss,knn5_top1,embedding_std,effective_rank", *rows]))


def test_equal_time_is_read_between_evaluations_and_equal_epochs_are_not(tmp_path: Path) -> None:
    """BYOL leads after every epoch, but takes twice as long: in W-MSE's whole time it does one."""
    ours = small_runs(tmp_path, "wmse-2", [50.0] * 3)
    rival = small_runs(tmp_path, "byol", [50.0] * 3)
    for i, run in enumerate(ours):
        write_history(run, [20, 40], [30 + i / 10, 50 + i / 10])
    for i, run in enumerate(rival):
        write_history(run, [40, 80], [33 + i / 10, 53 + i / 10])
    runs = [*ours, *rival]
    assert answer(runs, 4, "equal epochs").verdict == REFUTED
    found = answer(runs, 4, "equal time")
    assert found.verdict == SUPPORTED
    assert [round(side.mean, 6) for side in found.effects[0].sides] == [40.1, 33.1]
    after_all = answer(runs, 2, "equal time").effects[1]  # of W-MSE's 40 seconds
    assert [round(side.mean, 6) for side in after_all.sides] == [50.1, 33.1]
    assert [knn_after(load_run(ours[0]), t) for t in (0, 30, 99)] == [30, 40, 50]


def test_questions_keep_equal_what_they_say() -> None:
    asked = set()
    for question in CRITERIA.questions:
        for check in question.checks:
            if "better" not in check or check["than"] == "random":
                continue
            left, right = (SPECS[check[key], 0] for key in ("better", "than"))
            asked.add(question.asks)
            if question.asks == "equal epochs":
                assert left.epochs == right.epochs, check
            if question.asks == "equal views":
                assert left.epochs * left.d == right.epochs * right.d, check
            assert ("time" in check) == (question.asks == "equal time"), check
            if {"at", "time"} & set(check):  # there is an evaluation after every epoch
                assert all(spec.evaluation_due(epoch) for spec in (left, right) for epoch in range(1, spec.epochs + 1))
    assert asked == {"equal epochs", "equal views", "equal time"}
    assert {question.claim for question in CRITERIA.questions} == set(range(1, 8))


def test_the_preset_trains_every_cell_once_and_in_every_seed() -> None:
    specs = load_project({"preset": CRITERIA.preset}).runs
    assert len({spec.run for spec in specs}) == len(specs)
    for label in {spec.label for spec in specs} - {"pixels"}:
        assert len([spec for spec in specs if spec.label == label]) >= CRITERIA.seeds, label
    steps = {spec.epochs * (50_000 // spec.batch_size) for spec in specs if spec.label in ("wmse-2", "simclr", "byol")}
    assert len(steps) == 1
    assert f"width {specs[0].width}, {specs[0].epochs} epochs" in CRITERIA.scale


def test_the_page_shows_the_criteria_that_the_code_judges(tmp_path: Path) -> None:
    """Another bound in the file changes verdict and page together."""
    runs = load_runs(
        small_runs(tmp_path, "wmse-4", [50.0, 50.1, 50.2]) + small_runs(tmp_path, "wmse-2", [48.0, 48.1, 48.2])
    )
    strict = next(q for q in CRITERIA.questions if (q.claim, q.asks) == (3, "equal epochs"))
    strict = dataclasses.replace(strict, checks=[{**strict.checks[0], "margin": -3.0}])
    for question, bound, verdict in ((None, "at least 0", SUPPORTED), (strict, "at least 3", REFUTED)):
        criteria = dataclasses.replace(CRITERIA, questions=(question,) if question else CRITERIA.questions)
        answers = [a for a in judge_reduced(criteria, runs) if a.question.claim == 3][:1]
        text = describe(criteria, answers)
        assert f"Equal epochs: **{verdict}**" in text
        assert f"| {bound} " in text
        assert summarize(answers) == f"equal epochs: **{verdict}**"


def test_both_verdicts_stand_side_by_side_and_apart(tmp_path: Path) -> None:
    runs = small_runs(tmp_path, "wmse-4", [50.0, 50.1, 50.2]) + small_runs(tmp_path, "wmse-2", [48.0, 48.1, 48.2])
    write_claims(runs, tmp_path / "out")
    text = (tmp_path / "out/claims.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith("| 3 "))
    assert [cell.strip() for cell in row.split("|")][3:-1:2] == [
        "**not tested at this budget**",
        "equal epochs: **supported**; equal views: **undecided**",
    ]
    assert f"At reduced scale ({CRITERIA.scale})" in text.split("| claim")[1].splitlines()[0]
    assert "2.00 [1.77, 2.23]" in text
    seventh = text.split("\n## 7. ")[1]
    assert UNASKED in seventh
    assert "ImageNet" in seventh.split("###")[1]
    with open(tmp_path / "out/tables/claims-reduced.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["outcome"] for row in rows if row["claim"] == "3"] == [SUPPORTED] * 2 + [UNDECIDED] * 2
    assert {row["claim"] for row in rows} == set("1234567")


def changed(**changes: Any) -> str:
    content = yaml.safe_load(REDUCED_FILE.read_text(encoding="utf-8"))
    return yaml.safe_dump({**content, **changes})


def asked(check: dict[str, Any], **changes: Any) -> str:
    return changed(questions=[{"claim": 1, "asks": "equal epochs", "checks": [check], **changes}])


COMPARISON = {"better": "wmse-4", "than": "wmse-2", "figures": ["linear_top1"], "margin": 0.0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "cannot be read"),
        ("[]", "cannot be read"),
        (changed(preset="smal"), "did you mean 'small'"),
        (changed(seeds=1), "seeds must be at least 2"),
        (changed(margin=1), "unexpected keyword argument 'margin'"),
        (asked(COMPARISON, asks="equal hopes"), "question 1: asks must be one of"),
        (asked(COMPARISON, asks="nothing"), "nothing where there are no checks"),
        (asked({**COMPARISON, "time": 1.0}), "only knn5_top1 is measured during"),
        (asked({**COMPARISON, "at": 1.0, "time": 1.0}), "is neither"),
        (asked({**COMPARISON, "figures": ["accuracy"]}), "figure 'accuracy' is not one of"),
        (asked({**COMPARISON, "than": "wmse-8"}), "the preset has no runs of wmse-8"),
    ],
)
def test_bad_criteria_are_refused_with_their_place(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "reduced.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        load_criteria(path)
    assert str(path) in str(caught.value)
