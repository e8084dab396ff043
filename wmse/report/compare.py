"""The paper beside our runs: sections (one per experiment and benchmark) of rows (one per method and spec).

Experiments are defined in wmse/config/experiments.yaml, the paper's numbers in `paper.csv`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from wmse.config import experiments, of_package, paper_table, paper_variants, parse_label, title_of, trained_methods
from wmse.datasets import SOURCES
from wmse.report.paper import PaperValue
from wmse.report.results import BASELINES, Group, Run, group_runs

# Titles of benchmarks in the paper's order, which is the order of sections.
BENCHMARKS = {
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "stl10": "STL-10",
    "tiny_imagenet": "Tiny ImageNet",
    "imagenet100": "ImageNet-100",
    "imagenet": "ImageNet",
    "fashion_mnist": "Fashion-MNIST sample",
}
# The paper took the numbers of these methods from others; they are not run here.
CITED_METHODS = {
    "moco": "MoCo",
    "align_uniform": "L_align + L_uniform",
    "moco_v2": "MoCo v2",
    "swav": "SwAV",
    "simsiam": "SimSiam",
}
# The rows of these tables of the paper are plain methods.
MAIN_TABLES = {1: "table1", 2: "table2", 3: "table3"}
Key = tuple[str, int | None, str]  # A row's method, d and variant.


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
        name = method_label(self.method, self.d, self.variant)
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
    """One experiment on one benchmark (in the paper's Table 3: with one number of epochs)."""

    experiment: str
    benchmark: str
    title: str
    in_paper: bool
    rows: tuple[Row, ...]

    @property
    def table(self) -> int | None:
        """The number of the paper's table, None for an experiment of our own."""
        return experiments()[self.experiment].get("paper_table")

    @property
    def main(self) -> bool:
        """Whether the rows are the methods themselves, not variants."""
        return self.experiment in MAIN_TABLES.values()

    @property
    def own(self) -> bool:
        """Whether its images are somebody's own, so that there is nothing to compare with."""
        return not of_package(self.benchmark)

    @property
    def text(self) -> str:
        return experiments()[self.experiment].get("text", "").strip()

    @property
    def metrics(self) -> tuple[str, ...]:
        return tuple(experiments()[self.experiment].get("metrics", ("linear_top1", "knn5_top1")))

    @property
    def runs(self) -> list[Run]:
        return [run for row in self.rows if row.group for run in row.group.runs]

    @property
    def encoders(self) -> list[str]:
        """The encoders of the paper's values."""
        return list(dict.fromkeys(row.encoder for row in self.rows if row.encoder))


def benchmark_title(benchmark: str) -> str:
    """As the paper writes it; for other benchmarks as their description does."""
    if benchmark in BENCHMARKS:
        return BENCHMARKS[benchmark]
    return SOURCES[benchmark].title if benchmark in SOURCES else benchmark


def method_label(method: str, d: int | None, variant: str = "") -> str:
    """A method as tables print it: its name in the paper with the number of views, then its variant."""
    name = CITED_METHODS.get(method) or title_of(method)
    if method == "wmse":
        name += f" {d}"
    elif method not in BASELINES and d not in (None, 2):
        name += f", d={d}"
    return f"{name}, {variant}" if variant else name


def compare(runs: Iterable[Run], paper: Sequence[PaperValue]) -> list[Section]:
    """All sections: the main tables with results, our own experiments, then the main tables without results."""
    in_tables = [value for value in paper if value.table in MAIN_TABLES]
    groups: dict[str, list[Group]] = {value.benchmark: [] for value in in_tables}
    for cell, members in sorted(group_runs(runs).items(), key=lambda item: _position(item[0][0], list(BENCHMARKS))):
        groups.setdefault(cell[0], []).extend(members)
    main: list[Section] = []
    for benchmark, found in groups.items():
        main += _main_sections(benchmark, [value for value in in_tables if value.benchmark == benchmark], found)
    ablations = []
    for name, experiment in experiments().items():
        for benchmark, found in groups.items():
            if name not in MAIN_TABLES.values() and (rows := _ablation_rows(name, found)):
                title = f"{experiment['title']}, {benchmark_title(benchmark)}"
                ablations.append(Section(name, benchmark, title, False, rows))
    with_runs = [section for section in main if section.runs]
    if with_runs and all(section.own for section in with_runs):
        return [*with_runs, *ablations]
    return [*with_runs, *ablations, *(section for section in main if not section.runs)]


def _main_sections(benchmark: str, values: list[PaperValue], groups: list[Group]) -> list[Section]:
    """A benchmark's methods; a variant that belongs to an ablation is listed there and not here."""
    name = MAIN_TABLES[paper_table(benchmark)]
    own = experiments()[name].get("variants", {})
    groups = [group for group in groups if group.first.variant in own or group.first.variant not in paper_variants()]
    if name == MAIN_TABLES[3] and values:
        return _sections_by_epochs(values, groups)
    if not values and not groups:
        return []
    if not of_package(benchmark):
        return [Section(name, benchmark, benchmark_title(benchmark), False, _rows([], groups))]
    title = benchmark_title(benchmark) if values else f"{benchmark_title(benchmark)} (not in the paper)"
    return [Section(name, benchmark, title, bool(values), _rows(values, groups, _keys(name)))]


def _sections_by_epochs(values: list[PaperValue], groups: list[Group]) -> list[Section]:
    """Table 3 prints every method at several lengths of training: a run stands beside its own length."""
    benchmark = values[0].benchmark
    name = benchmark_title(benchmark)
    table = MAIN_TABLES[3]
    lengths = experiments()[table].get("variants", {})
    fixed = [key for key in _keys(table) if key[2] not in lengths]
    sections = []
    known = sorted({value.epochs for value in values if value.epochs})
    baselines = [group for group in groups if not group.first.trained]
    for epochs in known:
        rows = _rows(
            [value for value in values if value.epochs == epochs],
            [*(group for group in groups if group.first.epochs == epochs), *baselines],
            fixed,
            same_as_the_method=tuple(lengths),
        )
        sections.append(Section(table, benchmark, f"{name}, {epochs} epochs", True, rows))
    if rest := [group for group in groups if group.first.trained and group.first.epochs not in known]:
        title = f"{name}, other runs (the paper has no value at these epochs)"
        sections.append(Section(table, benchmark, title, False, _rows([], [*rest, *baselines], fixed)))
    return sections


def _keys(experiment: str) -> list[Key]:
    """The rows that an experiment lists."""
    parsed = [parse_label(label) for label in experiments()[experiment]["methods"]]
    return [(method, None if method in BASELINES else d, variant) for method, d, variant in parsed]


def _ablation_rows(experiment: str, groups: list[Group]) -> tuple[Row, ...]:
    """The rows of an ablation, run or not, and of its other variants; none unless a variant of its own was run."""
    variants = experiments()[experiment].get("variants", {})
    if not any(group.first.variant in variants for group in groups):
        return ()
    keys = _keys(experiment)
    ours = [group for group in groups if group.first.variant in variants or group.first.cell[1:] in keys]
    return _rows([], ours, keys)


def _rows(
    values: list[PaperValue], groups: list[Group], fixed: Sequence[Key] = (), same_as_the_method: Sequence[str] = ()
) -> tuple[Row, ...]:
    """Rows of the paper, the fixed ones and those of our runs; a cell with several specs has a row for each."""

    def key_of(group: Group) -> Key:
        method, d, variant = group.first.cell[1:]
        return method, d, "" if variant in same_as_the_method else variant

    printed = [(value.method, value.d, "") for value in values]
    rows = []
    for key in _ordered(printed, [*fixed, *map(key_of, groups)]):
        # The paper's values belong to the method itself, never to a variant of it.
        paper = {value.metric: value for value in values if (value.method, value.d, "") == key}
        found = [group for group in groups if key_of(group) == key]
        rows += [Row(*key, group, paper) for group in (found or [None])]
    return tuple(rows)


def _ordered(printed: list[Key], more: list[Key]) -> list[Key]:
    """The paper's rows in the paper's order, other methods after them, baselines last.

    Without rows of the paper the others keep their own order, which is that of the experiment.
    """
    names = [*trained_methods(), *BASELINES]
    extra = [key for key in dict.fromkeys(more) if key not in printed]
    if printed:
        extra.sort(key=lambda key: (_position(key[0], names), key[2], key[1] or 0))
    keys = [*dict.fromkeys(printed), *extra]
    return sorted(keys, key=lambda key: BASELINES.index(key[0]) + 1 if key[0] in BASELINES else 0)


def _position(name: str, names: Sequence[str]) -> tuple[int, str]:
    """A key that sorts names in the order of `names`, and all others after them by the alphabet."""
    return names.index(name) if name in names else len(names), name


def _is_less(run: Any, paper: Any) -> bool:
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (run, paper))
    return numbers and run < paper
