"""tables.md and its CSV files: the paper's numbers beside ours, and where each of ours comes from."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from wmse.config import experiments
from wmse.report.compare import CITED_ONLY, Row, Section, compare, metric_columns
from wmse.report.paper import METRICS, PaperValue
from wmse.report.results import DIAGNOSTICS, Run, Summary

NONE = "—"
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
TABLE_COLUMNS = (
    *("table", "section", "method", "d", "variant", "setting", "metric"),
    *("paper", "paper_status", "paper_source", "ours_mean", "ours_std", "n", "difference"),
    *("epochs", "paper_epochs", "recipe", "paper_differences", "runs"),
)


def compose_tables(runs: Sequence[Run], paper: Sequence[PaperValue]) -> dict[str, str]:
    """Text of every table file by its path below the report's folder; writes nothing."""
    sections = compare(runs, paper)
    files = {"tables.md": _markdown(sections, runs)}
    for experiment in experiments():
        rows = [line for section in sections if section.experiment == experiment for line in _csv_rows(section)]
        files[f"tables/{experiment}.csv"] = to_csv(TABLE_COLUMNS, rows)
    records = [_provenance(run) for run in runs]
    files["tables/provenance.csv"] = to_csv(PROVENANCE_COLUMNS, [list(record.values()) for record in records])
    return files


# --- tables.md


def _markdown(sections: Sequence[Section], runs: Sequence[Run]) -> str:
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
    return _count(len(kinds), "run") + detail


def _section_markdown(section: Section) -> str:
    if not section.main:
        return _ablation_markdown(section)
    source = f"Table {section.table} of the paper" if section.in_paper else "No values in the paper"
    encoders = list(dict.fromkeys(row.encoder for row in section.rows if row.encoder))
    if len(encoders) == 1:
        source += f", {encoders[0]}"
    notes: list[str] = []
    head = ["method", "recipe", "epochs: ours / paper"]
    for _, name in metric_columns(section):
        head += [f"{name}: paper", "ours", "diff"]
    body = [_row_markdown(row, section, notes, several_encoders=len(encoders) > 1) for row in section.rows]
    parts = [f"## {section.title}\n", f"{source}; accuracy in percent.\n", markdown_table(head, body, left=2)]
    parts += _notes(notes)
    if remarks := _paper_remarks(section):
        parts.append(remarks)
    return "\n".join([*parts, *_settings(section)])


def _ablation_markdown(section: Section) -> str:
    """An experiment beside the main tables: no numbers of the paper, but how the embeddings and the time came out."""
    notes: list[str] = []
    head = ["method", "recipe", "epochs", *(name for _, name in metric_columns(section))]
    head += [name for name, _ in DIAGNOSTICS.values()]
    body = []
    for row in section.rows:
        epochs = str(row.group.first.epochs) if row.group and row.group.first.trained else NONE
        figures = [_ours(row, metric) for metric in section.metrics]
        details = [_detail(row, name, decimals) for name, (_, decimals) in DIAGNOSTICS.items()]
        body.append([row.label, _recipe(row, notes), epochs, *figures, *details])
    missing = "The paper's numbers are not known here (missing). " if section.table else "Not a table of the paper. "
    parts = [
        f"## {section.title}\n",
        *([section.text + "\n"] if section.text else []),
        f"{missing}Accuracy in percent; spread and effective rank of the embeddings at the end of the training.\n",
        markdown_table(head, body, left=2),
        *_notes(notes),
    ]
    return "\n".join([*parts, *_settings(section)])


def _detail(row: Row, name: str, decimals: int) -> str:
    summary = row.group.summary(name) if row.group else None
    if summary is None:
        return NONE
    spread = "" if summary.std is None or name == "views" else f" ± {summary.std:.{decimals}f}"
    return f"{summary.mean:,.{decimals}f}{spread}"


