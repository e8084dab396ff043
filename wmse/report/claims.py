"""The paper's claims judged by our runs: criteria from `claims.yaml`, verdicts from result files alone.

A check is true, false or, with a reason, open (no runs, not the paper's recipe, too few seeds, too wide a spread).
A claim is supported or not supported only if its checks say so; otherwise it is not tested at this budget.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from wmse.config import parse_label
from wmse.errors import ConfigError, DataError
from wmse.report.compare import benchmark_title, method_label
from wmse.report.measures import FIGURES, knn_at, method_name, value_of
from wmse.report.paper import PaperValue
from wmse.report.reduced import (
    Answer,
    Criteria,
    describe,
    effect_table,
    explain,
    heading,
    judge_reduced,
    load_criteria,
    summarize,
)
from wmse.report.results import BASELINES, Cell, Group, Run, Summary, group_runs
from wmse.report.tables import NONE, markdown_table, show_summary, to_csv

CLAIMS_FILE = Path(__file__).with_name("claims.yaml")
SUPPORTED = "supported"
REFUTED = "not supported"
UNTESTED = "not tested at this budget"
ASIDE = "not a benchmark of the claim"
RULES = ("every", "majority")
BOUNDS = ("at_least", "at_most", "above")


@dataclass(frozen=True)
class Claim:
    """One entry of claims.yaml."""

    claim: str
    criterion: str
    recipe: str
    seeds: int
    rule: str
    checks: Sequence[dict[str, Any]]
    benchmarks: Sequence[str] = ()


@dataclass(frozen=True)
class Outcome:
    """One check on one benchmark; `holds` is None while it is open, for the given reason."""

    benchmark: str
    check: str
    left: str
    right: str
    holds: bool | None
    reason: str = ""
    difference: float | None = None
    runs: tuple[Run, ...] = ()

    @property
    def word(self) -> str:
        return {True: "holds", False: "fails", None: "open"}[self.holds]


@dataclass(frozen=True)
class Verdict:
    """A judged claim."""

    claim: Claim
    verdict: str
    reason: str
    outcomes: tuple[Outcome, ...]


def compose_claims(runs: Sequence[Run], paper: Sequence[PaperValue]) -> dict[str, str]:
    """Text of claims.md and tables/claims.csv by path; writes nothing. Raises DataError."""
    runs = [run for run in runs if run.metrics]  # not those on images without labels
    verdicts = judge(load_claims(), runs, paper)
    criteria = load_criteria()
    answers = judge_reduced(criteria, runs)
    return {
        "claims.md": _claims_page(verdicts, criteria, answers),
        "tables/claims.csv": to_csv(_outcome_table(verdicts)),
        "tables/claims-reduced.csv": to_csv(effect_table(answers)),
    }


def judge(claims: Sequence[Claim], runs: Sequence[Run], paper: Sequence[PaperValue]) -> list[Verdict]:
    """A verdict for every claim."""
    evidence = _Evidence(group_runs(runs), paper)
    return [_combine(claim, [o for check in claim.checks for o in evidence.check(claim, check)]) for claim in claims]


# --- the data file ----------------------------------------------------------------------------------------------------


def load_claims(path: Path = CLAIMS_FILE) -> list[Claim]:
    """Read and check the claims. Raises DataError naming the file, the entry and the key."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise DataError(f"{path}: cannot be read ({' '.join(str(error).split())})") from None
    if not isinstance(content, list):
        raise DataError(f"{path}: must hold a list of claims")
    return [_claim(f"{path}, claim {number}", entry) for number, entry in enumerate(content, start=1)]


