"""tables.md and its CSV files: the paper's numbers beside ours, and where each of ours comes from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pandas as pd

from wmse.config import experiments
from wmse.report.compare import CITED_METHODS, Row, Section, compare
from wmse.report.paper import METRICS, PaperValue
from wmse.report.results import DIAGNOSTICS, Run, Summary, show_value

NONE = "—"
MEASURED = "accuracy in percent; spread and effective rank of the embeddings at the end of the training."
SHORT_LEGEND = """\
Paper values: no mark is confirmed, † printed by one text that copies the paper, ‡ recalled and not yet checked.
Rows marked **reduced** or **changed** are not the paper's recipe. More under
[How to read the tables](#how-to-read-the-tables).
"""
LEGEND = """\
- **paper**: Ermolov et al., "Whitening for Self-Supervised Representation Learning", ICML 2021; accuracy in percent.
  No mark: confirmed (quoted from the paper, read in the authors' repository, or printed by two unrelated texts).
  † single: printed by one text that copies the paper. ‡ recalled: from memory, not yet checked against the PDF.
  The paper prints no standard deviations.
- **ours**: from the result files of the runs listed under [Provenance](#provenance): mean ± sample standard deviation
  over seeds, with the number of seeds n; one seed has no spread. "not run": no result was given to this report.
- **diff**: ours minus the paper's. It judges the reproduction only where the recipe is the paper's.
- **recipe**: "paper" is the paper's full recipe; "no paper value" follows it too, in a cell without a
  number to compare. "**reduced**" and "**changed**" runs are *not* the paper's recipe: the numbered note under the
  table lists every difference.
"""
# Columns of provenance.csv, each with the key of a run's record that holds it.
PROVENANCE = {
    "run": "name",
    "spec_hash": "spec_hash",
    "preset": "preset",
    "commit": "provenance.commit",
    "dirty": "provenance.dirty",
    "seed": "seed",
    "epochs": "epochs",
    "cpu": "provenance.hardware.cpu",
    "cores": "provenance.hardware.cores",
    "gpu": "provenance.hardware.gpu",
    "device": "provenance.runtime.device",
    "precision": "provenance.runtime.precision",
    "threads": "provenance.runtime.threads",
    "processes": "provenance.runtime.processes",
    "nodes": "provenance.runtime.nodes",
    "backend": "provenance.runtime.backend",
    "images_per_process": "pretrain.images_per_process",
    "python": "provenance.versions.python",
    "torch": "provenance.versions.torch",
    "wmse": "provenance.versions.wmse",
    "pretrain_seconds": "pretrain.wall_seconds",
    "evaluation_seconds": "evaluation.wall_seconds",
    "views_per_second": "pretrain.views_per_second",
    "peak_memory_bytes": "pretrain.peak_memory_bytes",
    "resumed": "pretrain.resumed",
    "data_digest": "data_digest",
    "finished": "provenance.finished",
}


def compose_tables(runs: Sequence[Run], paper: Sequence[PaperValue]) -> dict[str, str]:
    """Text of every table file by its path below the report's folder; writes nothing."""
    sections = compare(runs, paper)
    files = {"tables.md": _tables_page(sections, runs)}
    rows = pd.DataFrame([record for section in sections for record in _records(section)], dtype=object)
    for experiment in experiments():
        files[f"tables/{experiment}.csv"] = to_csv(rows[rows["experiment"] == experiment].drop(columns="experiment"))
    files["tables/provenance.csv"] = to_csv(_provenance(runs))
    return files


# --- tables.md


def _tables_page(sections: Sequence[Section], runs: Sequence[Run]) -> str:
    parts = ["# W-MSE: the paper's tables and our runs\n", _overview(sections), SHORT_LEGEND]
    parts += [_section_markdown(section) for section in sections]
    parts += ["## How to read the tables\n", LEGEND]
    parts += ["## Provenance\n", _provenance_markdown(runs)]
    return "\n".join(parts)


def _overview(sections: Sequence[Section]) -> str:
    with_runs = [section for section in sections if section.runs]
    if not with_runs:
        return "No run was given: the tables show the paper's numbers only.\n"
    lines = [f"- {section.title}: {_run_kinds(section)}" for section in with_runs]
    return "Results given to this report:\n\n" + "\n".join(lines) + "\n"


def _run_kinds(section: Section) -> str:
    """`4 runs (3 reduced, 1 baseline)`."""
    words = {"paper": "with the paper's recipe", "no paper value": "without a paper value"}
    kinds = [row.recipe or "no paper value" for row in section.rows if row.group for _ in row.group.runs]
    counts = [f"{kinds.count(kind)} {words.get(kind, kind)}" for kind in sorted(set(kinds), reverse=True)]
    detail = f" ({', '.join(counts)})" if section.in_paper else ""
    return f"{len(kinds)} run{'s' if len(kinds) != 1 else ''}{detail}"


def _section_markdown(section: Section) -> str:
    notes = list(dict.fromkeys(_note(row) for row in section.rows if row.differences))  # equal ones once
    head, body = _main_table(section, notes) if section.main else _ablation_table(section, notes)
    parts = [
        f"## {section.title}\n",
        _introduction(section),
        markdown_table(head, body, left=1 if section.main and section.own else 2),
    ]
    if notes:
        parts.append("> **Not the paper's recipe.** These rows must not be read as results of the paper's method:\n>")
        parts.append("\n".join(f"> - [{number}] {note}" for number, note in enumerate(notes, start=1)) + "\n")
    if remarks := _paper_remarks(section):
        parts.append("On the paper's values:\n\n" + "\n".join(remarks) + "\n")
    several = [row for row in section.rows if row.group and row.group.settings != row.group.setting]
    if several:
        parts.append("Rows of one method whose specs differ (seeds are averaged only within one spec):\n")
        parts.append("\n".join(f"- {row.label}: {row.group.settings}" for row in several if row.group) + "\n")
    return "\n".join(parts)


def _introduction(section: Section) -> str:
    if section.main and section.own:
        return f"Images of one's own; {MEASURED}\n"
    if section.main:
        source = f"Table {section.table} of the paper" if section.in_paper else "No values in the paper"
        encoder = f", {section.encoders[0]}" if len(section.encoders) == 1 else ""
        return f"{source}{encoder}; accuracy in percent.\n"
    text = f"{section.text}\n\n" if section.text else ""
    source = "The paper's numbers are not known here (missing)." if section.table else "Not a table of the paper."
    return f"{text}{source} {MEASURED[0].upper()}{MEASURED[1:]}\n"


def _main_table(section: Section, notes: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Head and body of a table of methods, with the paper's values; of one's own images as an ablation's."""
    if section.own:
        head, body = _ablation_table(section, notes)
        return [head[0], *head[2:]], [[line[0], *line[2:]] for line in body]
    head = ["method", "recipe", "epochs: ours / paper"]
    for metric in section.metrics:
        head += [f"{METRICS[metric]}: paper", "ours", "diff"]
    body = []
    for row in section.rows:
        encoder = f" ({row.encoder} in the paper)" if len(section.encoders) > 1 and row.encoder else ""
        cells = [row.label + encoder, _recipe(row, notes), f"{_epochs(row)} / {row.paper_epochs or NONE}"]
        for metric in section.metrics:
            paper = row.paper.get(metric)
            difference = row.difference(metric)
            cells += [paper.marked if paper else NONE, _ours(row, metric)]
            cells.append(NONE if difference is None else f"{difference:+.2f}")
        body.append(cells)
    return head, body


def _ablation_table(section: Section, notes: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Head and body of an experiment beside the main tables: how the embeddings and the time came out."""
    head = ["method", "recipe", "epochs", *(METRICS[metric] for metric in section.metrics)]
    head += [name for name, _ in DIAGNOSTICS.values()]
    body = []
    for row in section.rows:
        figures = [_ours(row, metric) for metric in section.metrics]
        details = [_detail(row, name, decimals) for name, (_, decimals) in DIAGNOSTICS.items()]
        body.append([row.label, _recipe(row, notes), _epochs(row), *figures, *details])
    return head, body


def _epochs(row: Row) -> str:
    return str(row.group.first.epochs) if row.group and row.group.first.trained else NONE


def _detail(row: Row, name: str, decimals: int) -> str:
    summary = row.group.summary(name) if row.group else None
    if summary is None:
        return NONE
    spread = "" if summary.std is None or name == "views" else f" ± {summary.std:.{decimals}f}"
    return f"{summary.mean:,.{decimals}f}{spread}"


def _paper_remarks(section: Section) -> list[str]:
    """What is to be known about single values of the paper, one line per remark."""
    remarks: dict[str, dict[str, None]] = {}
    for row in section.rows:
        for value in row.paper.values():
            if value.note:
                remarks.setdefault(value.note, {})[row.label] = None
    return [f"- {', '.join(labels)}: {note}" for note, labels in remarks.items()]


def _ours(row: Row, metric: str) -> str:
    if row.group is None:
        return "cited only" if row.method in CITED_METHODS else "not run"
    summary = row.group.summary(metric)
    return show_summary(summary) if summary else NONE


def show_summary(summary: Summary) -> str:
    """`55.10 ± 0.21 (n=3)`; a single seed shows no spread."""
    spread = "" if summary.std is None else f" ± {summary.std:.2f}"
    return f"{summary.mean:.2f}{spread} (n={summary.n})"


def _recipe(row: Row, notes: Sequence[str]) -> str:
    """The recipe's label, with the number of the note that says what differs from the paper."""
    return f"**{row.recipe}** [{notes.index(_note(row)) + 1}]" if row.differences else row.recipe or NONE


def _note(row: Row) -> str:
    """`epochs 10 (paper: 1000), width 16 (paper: 64)`."""
    items = (row.differences or {}).items()
    return ", ".join(f"{key} {show_value(item['run'])} (paper: {show_value(item['paper'])})" for key, item in items)


def markdown_table(head: Sequence[str], body: Sequence[Sequence[str]], left: int = 1) -> str:
    """A padded pipe table; the first `left` columns are aligned left, the others right."""
    rows = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in [head, *body]]
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
    rule = ["-" * width if column < left else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
    lines = []
    for row in [rows[0], rule, *rows[1:]]:
        padded = [f"{cell:<{width}}" for cell, width in zip(row[:left], widths[:left], strict=True)]
        padded += [f"{cell:>{width}}" for cell, width in zip(row[left:], widths[left:], strict=True)]
        lines.append("| " + " | ".join(padded) + " |\n")
    return "".join(lines)


# --- CSV


def to_csv(table: pd.DataFrame) -> str:
    return table.to_csv(index=False, lineterminator="\n")


def _records(section: Section) -> list[dict[str, Any]]:
    """One line per row and metric, with the digits of tables.md; every measured metric, printed there or not."""
    records = []
    for row in section.rows:
        for metric in (*METRICS, *DIAGNOSTICS):
            measured = row.group.summary(metric) if row.group else None
            if metric in section.metrics or metric in row.paper or measured:
                records.append(_record(section, row, metric, measured))
    return records


def _record(section: Section, row: Row, metric: str, ours: Summary | None) -> dict[str, Any]:
    paper = row.paper.get(metric)
    difference = row.difference(metric)
    return {
        "experiment": section.experiment,
        "table": section.table,
        "section": section.title,
        "method": row.method,
        "d": row.d,
        "variant": row.variant,
        "setting": row.group.setting if row.group else "",
        "metric": metric,
        "paper": paper.text if paper else "",
        "paper_status": paper.status if paper else "",
        "paper_source": paper.source if paper else "",
        "ours_mean": f"{ours.mean:.2f}" if ours else "",
        "ours_std": "" if ours is None or ours.std is None else f"{ours.std:.2f}",
        "n": ours.n if ours else 0,
        "difference": "" if difference is None else f"{difference:.2f}",
        "epochs": row.group.first.epochs if row.group else "",
        "paper_epochs": row.paper_epochs,
        "recipe": row.recipe if row.group else "not run",
        "paper_differences": json.dumps(row.differences) if row.differences else "",
        "runs": " ".join(run.name for run in row.group.runs) if row.group else "",
    }


# --- provenance


def _provenance(runs: Sequence[Run]) -> pd.DataFrame:
    records = [_flatten({**vars(run), "epochs": run.epochs}) for run in runs]
    table = pd.DataFrame(records, columns=list(PROVENANCE.values()), dtype=object)
    return table.set_axis(list(PROVENANCE), axis="columns")


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one mapping with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat.update(_flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat


def _provenance_markdown(runs: Sequence[Run]) -> str:
    if not runs:
        return "No runs.\n"
    head = ["run", "spec", "commit", "preset", "hardware", "device, precision", "torch", "data"]
    head += ["seed", "epochs", "pretraining time", "evaluation time", "views/s"]
    body = [_provenance_row(run) for run in runs]
    note = (
        'One line per run. "spec" and "data" are the first 12 characters of the digests of the run\'s configuration '
        "and of its data set; `-dirty` marks a commit with uncommitted changes; times are h:mm:ss. "
        "Full values: tables/provenance.csv.\n"
    )
    return note + "\n" + markdown_table(head, body, left=8)


def _provenance_row(run: Run) -> list[str]:
    facts, pretrain = run.provenance, run.pretrain or {}
    runtime = [facts["runtime"].get(key) for key in ("device", "precision")]
    speed = pretrain.get("views_per_second")
    return [
        run.name,
        run.spec_hash[:12],
        (facts["commit"] or "unknown")[:12] + ("-dirty" if facts["dirty"] else ""),
        run.preset or NONE,
        run.hardware,
        ", ".join(str(value) for value in runtime if value) or NONE,
        str(facts["versions"].get("torch") or NONE),
        run.data_digest.rpartition(":")[2][:12],
        str(run.seed),
        str(run.epochs),
        clock_time(pretrain.get("wall_seconds")),
        clock_time(run.evaluation.get("wall_seconds")),
        f"{speed:.0f}" if speed else NONE,
    ]


def clock_time(seconds: float | None) -> str:
    """h:mm:ss, rounded to the second."""
    if seconds is None:
        return NONE
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{second:02d}"
