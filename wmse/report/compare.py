"""The paper beside our runs: sections (one per benchmark) of rows (one per method and spec).

A new table of the paper needs rows in `paper.csv` and, where its benchmark is new, one line in BENCHMARKS.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from wmse.report.paper import METRICS, PaperValue
from wmse.report.results import BASELINES, Group, Run, group_runs

# In the paper's order, which is the order of sections.
BENCHMARKS = {
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "stl10": "STL-10",
    "tiny_imagenet": "Tiny ImageNet",
    "imagenet100": "ImageNet-100",
    "imagenet": "ImageNet",
    "fashion_mnist": "Fashion-MNIST sample",
}
METHODS = {
    "moco": "MoCo",
    "align_uniform": "L_align + L_uniform",
    "simclr": "SimCLR",
    "moco_v2": "MoCo v2",
    "byol": "BYOL",
    "swav": "SwAV",
    "simsiam": "SimSiam",
    "wmse": "W-MSE",
    "random": "Random encoder",
    "pixels": "Raw pixels",
}
CITED_ONLY = ("moco", "align_uniform", "moco_v2", "swav", "simsiam")  # numbers the paper took from others; not run here
# The metrics a table prints; other tables of one benchmark (the paper's Table 4 and later) get their own entry.
TABLE_METRICS = {1: ("linear_top1", "knn5_top1"), 2: ("linear_top1", "linear_top5"), 3: ("linear_top1",)}
Key = tuple[str, int | None, str]  # method, d, variant
# Rows that every section of Table 1 has, run or not, in this order.
TABLE1_ROWS = (("simclr", 2), ("byol", 2), ("wmse", 2), ("wmse", 4), ("random", None), ("pixels", None))


@dataclass(frozen=True)
class Row:
    """One method on one benchmark: the paper's values, and one group of our seeds if there are any."""

    method: str
    d: int | None
    variant: str
    group: Group | None
    paper: dict[str, PaperValue]

    @property
    def label(self) -> str:
        """Name of the method as the paper writes it, then its variant and the settings that tell its rows apart."""
        name = method_label(self.method, self.d) + (f", {self.variant}" if self.variant else "")
        return f"{name} ({self.group.setting})" if self.group and self.group.setting else name

    @property
    def recipe(self) -> str:
        """How the runs relate to the paper's recipe: paper, reduced (in some number), changed, or empty.

        A run that departs in nothing but has no value of the paper beside it is "no paper value".
        """
        differences = self.differences
        if differences is None:
            return ""
        if not differences:
            return "paper" if self.paper else "no paper value"
        return "reduced" if any(_is_less(item["run"], item["paper"]) for item in differences.values()) else "changed"

    @property
    def differences(self) -> dict[str, dict[str, Any]] | None:
        """What the runs change in the paper's recipe; None where there is no recipe.

        Table 3 has two lengths of training but a recipe only one: a run of the row's own length does not differ in it.
        """
        differences = self.group.first.differences if self.group else None
        if differences is None or self.group.first.epochs != self.paper_epochs:
            return differences
        return {key: item for key, item in differences.items() if key != "epochs"}

    @property
    def paper_epochs(self) -> int | None:
        return next((value.epochs for value in self.paper.values()), None)

    @property
    def encoder(self) -> str:
        return next((value.encoder for value in self.paper.values()), "")

    def difference(self, metric: str) -> float | None:
        """Ours minus the paper's, from the two numbers as printed, so that readers who subtract get the same."""
        ours = self.group.summary(metric) if self.group else None
        paper = self.paper.get(metric)
        if ours is None or paper is None or paper.value is None:
            return None
        return round(ours.mean, 2) - paper.value


@dataclass(frozen=True)
class Section:
    """The rows of one benchmark (and, for the paper's Table 3, of one number of epochs)."""

    table: int
    benchmark: str
    title: str
    in_paper: bool
    rows: tuple[Row, ...]

    @property
    def metrics(self) -> tuple[str, ...]:
        return TABLE_METRICS[self.table]

    @property
    def runs(self) -> list[Run]:
        return [run for row in self.rows if row.group for run in row.group.runs]