def _claim(where: str, entry: Any) -> Claim:
    fields = {field.name: field for field in dataclasses.fields(Claim)}
    if not isinstance(entry, dict):
        raise DataError(f"{where}: must be a mapping")
    needed = [name for name, field in fields.items() if field.default is dataclasses.MISSING and name not in entry]
    unknown = [key for key in entry if key not in fields]
    if needed or unknown:
        raise DataError(f"{where}: {'missing' if needed else 'unknown'} key '{(needed or unknown)[0]}'")
    if entry["rule"] not in RULES or entry["recipe"] not in ("any", "paper"):
        raise DataError(f"{where}: rule must be one of {', '.join(RULES)}, recipe one of any, paper")
    if not isinstance(entry["seeds"], int) or entry["seeds"] < 1 or not isinstance(entry["checks"], list):
        raise DataError(f"{where}: seeds must be a number from 1, checks a list")
    for check in entry["checks"]:
        _validate_check(where, check)
    return Claim(**entry)


def _validate_check(where: str, check: Any) -> None:
    keys = set(check) if isinstance(check, dict) else set()
    bound = {"of", "figure"} <= keys and len(keys & set(BOUNDS)) == 1 and keys <= {"of", "figure", "with", *BOUNDS}
    comparison = {"better", "than", "figures", "margin"} <= keys <= {"better", "than", "figures", "margin", "at"}
    if not bound and not comparison:
        raise DataError(f"{where}: check {check!r} is neither {{of, figure, bound}} nor {{better, than, ...}}")
    for figure in check["figures"] if comparison else [check["figure"]]:
        if figure not in FIGURES:
            raise DataError(f"{where}: figure '{figure}' is not one of {', '.join(FIGURES)}")
    try:
        for label in _labels(check):
            parse_label(label)
    except ConfigError as error:
        raise DataError(f"{where}: {error}") from None


def _labels(check: Mapping[str, Any]) -> list[str]:
    """Every method that a check speaks of."""
    than = check.get("than", [])
    single = [check[key] for key in ("above", "with") if key in check]
    return [*check.get("of", []), *check.get("better", []), *([] if than == "cited" else than), *single]


# --- judging ----------------------------------------------------------------------------------------------------------


