"""The report: tables, plots and verdicts from result files, with the paper's numbers beside ours.

`results` reads and checks runs, `paper` reads the paper's numbers, `compare` puts the two side by side, `tables` and
`plots` print them, `claims` judges. A new table is a block in wmse/experiments.yaml, a new claim one in claims.yaml; a
new figure is a function that is added to `compose_plots`.
Everything is composed before anything is written: a damaged result leaves an older report as it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from wmse.files import atomic_path, write_text
from wmse.report.claims import compose_claims
from wmse.report.paper import PaperValue, load_paper
from wmse.report.results import Run, load_runs
from wmse.report.tables import compose_tables

__all__ = ["build_report", "write_claims", "write_dag", "write_plots", "write_tables"]


def build_report(run_dirs: Sequence[Path], out: Path) -> None:
    """Write everything about the runs below `out`. Raises DataError naming the damaged file before it writes."""
    runs, paper = load_runs(run_dirs), load_paper()
    _write(out, {**compose_tables(runs, paper), **compose_claims(runs, paper), **_plots(runs, paper)})


def write_tables(run_dirs: Sequence[Path], out: Path) -> None:
    """Write tables.md and tables/*.csv below `out`. Raises DataError."""
    _write(out, compose_tables(load_runs(run_dirs), load_paper()))


def write_claims(run_dirs: Sequence[Path], out: Path) -> None:
    """Write claims.md and tables/claims.csv below `out`. Raises DataError."""
    _write(out, compose_claims(load_runs(run_dirs), load_paper()))


def write_plots(run_dirs: Sequence[Path], out: Path) -> None:
    """Write plots/*.png and plots/*.svg below `out`. Raises DataError."""
    _write(out, _plots(load_runs(run_dirs), load_paper()))


def _plots(runs: Sequence[Run], paper: Sequence[PaperValue]) -> dict[str, bytes]:
    from wmse.report.plots import compose_plots  # tables must not wait for matplotlib

    return compose_plots(runs, paper)


def write_dag(rule_graph: str, jobs: Mapping[str, int], out: Path) -> None:
    """Write plots/dag.png and .svg below `out` from the output of `snakemake --rulegraph`. Raises DataError."""
    from wmse.report.dag import draw_dag

    _write(out, {f"plots/dag.{kind}": content for kind, content in draw_dag(rule_graph, jobs).items()})


def _write(out: Path, files: Mapping[str, str | bytes]) -> None:
    for name, content in files.items():
        if isinstance(content, str):
            write_text(out / name, content)
        else:
            with atomic_path(out / name) as temporary:
                temporary.write_bytes(content)