def _notes(notes: list[str]) -> list[str]:
    if not notes:
        return []
    head = "> **Not the paper's recipe.** These rows must not be read as results of the paper's method:\n>"
    return [head, "\n".join(f"> - [{number}] {note}" for number, note in enumerate(notes, start=1)) + "\n"]


def _settings(section: Section) -> list[str]:
    """What tells apart the rows of one method."""
    several = [row for row in section.rows if row.group and row.group.settings != row.group.setting]
    if not several:
        return []
    head = "Rows of one method whose specs differ (seeds are averaged only within one spec):\n"
    return [head, "\n".join(f"- {row.label}: {row.group.settings}" for row in several if row.group) + "\n"]


def _paper_remarks(section: Section) -> str:
    """What is to be known about single values of the paper, one line per remark."""
    remarks: dict[str, list[str]] = {}
    for row in section.rows:
        for note in dict.fromkeys(value.note for value in row.paper.values() if value.note):
            if row.label not in remarks.setdefault(note, []):
                remarks[note].append(row.label)
    lines = [f"- {', '.join(labels)}: {note}" for note, labels in remarks.items()]
    return "On the paper's values:\n\n" + "\n".join(lines) + "\n" if lines else ""


def _row_markdown(row: Row, section: Section, notes: list[str], several_encoders: bool) -> list[str]:
    name = f"{row.label} ({row.encoder} in the paper)" if several_encoders and row.encoder else row.label
    ours = str(row.group.first.epochs) if row.group and row.group.first.trained else NONE
    cells = [name, _recipe(row, notes), f"{ours} / {row.paper_epochs or NONE}"]
    for metric in section.metrics:
        paper = row.paper.get(metric)
        difference = row.difference(metric)
        cells += [
            paper.marked if paper else NONE,
            _ours(row, metric),
            NONE if difference is None else f"{difference:+.2f}",
        ]
    return cells


def _ours(row: Row, metric: str) -> str:
    if row.group is None:
        return "cited only" if row.method in CITED_ONLY else "not run"
    summary = row.group.summary(metric)
    return show_summary(summary) if summary else NONE


def show_summary(summary: Summary) -> str:
    """`55.10 ± 0.21 (n=3)`; a single seed shows no spread."""
    spread = "" if summary.std is None else f" ± {summary.std:.2f}"
    return f"{summary.mean:.2f}{spread} (n={summary.n})"


def _recipe(row: Row, notes: list[str]) -> str:
    """The recipe's label; what differs from the paper goes to `notes`, once for rows that differ alike."""
    if row.group is None or row.recipe not in ("reduced", "changed"):
        return row.recipe or NONE
    note = describe_differences(row.differences or {})
    if note not in notes:
        notes.append(note)
    return f"**{row.recipe}** [{notes.index(note) + 1}]"


