"""Run directories in, checked runs and groups of seeds out. The report's numbers come from here and `paper.csv`."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from wmse.config import IDENTITY, RunSpec, baselines
from wmse.datasets import load
from wmse.errors import DataError
from wmse.report.paper import METRICS
from wmse.runs.folder import HISTORY, RESULT, RunFolder
from wmse.runs.record import RECORD_FORMAT, Record, misfits, read_record, vouch_for_file

BASELINES = baselines()  # They are never trained: they have no pretraining record and no history.
ALWAYS_MEASURED = ("epoch", "seconds", "loss")
HISTORY_COLUMNS = (*ALWAYS_MEASURED, "knn5_top1", "embedding_std", "effective_rank")
# A result that is older than a parameter was computed with what is now the parameter's default.
DEFAULTS: dict[str, Any] = {
    field.name: list(field.default) if isinstance(field.default, tuple) else field.default
    for field in dataclasses.fields(RunSpec)
    if field.default is not dataclasses.MISSING and field.name not in IDENTITY
}
# Headings and decimals of what a trained run measures beside its accuracies.
DIAGNOSTICS = {
    "embedding_std": ("spread", 2),
    "effective_rank": ("effective rank", 1),
    "ms_per_step": ("ms / step", 0),
    "views": ("views", 0),
}
# These keys may be missing: in older results, of baselines or on other machines.
OPTIONAL = {
    **{f"pretrain.{name}": float for name in ("steps", "views", "embedding_std", "effective_rank")},
    "evaluation.wall_seconds": float,
    "provenance.hardware.cpu": str,
    "provenance.hardware.cores": int,
    "provenance.hardware.gpu": str,
    "provenance.runtime.processes": int,
    "provenance.runtime.nodes": int,
    "provenance.runtime.backend": str,
    "pretrain.images_per_process": int,
}
# What every trained run's `pretrain`, and every run's `provenance` hold; commit and dirty may be null.
TRAINING_KEYS = {"epochs": int, "wall_seconds": float, "views_per_second": float}
PROVENANCE_KEYS = {"commit": str, "dirty": bool, "versions": dict, "hardware": dict, "runtime": dict}
REQUIRED_METRICS = ("linear_top1", "knn5_top1")
# A reader looks at these keys first when specs of one cell differ.
FIRST_KEYS = ("epochs", "width", "batch_size", "d")

Cell = tuple[str, str, int | None, str]  # A run's benchmark, method, d and variant.


@dataclass(frozen=True)
class Run:
    """One evaluated run: the checked content of its result.json."""

    path: Path
    name: str
    benchmark: str
    method: str
    d: int | None
    seed: int
    preset: str
    spec: dict[str, Any]
    spec_hash: str
    differences: dict[str, dict[str, Any]] | None
    metrics: dict[str, float]
    pretrain: dict[str, Any] | None
    evaluation: dict[str, Any]
    data_digest: str
    provenance: dict[str, Any]
    map: dict[str, Any] | None = None

    @property
    def trained(self) -> bool:
        return self.pretrain is not None and self.pretrain["epochs"] > 0

    @property
    def epochs(self) -> int:
        return self.pretrain["epochs"] if self.pretrain else 0

    @property
    def cell(self) -> Cell:
        """The cell this run fills; d counts only where a method has views."""
        d = None if self.method in BASELINES else self.d or 2
        return self.benchmark, self.method, d, self.variant

    @property
    def variant(self) -> str:
        """Name of a variation of the method, such as an ablation; empty for the method itself."""
        return self.spec.get("variant") or ""

    @property
    def data_key(self) -> str:
        """As of a `RunSpec`."""
        return RunSpec.from_dict(self.spec, runnable=False).data_key

    @property
    def hardware(self) -> str:
        """What the run was computed on: a GPU's name, or the processor and its cores; how many processes shared it."""
        hardware, runtime = self.provenance["hardware"], self.provenance["runtime"]
        cores = f", {hardware['cores']} core{'s' if hardware['cores'] != 1 else ''}" if hardware.get("cores") else ""
        one = hardware.get("gpu") or f"{hardware.get('cpu') or 'unknown CPU'}{cores}"
        if (runtime.get("processes") or 1) == 1:  # or an older result
            return one
        nodes = f" on {runtime['nodes']} nodes" if (runtime.get("nodes") or 1) > 1 else ""
        images = (self.pretrain or {}).get("images_per_process")
        return f"{one}, {runtime['processes']} processes{nodes} ({runtime.get('backend')}) of {images} images each"

    @functools.cached_property
    def measured(self) -> dict[str, float]:
        """Every number of the run: its metrics, and of its training what `DIAGNOSTICS` names."""
        found = {name: (self.pretrain or {}).get(name) for name in ("embedding_std", "effective_rank", "views")}
        if self.trained and self.pretrain.get("steps"):
            found["ms_per_step"] = 1000 * self.pretrain["wall_seconds"] / self.pretrain["steps"]
        return {**self.metrics, **{name: value for name, value in found.items() if value is not None}}


