"""Run directories in, checked runs and groups of seeds out. The report's numbers come from here and `paper.csv`."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import functools
import json
import math
import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wmse.config import IDENTITY, RunSpec, baselines
from wmse.datasets import load
from wmse.errors import ConfigError, DataError
from wmse.files import content_digest, file_digest
from wmse.report.paper import METRICS

FORMAT = 1
MOST = 1e18  # of any number in a result: views, bytes, seconds and everything else stay far below
RESULT, HISTORY = "result.json", "history.csv"
BASELINES = baselines()  # never trained: no pretraining record, no history
HISTORY_COLUMNS = ("epoch", "seconds", "loss", "knn5_top1", "embedding_std", "effective_rank")
# A result that is older than a parameter was computed with what is now the parameter's default.
DEFAULTS: dict[str, Any] = {
    field.name: list(field.default) if isinstance(field.default, tuple) else field.default
    for field in dataclasses.fields(RunSpec)
    if field.default is not dataclasses.MISSING and field.name not in IDENTITY
}
# What a trained run's record says beside its accuracies, with its heading and its decimals in tables.
DIAGNOSTICS = {
    "embedding_std": ("spread", 2),
    "effective_rank": ("effective rank", 1),
    "ms_per_step": ("ms / step", 0),
    "views": ("views", 0),
}
# What older results, baselines or other machines lack.
OPTIONAL = {
    **{f"pretrain.{name}": float for name in ("steps", "views", "embedding_std", "effective_rank")},
    "evaluation.wall_seconds": float,
    "provenance.hardware.cpu": str,
    "provenance.hardware.cores": int,
    "provenance.hardware.gpu": str,
}
REQUIRED_METRICS = ("linear_top1", "knn5_top1")
# Keys a reader looks at first when specs of one cell differ.
FIRST_KEYS = ("epochs", "width", "batch_size", "d")

Cell = tuple[str, str, int | None, str]  # benchmark, method, d, variant


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

    @property
    def trained(self) -> bool:
        return self.pretrain is not None and self.pretrain["epochs"] > 0

    @property
    def epochs(self) -> int:
        return self.pretrain["epochs"] if self.pretrain else 0

    @property
    def cell(self) -> Cell:
        """The cell this run fills; d counts only where a method has views."""
        d = None if self.method in BASELINES else 2 if self.d is None else self.d
        return self.benchmark, self.method, d, self.variant

    @property
    def variant(self) -> str:
        """Name of a variation of the method, such as an ablation; empty for the method itself."""
        return self.spec.get("variant") or ""

    @property
    def hardware(self) -> str:
        """What the run was computed on: a GPU's name, or the processor and its cores."""
        hardware = self.provenance["hardware"]
        cores = f", {hardware['cores']} core{'s' if hardware['cores'] != 1 else ''}" if hardware.get("cores") else ""
        return hardware.get("gpu") or f"{hardware.get('cpu') or 'unknown CPU'}{cores}"

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


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed; `setting` tells it from the other groups of its cell, if any."""

    runs: tuple[Run, ...]
    setting: str = ""
    settings: str = ""

    @property
    def first(self) -> Run:
        return self.runs[0]

    def summary(self, metric: str) -> Summary | None:
        """Mean and spread of `metric` over the seeds that have it."""
        values = [run.measured[metric] for run in self.runs if metric in run.measured]
        if not values:
            return None
        std = statistics.stdev(values) if len(values) > 1 else None
        return Summary(statistics.fmean(values), std, len(values))


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
            raise DataError(f"{file} does not exist: evaluate the run first, or leave it out of the report")
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
        found.setdefault(run.benchmark, []).append(run)
    errors = {}
    for benchmark, members in found.items():
        counts = Counter(run.data_digest for run in members).most_common(2)
        right, source = counts[0][0], "most runs of this benchmark have"
        if len(counts) == 2 and counts[0][1] == counts[1][1]:
            right, source = "", "as many runs of this benchmark have another one"
        if data_root:
            with contextlib.suppress(DataError):  # not prepared here
                right, source = load(benchmark, data_root).digest, f"the prepared data in {data_root} has"
        for run in members:
            if run.data_digest != right:
                reason = f"was computed on data with digest {run.data_digest}, {source} {right}".rstrip()
                errors[run.name] = DataError(f"{run.path / RESULT}: {reason}; prepare the data and run it again")
    return errors


def load_run(directory: Path) -> Run:
    """Read and check `directory`/result.json. Raises DataError naming the file and the key that is wrong."""
    file = directory / RESULT
    content = _Checked(file, _read_json(file))
    if (version := content.get("format", int)) != FORMAT:
        raise content.error("format", f"is {version}, this version reads {FORMAT}")
    if content.get("sha256", str) != content_digest(content.content):
        raise content.error("sha256", "is not the digest of the rest: the file was changed after it was written")
    run = Run(
        path=directory,
        name=content.get("run", str),
        benchmark=content.get("benchmark", str),
        method=content.get("method", str),
        d=content.get("d", int, none=True),
        seed=content.get("seed", int),
        preset=content.get("preset", str, none=True) or "",
        spec={**DEFAULTS, **content.get("spec", dict)},
        spec_hash=content.get("spec_hash", str),
        differences=_differences(content),
        metrics=_metrics(content),
        pretrain=_pretrain(content),
        evaluation=content.get("evaluation", dict),
        data_digest=content.get("data.digest", str),
        provenance=content.get("provenance", dict),
    )
    _check_provenance(content)
    for key, kind in OPTIONAL.items():
        if content.has(key):
            content.get(key, kind, none=True)
    _check_identity(run, content)
    _check_history(run, content)
    return run


def load_history(run: Run) -> dict[str, list[float]]:
    """Columns of the run's history.csv, one entry per epoch; NaN where a column is empty. Raises DataError."""
    file = run.path / HISTORY
    try:
        with open(file, encoding="utf-8", newline="") as handle:
            rows = list(csv.DictReader(handle))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: cannot be read ({error}); train the run again") from None
    if not rows:
        raise DataError(f"{file}: holds no epoch; train the run again")
    return {
        name: [_history_value(file, line, row, name) for line, row in enumerate(rows, 2)] for name in HISTORY_COLUMNS
    }


