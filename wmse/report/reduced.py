"""The paper's claims at a reduced scale: what the runs of one preset say, by the criteria of `reduced.yaml` alone.

Apart from `claims`, so that no verdict on the paper's recipe can come from reduced runs, nor the other way round.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from scipy.special import stdtrit

from wmse.config import RunSpec, load_project
from wmse.errors import ConfigError, DataError
from wmse.report.compare import benchmark_title
from wmse.report.measures import FIGURES, knn_after, knn_at, method_name, training_seconds, value_of
from wmse.report.results import Run, Summary
from wmse.report.tables import NONE, markdown_table, show_summary

REDUCED_FILE = Path(__file__).with_name("reduced.yaml")
SUPPORTED, REFUTED, UNDECIDED, UNASKED, NO_RUNS = "supported", "not supported", "undecided", "not asked", "no runs"
ASKS = ("equal epochs", "equal views", "equal time", "nothing")
BOUNDS = ("at_least", "at_most")


@dataclass(frozen=True)
class Question:
    """One entry of reduced.yaml: what is asked about a claim, counted from 1."""

    claim: int
    asks: str
    checks: Sequence[dict[str, Any]] = ()
    note: str = ""


@dataclass(frozen=True)
class Criteria:
    """The content of reduced.yaml."""

    preset: str
    seeds: int
    confidence: float
    questions: tuple[Question, ...]

    @functools.cached_property
    def specs(self) -> tuple[RunSpec, ...]:
        """The runs that count, with the seeds of the preset; other seeds count as well."""
        return load_project({"preset": self.preset}).runs

    @property
    def scale(self) -> str:
        """The scale in words, read from the longest run."""
        spec = max(self.specs, key=lambda spec: spec.epochs)
        name = benchmark_title(spec.benchmark)
        return f"{name} at {spec.view_size} px, width {spec.width}, {spec.epochs} epochs"

    def of(self, runs: Sequence[Run]) -> dict[str, list[Run]]:
        """The runs of exactly these specifications by method label, in the order of their seeds."""
        labels = {_recipe(spec.to_dict()): spec.label for spec in self.specs}
        found: dict[str, list[Run]] = {}
        for run in sorted(runs, key=lambda run: run.seed):
            if label := labels.get(_recipe(run.spec)):
                found.setdefault(label, []).append(run)
        return found


@dataclass(frozen=True)
class Effect:
    """A check with what was found: `half` is half the width of the interval around `estimate`, in units of the figure.

    Without enough runs both are None, and `verdict` is "no runs" or "undecided".
    """

    name: str
    bound: str
    verdict: str
    reason: str = ""
    estimate: float | None = None
    half: float | None = None
    sides: tuple[Summary, ...] = ()
    runs: tuple[Run, ...] = ()


@dataclass(frozen=True)
class Answer:
    """A question with its effects and the verdict that follows from them."""

    question: Question
    effects: tuple[Effect, ...]

    @property
    def verdict(self) -> str:
        found = [effect.verdict for effect in self.effects]
        if not found:
            return UNASKED
        if REFUTED in found:
            return REFUTED
        if all(verdict == SUPPORTED for verdict in found):
            return SUPPORTED
        return NO_RUNS if all(verdict == NO_RUNS for verdict in found) else UNDECIDED


def judge_reduced(criteria: Criteria, runs: Sequence[Run]) -> list[Answer]:
    """An answer to every question. Raises DataError: a run lacks a figure that a check needs."""
    counted = criteria.of(runs)
    return [
        Answer(question, tuple(effect for check in question.checks for effect in _effects(criteria, check, counted)))
        for question in criteria.questions
    ]


def interval(values: Sequence[float], others: Sequence[float] | None, confidence: float) -> tuple[float, float]:
    """The mean of at least two values, minus that of `others` if given, and half the width of its t-interval.

    Of a difference it is Welch's (Biometrika 34, 1947), which lets the variances differ.
    """
    sides = [Summary.of(side) for side in (values, others) if side is not None]
    squares = [side.std**2 / side.n for side in sides]
    estimate = sides[0].mean - (sides[1].mean if len(sides) == 2 else 0.0)
    if not sum(squares):
        return estimate, 0.0
    freedom = sum(squares) ** 2 / sum(square**2 / (side.n - 1) for square, side in zip(squares, sides, strict=True))
    return estimate, float(stdtrit(freedom, 0.5 + confidence / 2)) * math.sqrt(sum(squares))


def _effects(criteria: Criteria, check: Mapping[str, Any], runs: Mapping[str, list[Run]]) -> Iterator[Effect]:
    """The effects of a check, one per figure."""
    labels = [check["of"]] if "of" in check else [check["better"], check["than"]]
    bound, upper = (check["at_most"], True) if "at_most" in check else (check.get("at_least", 0.0), False)
    if "margin" in check:
        bound = 0.0 - check["margin"]
    sides = [runs.get(label, []) for label in labels]
    few = [
        f"{len(side)} of {criteria.seeds} seeds of {method_name(label)}"
        for label, side in zip(labels, sides, strict=True)
        if len(side) < criteria.seeds
    ]
    for figure in check.get("figures") or [check["figure"]]:
        name = f"{' minus '.join(method_name(label) for label in labels)}: {FIGURES[figure]}{_moment(check)}"
        effect = Effect(name, f"at {'most' if upper else 'least'} {bound:g}", UNDECIDED)
        if few:
            verdict = UNDECIDED if any(sides) else NO_RUNS
            yield dataclasses.replace(effect, verdict=verdict, reason=", ".join(few) if any(sides) else "")
            continue
        read = _reader(check, figure, sides)
        values = [[read(run) for run in side] for side in sides]
        estimate, half = interval(values[0], values[1] if len(values) == 2 else None, criteria.confidence)
        yield dataclasses.replace(
            effect,
            verdict=_verdict(estimate, half, bound, upper),
            estimate=estimate,
            half=half,
            sides=tuple(Summary.of(side) for side in values),
            runs=tuple(run for side in sides for run in side),
        )


def _verdict(estimate: float, half: float, bound: float, upper: bool) -> str:
    """Where the interval lies: its ends belong to it, and the bound itself keeps the bound."""
    low, high = estimate - half, estimate + half
    if high <= bound if upper else low >= bound:
        return SUPPORTED
    return REFUTED if (low > bound if upper else high < bound) else UNDECIDED


def _reader(check: Mapping[str, Any], figure: str, sides: Sequence[Sequence[Run]]) -> Callable[[Run], float]:
    """How the figure of a run is read: at its end, at a share of the epochs, or after a time that both sides had."""
    if "at" in check:
        return lambda run: knn_at(run, check["at"])
    if "time" in check:
        shorter = min(Summary.of([training_seconds(run) for run in side]).mean for side in sides)
        return lambda run: knn_after(run, check["time"] * shorter)
    return lambda run: value_of(run, figure)


def _moment(check: Mapping[str, Any]) -> str:
    if "at" in check:
        return f" after {check['at']:.0%} of the epochs"
    return f" after {check['time']:.0%} of the shorter time" if "time" in check else ""


def _recipe(spec: Mapping[str, Any]) -> str:
    """A specification without its seed, to compare."""
    return str(sorted((key, value) for key, value in spec.items() if key != "seed"))


# --- output -----------------------------------------------------------------------------------------------------------


def heading(criteria: Criteria) -> str:
    """The scale, as the heading of everything that holds at this scale only."""
    return f"At reduced scale ({criteria.scale})"


def summarize(answers: Sequence[Answer]) -> str:
    """The verdicts on one claim in a line, each with what is kept equal."""
    words = [
        answer.verdict if answer.verdict in (UNASKED, NO_RUNS) else f"{answer.question.asks}: **{answer.verdict}**"
        for answer in answers
    ]
    return "; ".join(dict.fromkeys(words))


def describe(criteria: Criteria, answers: Sequence[Answer]) -> str:
    """The section on one claim: every question with its criterion, its effects and its runs."""
    parts = [f"### {heading(criteria)}\n"]
    for answer in answers:
        note = f" {answer.question.note}" if answer.question.note else ""
        asks = "" if answer.question.asks == "nothing" else f"{answer.question.asks.capitalize()}: "
        parts.append(f"{asks}**{answer.verdict}**.{note}\n")
        if answer.effects:
            head = ["effect", "criterion", "means", f"estimate, {criteria.confidence:.0%} interval", "outcome"]
            parts.append(markdown_table(head, [_cells(effect) for effect in answer.effects], left=5))
    if runs := sorted({run.name for answer in answers for effect in answer.effects for run in effect.runs}):
        parts.append("Runs: " + ", ".join(f"`{run}`" for run in runs) + "\n")
    return "\n".join(parts)


def explain(criteria: Criteria) -> str:
    """How the verdicts at reduced scale come about."""
    return f"""\