def describe_differences(differences: dict[str, dict[str, Any]]) -> str:
    """`epochs 10 (paper: 1000), width 16 (paper: 64)`."""
    pairs = [f"{key} {_value(item['run'])} (paper: {_value(item['paper'])})" for key, item in differences.items()]
    return ", ".join(pairs)


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def markdown_table(head: Sequence[str], body: Sequence[Sequence[str]], left: int = 1) -> str:
    """A padded pipe table; the first `left` columns are aligned left, the others right."""
    rows = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in [head, *body]]
    widths = [max(3, *(len(row[column]) for row in rows)) for column in range(len(head))]
    rule = ["-" * width if column < left else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
    padded = [
        [
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in rows
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in [padded[0], rule, *padded[1:]]) + "\n"


# --- CSV


def to_csv(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return buffer.getvalue()


def _csv_rows(section: Section) -> list[list[Any]]:
    """One line per row and metric, with the digits of tables.md; every measured metric, printed there or not."""
    lines = []
    for row in section.rows:
        for metric in (*METRICS, *DIAGNOSTICS):
            measured = row.group.summary(metric) if row.group else None
            if metric in section.metrics or metric in row.paper or measured:
                lines.append(_csv_row(section, row, metric, measured))
    return lines


def _csv_row(section: Section, row: Row, metric: str, ours: Summary | None) -> list[Any]:
    paper = row.paper.get(metric)
    difference = row.difference(metric)
    first = row.group.first if row.group else None
    return [
        section.table or "",
        section.title,
        row.method,
        row.d,
        row.variant,
        row.group.setting if row.group else "",
        metric,
        paper.text if paper else "",
        paper.status if paper else "",
        paper.source if paper else "",
        f"{ours.mean:.2f}" if ours else "",
        "" if ours is None or ours.std is None else f"{ours.std:.2f}",
        ours.n if ours else 0,
        "" if difference is None else f"{difference:.2f}",
        first.epochs if first else "",
        row.paper_epochs,
        row.recipe if row.group else "not run",
        json.dumps(row.differences) if row.differences else "",
        " ".join(run.name for run in row.group.runs) if row.group else "",
    ]


# --- provenance

PROVENANCE_COLUMNS = (
    *("run", "spec_hash", "preset", "commit", "dirty", "seed", "epochs", "cpu", "cores", "gpu", "device", "precision"),
    *("threads", "python", "torch", "wmse", "pretrain_seconds", "evaluation_seconds", "views_per_second"),
    *("peak_memory_bytes", "resumed", "data_digest", "finished"),
)


def _provenance(run: Run) -> dict[str, Any]:
    facts = run.provenance
    hardware, runtime, versions = facts["hardware"], facts["runtime"], facts["versions"]
    pretrain = run.pretrain or {}
    values = (
        *(run.name, run.spec_hash, run.preset, facts["commit"], facts["dirty"], run.seed, run.epochs),
        *(hardware.get("cpu"), hardware.get("cores"), hardware.get("gpu")),
        *(runtime.get("device"), runtime.get("precision"), runtime.get("threads")),
        *(versions.get("python"), versions.get("torch"), versions.get("wmse")),
        *(pretrain.get("wall_seconds"), run.evaluation.get("wall_seconds"), pretrain.get("views_per_second")),
        *(pretrain.get("peak_memory_bytes"), pretrain.get("resumed"), run.data_digest, facts.get("finished")),
    )
    return dict(zip(PROVENANCE_COLUMNS, values, strict=True))


def _provenance_markdown(runs: Sequence[Run]) -> str:
    if not runs:
        return "No runs.\n"
    head = ["run", "spec", "commit", "preset", "hardware", "device, precision", "torch", "data"]
    head += ["seed", "epochs", "pretraining time", "evaluation time", "views/s"]
    body = [_provenance_row({**_provenance(run), "hardware": run.hardware}) for run in runs]
    note = (
        'One line per run. "spec" and "data" are the first 12 characters of the digests of the run\'s configuration '
        "and of its data set; `-dirty` marks a commit with uncommitted changes; times are h:mm:ss. "
        "Full values: tables/provenance.csv.\n"
    )
    return note + "\n" + markdown_table(head, body, left=8)


def _provenance_row(record: dict[str, Any]) -> list[str]:
    commit = (record["commit"] or "unknown")[:12] + ("-dirty" if record["dirty"] else "")
    speed = record["views_per_second"]
    return [
        record["run"],
        record["spec_hash"][:12],
        commit,
        record["preset"] or NONE,
        record["hardware"],
        ", ".join(str(record[key]) for key in ("device", "precision") if record[key]) or NONE,
        str(record["torch"] or NONE),
        record["data_digest"].rpartition(":")[2][:12],
        str(record["seed"]),
        str(record["epochs"]),
        duration(record["pretrain_seconds"]),
        duration(record["evaluation_seconds"]),
        f"{speed:.0f}" if speed else NONE,
    ]


def duration(seconds: float | None) -> str:
    """h:mm:ss, rounded to the second."""
    if seconds is None:
        return NONE
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{second:02d}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