def group_runs(runs: Iterable[Run]) -> dict[Cell, list[Group]]:
    """Groups of seeds by cell. Runs whose specs differ beyond the seed never share a group, hence never a mean."""
    cells: dict[Cell, dict[str, list[Run]]] = {}
    for run in runs:
        key = json.dumps(_without_seed(run.spec), sort_keys=True)
        cells.setdefault(run.cell, {}).setdefault(key, []).append(run)
    return {cell: _label_settings([_group(members) for members in groups.values()]) for cell, groups in cells.items()}


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one mapping with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat


class _Checked:
    """Typed access to a JSON object by dotted key; every failure names the file and the key."""

    def __init__(self, file: Path, content: dict[str, Any]) -> None:
        self.file = file
        self.content = content

    def error(self, key: str, problem: str) -> DataError:
        return DataError(f"{self.file}: key '{key}' {problem}; evaluate the run again to write the file anew")

    def has(self, key: str) -> bool:
        return self._find(key) is not _MISSING

    def get(self, key: str, kind: type, none: bool = False) -> Any:
        value = self._find(key)
        if value is _MISSING:
            raise self.error(key, "is missing")
        if value is None and none:
            return None
        kinds = (int, float) if kind is float else (kind,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and kind is not bool):
            raise self.error(key, f"must be of type {kind.__name__}, not {json.dumps(value)[:60]}")
        return value

    def _find(self, key: str) -> Any:
        value: Any = self.content
        for part in key.split("."):
            if not isinstance(value, dict) or part not in value:
                return _MISSING
            value = value[part]
        return value


_MISSING = object()


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(
            file.read_text(encoding="utf-8"), parse_constant=_reject, parse_float=_number(float), parse_int=_number(int)
        )
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: cannot be read as JSON ({error}); evaluate the run again") from None
    if not isinstance(content, dict):
        raise DataError(f"{file}: must hold a JSON object; evaluate the run again")
    return content


def _reject(text: str) -> float:
    raise ValueError(f"it holds {text[:40]}, which is not a number of a result")


def _number(kind: type) -> Callable[[str], float]:
    """A parser of numbers that refuses what no run can measure, and arithmetic would overflow on."""

    def parse(text: str) -> float:
        value = kind(text) if len(text) < 40 else math.inf
        return value if abs(value) < MOST else _reject(text)

    return parse


def _differences(content: _Checked) -> dict[str, dict[str, Any]] | None:
    differences = content.get("paper_differences", dict, none=True)
    for name, item in (differences or {}).items():
        if not isinstance(item, dict) or not {"run", "paper"} <= item.keys():
            raise content.error(f"paper_differences.{name}", "must hold 'run' and 'paper'")
    return differences


def _metrics(content: _Checked) -> dict[str, float]:
    metrics = {}
    content.get("metrics", dict)
    for name in METRICS:
        if name not in REQUIRED_METRICS and content.content["metrics"].get(name) is None:
            continue  # top-5 says nothing about a data set of at most five classes
        value = float(content.get(f"metrics.{name}", float))
        if not (math.isfinite(value) and 0 <= value <= 100):
            raise content.error(f"metrics.{name}", f"must be a percentage, not {value}")
        metrics[name] = value
    return metrics