@dataclass(frozen=True)
class Summary:
    """Mean over seeds (accuracies in percent), sample standard deviation (None for one seed), number of seeds."""

    mean: float
    std: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Summary:
        series = pd.Series(values, dtype=float)
        return cls(float(series.mean()), float(series.std()) if len(series) > 1 else None, len(series))


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed.

    If its cell has other groups, `setting` is short and tells it from them, `settings` holds all that differs.
    """

    runs: tuple[Run, ...]
    setting: str = ""
    settings: str = ""

    @property
    def first(self) -> Run:
        return self.runs[0]

    def summary(self, metric: str) -> Summary | None:
        """Mean and spread of `metric` over the seeds that have it; None if none has."""
        values = [run.measured[metric] for run in self.runs if metric in run.measured]
        return Summary.of(values) if values else None


def _refuse(error: DataError) -> None:
    raise error


def load_runs(
    run_dirs: Iterable[Path], data_root: Path | None = None, refuse: Callable[[DataError], None] = _refuse
) -> list[Run]:
    """All runs, sorted by name, of which those of one benchmark were computed on the same data.

    `refuse` gets a DataError for every run that is damaged or does not fit, and decides: if it returns, the run is left
    out. Raises DataError if a directory has no result, or for one run found in two directories.
    """
    runs: dict[str, Run] = {}
    for directory in sorted({Path(path) for path in run_dirs}):
        if not (file := directory / RESULT).exists():
            raise DataError(
                f"{file} does not exist: run `wmse evaluate` for it, or leave it out (`wmse runs` shows states)"
            )
        try:
            run = load_run(directory)
        except DataError as error:
            refuse(error)
            continue
        if run.name in runs:
            raise DataError(f"{run.path} and {runs[run.name].path} are both run {run.name}: give one of them")
        runs[run.name] = run
    for name, error in _of_other_data(runs.values(), data_root).items():
        refuse(error)
        del runs[name]
    return [runs[name] for name in sorted(runs)]


def _of_other_data(runs: Iterable[Run], data_root: Path | None) -> dict[str, DataError]:
    """The runs that were computed on other data than is prepared, or else than most runs of their benchmark."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(run.data_key, []).append(run)
    errors = {}
    for key, members in found.items():
        benchmark, _, own = key.partition(":")
        counts = Counter(run.data_digest for run in members).most_common(2)
        right, source = counts[0][0], "most runs of this benchmark have"
        if len(counts) == 2 and counts[0][1] == counts[1][1]:
            right, source = "", "as many runs of this benchmark have another one"
        if data_root:
            with contextlib.suppress(DataError):  # not prepared here
                right, source = load(benchmark, data_root, digest=own).digest, f"the prepared data in {data_root} has"
        for run in members:
            if run.data_digest != right:
                reason = f"was computed on data with digest {run.data_digest}, {source} {right}".rstrip()
                errors[run.name] = DataError(f"{run.path / RESULT}: {reason}; prepare the data and run it again")
    return errors


def load_run(directory: Path) -> Run:
    """Read and check `directory`/result.json. Raises DataError naming the file and what is wrong with it."""
    folder = RunFolder(directory)
    record = read_record(folder.result)
    if (version := record.get("format", int)) != RECORD_FORMAT:
        raise record.error(f"key 'format' is {version}, this version reads {RECORD_FORMAT}")
    for reason in misfits(record, folder=directory):
        raise record.error(reason)
    if HISTORY in record.files and folder.history.exists():
        vouch_for_file(folder.history, record.files[HISTORY], RESULT)
    run = Run(
        path=directory,
        name=record.get("run", str),
        benchmark=record.get("benchmark", str),
        method=record.get("method", str),
        d=record.get("d", int, none=True),
        seed=record.get("seed", int),
        preset=record.get("preset", str, none=True) or "",
        spec={**DEFAULTS, **record.get("spec", dict)},
        spec_hash=record.get("spec_hash", str),
        differences=_differences(record),
        metrics=_metrics(record),
        pretrain=record.get("pretrain", dict, none=record.get("method", str) in BASELINES),
        evaluation=record.get("evaluation", dict),
        data_digest=record.get("data.digest", str),
        provenance=record.get("provenance", dict),
        map=record.get("map", dict, none=True, optional=True),
    )
    for key, kind in TRAINING_KEYS.items() if run.pretrain is not None else ():
        record.get(f"pretrain.{key}", kind)
    for key, kind in PROVENANCE_KEYS.items():
        record.get(f"provenance.{key}", kind, none=kind is not dict)
    for key, kind in OPTIONAL.items():
        record.get(key, kind, none=True, optional=True)
    for key in ("benchmark", "method", "seed") if run.method in BASELINES else ("benchmark", "method", "seed", "d"):
        if record.get(f"spec.{key}", object) != getattr(run, key):
            raise record.error(f"key 'spec.{key}' does not agree with '{key}'")
    if run.trained and run.spec["epochs"] != run.epochs:
        raise record.error(f"key 'pretrain.epochs' is {run.epochs}, but the spec asks for {run.spec['epochs']}")
    return run


