"""The report: tables, plots and verdicts from result files, with the paper's numbers beside ours.

`results` reads and checks runs, `paper` reads the paper's numbers, `compare` puts the two side by side, `tables` and
`plots` print them, `claims` judges, and `page` puts it all into one file for a browser. A new table is a block in
experiments.yaml, a new claim one in claims.yaml; a new figure is a function that is added to `compose_plots`.
Everything is composed before anything is written: an error leaves an older report as it was. A result that is damaged
or does not fit is no error but left out, and every page says so first: the weeks of other runs stay readable, and no
number is read that cannot be vouched for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from wmse.datasets import find_folders
from wmse.errors import DataError
from wmse.files import atomic_path, write_text
from wmse.progress import tracked
from wmse.report.claims import compose_claims
from wmse.report.paper import PaperValue, load_paper
from wmse.report.results import Run, load_runs
from wmse.report.tables import compose_tables

__all__ = ["build_report", "write_claims", "write_dag", "write_plots", "write_tables"]


def build_report(
    run_dirs: Sequence[Path], out: Path, data_root: Path | None = None, only: str | None = None
) -> list[str]:
    """Write the report on some runs below `out`, or a part of it (`PARTS`); returns why runs are missing.

    Runs must have been computed on the data that is prepared in `data_root`, as far as it is there, and on the same
    data as the other runs of their benchmark. Raises DataError: no such run, one run in two directories, or a history
    that cannot be read.
    """
    refused: list[DataError] = []
    if data_root:
        find_folders(data_root)
    runs = load_runs(run_dirs, data_root, refused.append)
    paper = load_paper()
    left_out = [str(error) for error in refused]
    files: dict[str, str | bytes] = {}
    with_page = only in (None, "page")
    for part in tracked([*COMPOSERS] if with_page else [only], "part", "report"):
        files |= COMPOSERS[part](runs, paper)
    if left_out:
        files |= {name: _with_warning(page, left_out) for name, page in files.items() if name.endswith(".md")}
    if with_page:
        from wmse.report.page import compose_page  # neither must tables wait for this

        page = {"report.html": compose_page(files, runs, out)}
        files = page if only else files | page
    _write_files(out, files)
    return left_out


def _with_warning(page: str, left_out: Sequence[str]) -> str:
    """The page with what is missing from it, below its title."""
    title, rest = page.split("\n", 1)
    count = f"{len(left_out)} result{'s are' if len(left_out) > 1 else ' is'}"
    lines = [
        f"> **{count} left out of this page: damaged or not fitting.**",
        ">",
        *(f"> - {line}" for line in left_out),
    ]
    return "\n".join([title, "", *lines, rest])


def _plots(runs: Sequence[Run], paper: Sequence[PaperValue]) -> dict[str, bytes]:
    from wmse.report.pictures import compose_map  # tables must not wait for matplotlib
    from wmse.report.plots import compose_plots

    return {**compose_plots(runs, paper), **compose_map(runs, paper)}


COMPOSERS = {"tables": compose_tables, "claims": compose_claims, "plots": _plots}  # Each gives files by their path.
PARTS = [*COMPOSERS, "page"]
write_tables = partial(build_report, only="tables")
write_claims = partial(build_report, only="claims")
write_plots = partial(build_report, only="plots")


def write_dag(rule_graph: str, jobs: Mapping[str, int], out: Path) -> None:
    """Write plots/dag.png and .svg below `out` from the output of `snakemake --rulegraph`. Raises DataError."""
    from wmse.report.dag import draw_dag

    _write_files(out, {f"plots/dag.{kind}": content for kind, content in draw_dag(rule_graph, jobs).items()})


def _write_files(out: Path, files: Mapping[str, str | bytes]) -> None:
    for name, content in files.items():
        if isinstance(content, str):
            write_text(out / name, content)
        else:
            with atomic_path(out / name) as temporary:
                temporary.write_bytes(content)