def benchmark_title(benchmark: str) -> str:
    return BENCHMARKS.get(benchmark, benchmark)


def method_label(method: str, d: int | None) -> str:
    name = METHODS.get(method, method)
    if method == "wmse":
        return f"{name} {d}"
    return name if method in BASELINES or d in (None, 2) else f"{name}, d={d}"


def compare(runs: Iterable[Run], paper: Sequence[PaperValue]) -> list[Section]:
    """All sections: those with results first, each part in the paper's order, then benchmarks the paper lacks."""
    cells = group_runs(runs)
    in_tables = [value for value in paper if value.table in TABLE_METRICS]
    known = list(dict.fromkeys(value.benchmark for value in in_tables))
    other = sorted({benchmark for benchmark, *_ in cells} - set(known), key=_benchmark_order)
    sections = []
    for benchmark in [*known, *other]:
        values = [value for value in in_tables if value.benchmark == benchmark]
        groups = [group for cell, found in cells.items() if cell[0] == benchmark for group in found]
        table = values[0].table if values else 1
        sections += _sections_by_epochs(values, groups) if table == 3 else [_section(table, benchmark, values, groups)]
    return sorted(sections, key=lambda section: not section.runs)  # stable: keeps the paper's order within each part


def _section(table: int, benchmark: str, values: list[PaperValue], groups: list[Group]) -> Section:
    title = benchmark_title(benchmark) if values else f"{benchmark_title(benchmark)} (not in the paper)"
    fixed = TABLE1_ROWS if table == 1 else ()
    return Section(table, benchmark, title, bool(values), _rows(values, groups, fixed))


def _sections_by_epochs(values: list[PaperValue], groups: list[Group]) -> list[Section]:
    """Table 3 prints every method at several lengths of training: a run stands beside its own length."""
    benchmark = values[0].benchmark
    name = benchmark_title(benchmark)
    sections = []
    lengths = sorted({value.epochs for value in values if value.epochs})
    for epochs in lengths:
        rows = _rows(
            [value for value in values if value.epochs == epochs],
            [group for group in groups if group.first.epochs == epochs],
        )
        sections.append(Section(3, benchmark, f"{name}, {epochs} epochs", True, rows))
    if rest := [group for group in groups if group.first.epochs not in lengths]:
        title = f"{name}, other runs (the paper has no value at these epochs)"
        sections.append(Section(3, benchmark, title, False, _rows([], rest)))
    return sections


def _rows(
    values: list[PaperValue], groups: list[Group], fixed: Sequence[tuple[str, int | None]] = ()
) -> tuple[Row, ...]:
    """Rows of the paper, the fixed ones and those of our runs; a cell with several specs has a row for each."""
    printed = [(value.method, value.d, "") for value in values]
    ran = [group.first.cell[1:] for group in groups]
    rows = []
    for key in _ordered(printed, [*((method, d, "") for method, d in fixed), *ran]):
        # The paper's values belong to the method itself, never to a variant of it.
        paper = {value.metric: value for value in values if (value.method, value.d, "") == key}
        found = [group for group in groups if group.first.cell[1:] == key]
        rows += [Row(*key, group, paper) for group in (found or [None])]
    return tuple(rows)


def _ordered(printed: list[Key], more: list[Key]) -> list[Key]:
    """The paper's rows in the paper's order, other methods after them, baselines last."""
    names = list(METHODS)
    extra = sorted(
        set(more) - set(printed),
        key=lambda key: (names.index(key[0]) if key[0] in names else len(names), key[0], key[2], key[1] or 0),
    )
    keys = [*dict.fromkeys(printed), *extra]
    return sorted(keys, key=lambda key: BASELINES.index(key[0]) + 1 if key[0] in BASELINES else 0)


def _benchmark_order(benchmark: str) -> tuple[int, str]:
    names = list(BENCHMARKS)
    return names.index(benchmark) if benchmark in names else len(names), benchmark


def _is_less(run: Any, paper: Any) -> bool:
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (run, paper))
    return numbers and run < paper


def metric_columns(section: Section) -> list[tuple[str, str]]:
    """(metric, heading) of the columns that a section prints."""
    return [(metric, METRICS[metric]) for metric in section.metrics]