def load_history(run: Run) -> pd.DataFrame:
    """The run's history.csv, a row per epoch; NaN where nothing was measured. Raises DataError."""
    file = run.path / HISTORY
    nothing = {"na_values": ["", "nan", "inf", "-inf"], "keep_default_na": False}
    try:
        table = pd.read_csv(file, dtype=str, index_col=False, usecols=lambda name: name in HISTORY_COLUMNS, **nothing)
    except (OSError, ValueError) as error:  # of pandas as well: a damaged file is a ValueError
        raise DataError(f"{file}: cannot be read ({error}); train the run again") from None
    if table.empty:
        raise DataError(f"{file}: holds no epoch; train the run again")
    history = pd.DataFrame()
    for column in HISTORY_COLUMNS:
        if column not in table:
            raise DataError(f"{file}: column '{column}' is missing; train the run again")
        numbers = pd.to_numeric(table[column], errors="coerce").astype(float)
        history[column] = numbers.where(numbers.abs() < math.inf)
        wrong = history[column].isna() & (table[column].notna() | (column in ALWAYS_MEASURED))
        if wrong.any():
            text = str(table[column][wrong.idxmax()])[:40]
            raise DataError(f"{file}, line {wrong.idxmax() + 2}: column '{column}' is not a finite number: {text}")
    return history


def group_runs(runs: Iterable[Run]) -> dict[Cell, list[Group]]:
    """Groups of seeds by cell. Runs whose specs differ beyond the seed never share a group, hence never a mean."""
    cells: dict[Cell, dict[str, list[Run]]] = {}
    for run in runs:
        key = json.dumps({**run.spec, "seed": None}, sort_keys=True)
        cells.setdefault(run.cell, {}).setdefault(key, []).append(run)
    return {cell: _label_settings([_group(members) for members in groups.values()]) for cell, groups in cells.items()}


def _differences(record: Record) -> dict[str, dict[str, Any]] | None:
    differences = record.get("paper_differences", dict, none=True)
    for name, item in (differences or {}).items():
        if not isinstance(item, dict) or not {"run", "paper"} <= item.keys():
            raise record.error(f"key 'paper_differences.{name}' must hold 'run' and 'paper'")
    return differences


def _metrics(record: Record) -> dict[str, float]:
    metrics = {}
    given = record.get("metrics", dict)
    for name in METRICS:
        if name not in REQUIRED_METRICS and given.get(name) is None:
            continue  # top-5 says nothing about a data set of at most five classes
        if record.get("evaluation.test_images", int, optional=True) == 0:
            continue  # a data set without labels
        value = float(record.get(f"metrics.{name}", float))
        if not 0 <= value <= 100:
            raise record.error(f"key 'metrics.{name}' must be a percentage, not {value}")
        metrics[name] = value
    return metrics


def _group(runs: list[Run]) -> Group:
    members = sorted(runs, key=lambda run: run.seed)
    for run in members[1:]:
        if run.differences != members[0].differences:
            raise DataError(
                f"{run.path / RESULT}: key 'paper_differences' differs from that of {members[0].name}, which "
                "has the same spec: evaluate both with the same version"
            )
    return Group(tuple(members))


def _label_settings(groups: list[Group]) -> list[Group]:
    """Order the groups of one cell (the paper's recipe first, then the longest) and name what tells them apart."""
    groups = sorted(groups, key=lambda g: (g.first.differences != {}, -g.first.epochs, g.first.name))
    if len(groups) == 1:
        return groups
    shown = [{key: show_value(value) for key, value in g.first.spec.items() if key != "seed"} for g in groups]
    specs = pd.DataFrame(shown, dtype=object).fillna("unset")
    keys = [*(key for key in FIRST_KEYS if key in specs), *sorted(set(specs) - set(FIRST_KEYS))]
    differing = [key for key in keys if specs[key].nunique() > 1]
    short = _separating(specs, differing)
    return [Group(g.runs, _pairs(specs.loc[i, short]), _pairs(specs.loc[i, differing])) for i, g in enumerate(groups)]


def _separating(specs: pd.DataFrame, differing: Sequence[str]) -> list[str]:
    """The first few of the differing keys that together tell all specs apart."""
    chosen: list[str] = []
    told_apart = 1
    for key in differing:
        distinct = len(specs.drop_duplicates([*chosen, key]))
        if distinct > told_apart:
            chosen.append(key)
            told_apart = distinct
    return chosen


def _pairs(spec: pd.Series) -> str:
    return ", ".join(f"{key}={value}" for key, value in spec.items())


def show_value(value: Any) -> str:
    """A value of a spec as pages print it: text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)