The verdicts **at reduced scale** speak of {criteria.scale}, and of nothing else:
of runs with exactly the specifications of the preset `{criteria.preset}`, by criteria of their own that were fixed
before these runs, too. They never decide a verdict on the paper's recipe. Each says what is kept equal: epochs, views,
or seconds of training. Estimates are means over at least {criteria.seeds} seeds or unpaired differences of them, with
t-intervals (Welch's for a difference; not corrected for their number). A check holds if its {criteria.confidence:.0%}
interval keeps the criterion as a whole, fails if no part of it does, and is undecided otherwise; a question is
supported if all its checks hold, and not supported if one fails.
"""


def effect_table(answers: Sequence[Answer]) -> pd.DataFrame:
    """A row per effect; a question without any has one row, too."""
    nothing = Effect("", "", UNASKED)
    records = [
        {
            "claim": answer.question.claim,
            "asks": answer.question.asks,
            "verdict": answer.verdict,
            "effect": effect.name,
            "criterion": effect.bound,
            "estimate": "" if effect.estimate is None else f"{effect.estimate:.3f}",
            "low": "" if effect.estimate is None else f"{effect.estimate - effect.half:.3f}",
            "high": "" if effect.estimate is None else f"{effect.estimate + effect.half:.3f}",
            "outcome": effect.verdict,
            "reason": effect.reason,
            "runs": " ".join(run.name for run in effect.runs),
        }
        for answer in answers
        for effect in answer.effects or [nothing]
    ]
    return pd.DataFrame(records, dtype=object)


def _cells(effect: Effect) -> list[str]:
    found = NONE
    if effect.estimate is not None:
        low, high = effect.estimate - effect.half, effect.estimate + effect.half
        found = f"{effect.estimate:.2f} [{low:.2f}, {high:.2f}]"
    outcome = effect.verdict + (f" ({effect.reason})" if effect.reason else "")
    return [effect.name, effect.bound, "; ".join(map(show_summary, effect.sides)) or NONE, found, outcome]


# --- the data file ----------------------------------------------------------------------------------------------------


def load_criteria(path: Path = REDUCED_FILE) -> Criteria:
    """Read and check the criteria. Raises DataError naming the file, the entry and the key."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        questions = tuple(Question(**entry) for entry in content.pop("questions"))
        criteria = Criteria(**content, questions=questions)
        trained = {spec.label for spec in criteria.specs}
    except (OSError, yaml.YAMLError, TypeError, KeyError, AttributeError, ConfigError) as error:
        raise DataError(f"{path}: cannot be read ({' '.join(str(error).split())})") from None
    if criteria.seeds < 2 or not 0 < criteria.confidence < 1:
        raise DataError(f"{path}: seeds must be at least 2, confidence between 0 and 1")
    for number, question in enumerate(questions, start=1):
        where = f"{path}, question {number}"
        if question.asks not in ASKS or (question.asks == "nothing") == bool(question.checks):
            raise DataError(f"{where}: asks must be one of {', '.join(ASKS)}, and nothing where there are no checks")
        for check in question.checks:
            _validate(where, check, trained)
    return criteria


def _validate(where: str, check: Any, labels: set[str]) -> None:
    keys = set(check) if isinstance(check, dict) else set()
    bound = {"of", "figure"} <= keys and len(keys & set(BOUNDS)) == 1 and len(keys) == 3
    comparison = {"better", "than", "figures", "margin"} <= keys and keys - {"better", "than", "figures", "margin"} in (
        set(),
        {"at"},
        {"time"},
    )
    if not bound and not comparison:
        raise DataError(f"{where}: check {check!r} is neither {{of, figure, bound}} nor {{better, than, ...}}")
    figures = check["figures"] if comparison else [check["figure"]]
    if unknown := [figure for figure in figures if figure not in FIGURES]:
        raise DataError(f"{where}: figure '{unknown[0]}' is not one of {', '.join(FIGURES)}")
    if {"at", "time"} & keys and figures != ["knn5_top1"]:
        raise DataError(f"{where}: only knn5_top1 is measured during the training")
    if missing := {check[key] for key in ("of", "better", "than") if key in check} - labels:
        raise DataError(f"{where}: the preset has no runs of {', '.join(sorted(missing))}")