def _pretrain(content: _Checked) -> dict[str, Any] | None:
    pretrain = content.get("pretrain", dict, none=content.get("method", str) in BASELINES)
    if pretrain is not None:
        timed = content.get("pretrain.epochs", int) > 0
        for key in ("wall_seconds", "views_per_second"):
            if timed or key in pretrain:
                content.get(f"pretrain.{key}", float, none=not timed)
    return pretrain


def _check_provenance(content: _Checked) -> None:
    content.get("provenance.commit", str, none=True)
    content.get("provenance.dirty", bool, none=True)
    for key in ("versions", "hardware", "runtime"):
        content.get(f"provenance.{key}", dict)


def _check_identity(run: Run, content: _Checked) -> None:
    """Directory name, seed, hash and spec must tell the same story: a renamed or copied-over run is refused."""
    if not re.fullmatch(r"[0-9a-f]{64}", run.spec_hash):
        raise content.error("spec_hash", "must be 64 hexadecimal digits")
    try:
        spec_hash = RunSpec.from_dict(content.content["spec"], runnable=False).hash
    except ConfigError as error:
        raise content.error("spec", f"is no specification of this version ({error})") from None
    if run.spec_hash != spec_hash:
        raise content.error("spec_hash", f"is {run.spec_hash[:8]}..., but the hash of 'spec' is {spec_hash[:8]}...")
    expected = f"seed{run.seed}-{run.spec_hash[:8]}"
    if run.path.name != expected:
        raise content.error("spec_hash", f"and 'seed' belong to a directory named {expected}, not {run.path.name}")
    if run.name.rsplit("/", 1)[-1] != expected:
        raise content.error("run", f"is {run.name}, which does not end in {expected}")
    for key in ("benchmark", "method", "seed", *(() if run.method in BASELINES else ("d",))):
        if content.get(f"spec.{key}", object) != content.content[key]:
            raise content.error(f"spec.{key}", f"does not agree with '{key}'")
    if "variant" in run.spec:
        content.get("spec.variant", str)
    if run.trained and content.content["spec"].get("epochs", run.epochs) != run.epochs:
        raise content.error("pretrain.epochs", f"is {run.epochs}, but the spec asks for {run.spec['epochs']}")


def _check_history(run: Run, content: _Checked) -> None:
    file = run.path / HISTORY
    expected = content.get("files", dict).get(HISTORY)
    if expected and file.exists() and expected != f"sha256:{file_digest(file)}":
        raise DataError(f"{file}: is not the history that {RESULT} was made with; remove it and train the run again")


def _history_value(file: Path, line: int, row: dict[str, str | None], column: str) -> float:
    text = row.get(column)
    if text is None:
        raise DataError(f"{file}, line {line}: column '{column}' is missing; train the run again")
    try:
        value = float(text) if text.strip() else math.nan
    except ValueError:
        raise DataError(f"{file}, line {line}: column '{column}' is not a number: {text[:40]}") from None
    if column in ("epoch", "loss") and not math.isfinite(value):
        raise DataError(f"{file}, line {line}: column '{column}' is not a finite number")
    return value


def _without_seed(spec: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in spec.items() if key != "seed"}


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
    specs = [{key: _show(value) for key, value in flatten(_without_seed(g.first.spec)).items()} for g in groups]
    keys = sorted({key for spec in specs for key in spec}, key=lambda key: (_rank(key), key))
    differing = [key for key in keys if len({spec.get(key, "unset") for spec in specs}) > 1]
    shown = _separating(differing, specs)
    return [Group(g.runs, _pairs(spec, shown), _pairs(spec, differing)) for g, spec in zip(groups, specs, strict=True)]


def _separating(differing: Sequence[str], specs: Sequence[dict[str, str]]) -> list[str]:
    """The first few of the differing keys that together tell all specs apart."""
    chosen: list[str] = []
    classes = 1
    for key in differing:
        found = len({tuple(spec.get(k, "unset") for k in [*chosen, key]) for spec in specs})
        if found > classes:
            chosen.append(key)
            classes = found
        if classes == len(specs):
            break
    return chosen


def _pairs(spec: dict[str, str], keys: Iterable[str]) -> str:
    return ", ".join(f"{key}={spec.get(key, 'unset')}" for key in keys)


def _rank(key: str) -> int:
    return FIRST_KEYS.index(key) if key in FIRST_KEYS else len(FIRST_KEYS)


def _show(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