class _Evidence:
    """The groups of seeds that there are and the paper's values, and what checks find in them."""

    def __init__(self, cells: Mapping[Cell, list[Group]], paper: Sequence[PaperValue]) -> None:
        self.cells = cells
        self.paper = paper

    def group(self, benchmark: str, label: str) -> Group | None:
        """The runs of a cell: those with the paper's recipe, or else the longest."""
        method, d, variant = parse_label(label)
        found = self.cells.get((benchmark, method, None if method in BASELINES else d, variant))
        return found[0] if found else None

    def check(self, claim: Claim, check: Mapping[str, Any]) -> list[Outcome]:
        labels = _labels(check)
        ran = [cell[0] for cell in self.cells if all(self.group(cell[0], label) for label in labels)]
        outcomes: list[Outcome] = []
        for benchmark in dict.fromkeys((*claim.benchmarks, *ran)):
            if "of" in check:
                found = [self._bound(claim, check, benchmark, label) for label in check["of"]]
            else:
                found = [self._comparison(claim, check, benchmark, figure) for figure in check["figures"]]
            if claim.benchmarks and benchmark not in claim.benchmarks:  # shown, but decides nothing
                found = [replace(outcome, holds=None, reason=ASIDE) for outcome in found]
            outcomes += found
        return outcomes

    def _obstacle(self, claim: Claim, groups: Sequence[Group]) -> str:
        """Why runs may not decide a claim, or nothing."""
        trained = [group for group in groups if group.first.trained]
        if claim.recipe == "paper" and any(group.first.differences != {} for group in trained):
            return "not the paper's recipe"
        fewest = min(len(group.runs) for group in trained)
        return f"{fewest} of {claim.seeds} seeds" if fewest < claim.seeds else ""

    def _bound(self, claim: Claim, check: Mapping[str, Any], benchmark: str, label: str) -> Outcome:
        """Whether every seed of a method keeps a bound: a number, or the mean of another method."""
        figure = check["figure"]
        group = self.group(benchmark, label)
        rival = self.group(benchmark, check["above"]) if "above" in check else None
        if group is None or ("above" in check and rival is None):
            return Outcome(benchmark, FIGURES[figure], method_name(label), "", None, "no runs")
        values = [value_of(run, figure) for run in group.runs]
        if rival:
            mean = Summary.of([value_of(run, figure) for run in rival.runs]).mean
            holds, bound = min(values) > mean, f"above {method_name(check['above'])}, {mean:.2f}"
        elif "at_least" in check:
            holds, bound = min(values) >= check["at_least"], f"at least {check['at_least']:g}"
        else:
            holds, bound = max(values) <= check["at_most"], f"at most {check['at_most']:g}"
        obstacle = self._obstacle(claim, [group])
        left = f"{method_name(label)}: {', '.join(f'{value:.2f}' for value in values)}"
        runs = (*group.runs, *(rival.runs if rival else ()))
        return Outcome(benchmark, FIGURES[figure], left, bound, None if obstacle else holds, obstacle, runs=runs)

    def _comparison(self, claim: Claim, check: Mapping[str, Any], benchmark: str, figure: str) -> Outcome:
        share = check.get("at")
        margin = float(check["margin"])
        what = FIGURES[figure] + (f" after {share:.0%} of the epochs" if share else "")
        left = self._best(benchmark, check["better"], figure, share)
        cited = check["than"] == "cited"
        right = self._cited(benchmark, figure, left) if cited else self._best(benchmark, check["than"], figure, share)
        if left is None or right is None:
            reason = "no cited value at this number of epochs"
            if left is None or not cited:
                wanted = check["better"] if left is None else check["than"]
                reason = f"no runs of {' or '.join(method_name(label) for label in wanted)}"
            return Outcome(benchmark, what, str(left or ""), "", None, reason)
        groups = [side.group for side in (left, right) if side.group]
        difference = left.summary.mean - right.summary.mean
        error = math.sqrt(sum((s.summary.std or 0.0) ** 2 / s.summary.n for s in (left, right)))
        holds = None
        reason = self._obstacle(claim, groups)
        if not reason:
            if difference - 2 * error >= -margin:
                holds = True
            elif difference + 2 * error < -margin:
                holds = False
            else:
                reason = "the spread over seeds is too wide"
        runs = tuple(run for group in groups for run in group.runs)
        what += f", difference at least {0 - margin:g}"
        return Outcome(benchmark, what, str(left), str(right), holds, reason, difference, runs)

    def _best(self, benchmark: str, labels: Sequence[str], figure: str, share: float | None) -> _Side | None:
        """The method with the highest mean; None unless all of them have runs."""
        sides = []
        for label in labels:
            group = self.group(benchmark, label)
            if group is None:
                return None
            values = [knn_at(run, share) if share else value_of(run, figure) for run in group.runs]
            sides.append(_Side(method_name(label), group, Summary.of(values)))
        return max(sides, key=lambda side: side.summary.mean)

    def _cited(self, benchmark: str, figure: str, left: _Side | None) -> _Side | None:
        """The best value that the paper cites from others at the same number of epochs."""
        epochs = left.group.first.epochs if left else None
        values = [v for v in self.paper if (v.benchmark, v.metric, v.epochs) == (benchmark, figure, epochs)]
        others = [v for v in values if v.value is not None and v.method != "wmse"]
        if not others:
            return None
        best = max(others, key=lambda v: v.value)
        return _Side(f"{method_label(best.method, best.d)}, cited", None, Summary(best.value, None, 1))


@dataclass(frozen=True)
class _Side:
    """One side of a comparison."""

    label: str
    group: Group | None
    summary: Summary

    def __str__(self) -> str:
        figures = show_summary(self.summary) if self.group else f"{self.summary.mean:g}"
        return f"{self.label}: {figures}"


