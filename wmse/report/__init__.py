"""The report: tables and plots from result files, with the paper's numbers beside ours.

`results` reads and checks runs, `paper` reads the paper's numbers, `compare` puts the two side by side, `tables` and
`plots` print them. A new table or figure is a function there that is added to `compose_tables` or `compose_plots`.
Everything is composed before anything is written: a damaged result leaves an older report as it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from wmse.files import atomic_path, write_text
from wmse.report.paper import PaperValue, load_paper
from wmse.report.results import Run, load_runs
from wmse.report.tables import compose_tables

__all__ = ["build_report", "write_plots", "write_tables"]


def build_report(run_dirs: Sequence[Path], out: Path) -> None:
    """Write tables and plots of the runs below `out`. Raises DataError naming the damaged file before it writes."""
    runs, paper = load_runs(run_dirs), load_paper()
    _write(out, {**compose_tables(runs, paper), **_plots(runs, paper)})


def write_tables(run_dirs: Sequence[Path], out: Path) -> None:
    """Write tables.md and tables/*.csv below `out`. Raises DataError."""
    _write(out, compose_tables(load_runs(run_dirs), load_paper()))


def write_plots(run_dirs: Sequence[Path], out: Path) -> None:
    """Write plots/*.png and plots/*.svg below `out`. Raises DataError."""
    _write(out, _plots(load_runs(run_dirs), load_paper()))


def _plots(runs: Sequence[Run], paper: Sequence[PaperValue]) -> dict[str, bytes]:
    from wmse.report.plots import compose_plots  # tables must not wait for matplotlib

    return compose_plots(runs, paper)


def _write(out: Path, files: Mapping[str, str | bytes]) -> None:
    for name, content in files.items():
        if isinstance(content, str):
            write_text(out / name, content)
        else:
            with atomic_path(out / name) as temporary:
                temporary.write_bytes(content)