def _combine(claim: Claim, outcomes: Sequence[Outcome]) -> Verdict:
    counted = [outcome for outcome in outcomes if outcome.reason != ASIDE]
    held = sum(outcome.holds is True for outcome in counted)
    failed = sum(outcome.holds is False for outcome in counted)
    total = len(counted)
    if claim.rule == "every":
        supported, refuted = held == total, failed > 0
    else:
        supported, refuted = 2 * held > total, 2 * failed >= total
    verdict = UNTESTED
    if total and (supported or refuted):
        verdict = SUPPORTED if supported else REFUTED
    reasons = dict.fromkeys(outcome.reason for outcome in counted if outcome.reason)
    reason = f"{held} of {total} checks hold, {failed} fail" if total else "no runs"
    if verdict == UNTESTED and reasons:
        reason += "; open: " + ", ".join(reasons)
    return Verdict(claim, verdict, reason, tuple(outcomes))


# --- output -----------------------------------------------------------------------------------------------------------

INTRODUCTION = """\
Criteria were fixed in a data file before the runs; the verdicts come from result files alone. A comparison counts only
where the difference of the means leaves its threshold by two standard errors over the seeds. "not tested at this
budget" means that no verdict is possible with these runs: they are missing, too few, too different from each other, or
reduced where only the paper's recipe counts.
"""


def _claims_page(verdicts: Sequence[Verdict], criteria: Criteria, answers: Sequence[Answer]) -> str:
    head = ["", "claim", "verdict", "why", heading(criteria)]
    parts = ["# The paper's claims, judged by our runs\n", INTRODUCTION, explain(criteria)]
    body, sections = [], []
    for number, verdict in enumerate(verdicts, start=1):
        reduced = [answer for answer in answers if answer.question.claim == number]
        budget = " (at any budget)" if verdict.claim.recipe == "any" and verdict.verdict != UNTESTED else ""
        words = f"**{verdict.verdict}**{budget}"
        body.append([str(number), verdict.claim.claim, words, verdict.reason, summarize(reduced)])
        sections += [_section(number, verdict), describe(criteria, reduced)]
    return "\n".join([*parts, markdown_table(head, body, left=5), *sections])


def _section(number: int, verdict: Verdict) -> str:
    claim = verdict.claim
    scope = "the paper's recipe only" if claim.recipe == "paper" else "any budget, as it is about a mechanism"
    seeds = "1 seed" if claim.seeds == 1 else f"{claim.seeds} seeds"
    parts = [
        f"## {number}. {claim.claim}\n",
        f"**{verdict.verdict}**: {verdict.reason}.\n",
        f"Criterion: {claim.criterion} Needs at least {seeds}; runs that count: {scope}; rule: {claim.rule}.\n",
    ]
    if verdict.outcomes:
        head = ["benchmark", "check", "figures", "difference", "outcome"]
        parts.append(markdown_table(head, [_cells(outcome) for outcome in verdict.outcomes], left=5))
    runs = sorted({run.name for outcome in verdict.outcomes for run in outcome.runs})
    if runs:
        parts.append("Runs: " + ", ".join(f"`{run}`" for run in runs) + "\n")
    return "\n".join(parts)


def _cells(outcome: Outcome) -> list[str]:
    return [
        benchmark_title(outcome.benchmark),
        outcome.check,
        "; ".join(text for text in (outcome.left, outcome.right) if text) or NONE,
        NONE if outcome.difference is None else f"{outcome.difference:+.2f}",
        outcome.word + (f" ({outcome.reason})" if outcome.reason else ""),
    ]


def _outcome_table(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """A row per outcome; a claim without any has one row, too."""
    nothing = Outcome("", "", "", "", None, "no runs")
    records = [
        {
            "claim": number,
            "verdict": verdict.verdict,
            "benchmark": outcome.benchmark,
            "check": outcome.check,
            "left": outcome.left,
            "right": outcome.right,
            "difference": "" if outcome.difference is None else f"{outcome.difference:.2f}",
            "outcome": outcome.word,
            "reason": outcome.reason,
            "runs": " ".join(run.name for run in outcome.runs),
        }
        for number, verdict in enumerate(verdicts, start=1)
        for outcome in verdict.outcomes or [nothing]
    ]
    return pd.DataFrame(records, dtype=object)
