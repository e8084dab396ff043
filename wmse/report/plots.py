"""Training curves, accuracies and signs of collapse. One method has one colour in every figure.

Figures are drawn without pyplot (no global state, no display) and saved without dates or versions, so that the same
results always give the same bytes.
"""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from wmse.report.compare import CITED_METHODS, Row, Section, benchmark_title, compare, method_label
from wmse.report.paper import METRICS, PaperValue
from wmse.report.results import DIAGNOSTICS, Group, Run, Summary, load_history
from wmse.report.svg import add_texts, with_texts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

# Okabe and Ito's palette: distinct for colour-blind readers too.
COLOURS = {
    "W-MSE 4": "#0072B2",
    "W-MSE 2": "#56B4E9",
    "W-MSE 8": "#CC79A7",
    "SimCLR": "#D55E00",
    "BYOL": "#009E73",
    "Random encoder": "#6E6E6E",
    "Raw pixels": "#A8A8A8",
}
CITED_COLOUR = "#444444"
OTHER_COLOUR = "#E69F00"  # Every other method or number of views has it; the name is beside it.
LINE_STYLES = ("-", "--", ":", "-.")  # They tell the specs of one method apart.
HATCHES = {"confirmed": "", "single": "////", "recalled": "...."}
PAIR_HEIGHT = 0.62
SHOWN_METRICS = ("linear_top1", "knn5_top1")
STYLE = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "legend.frameon": False,
    "hatch.linewidth": 0.7,
    "lines.linewidth": 1.8,
    "figure.constrained_layout.use": True,
    "svg.hashsalt": "wmse-report",
}


@dataclass(frozen=True)
class Curve:
    """History of one group: by epoch the mean over its seeds and their standard deviation (0 for one seed)."""

    label: str
    colour: str
    style: str
    mean: pd.DataFrame
    std: pd.DataFrame


def compose_plots(runs: Sequence[Run], paper: Sequence[PaperValue]) -> dict[str, bytes]:
    """Every figure as PNG and SVG by its path below the report's folder; writes nothing. Raises DataError."""
    import matplotlib.style

    sections = compare(runs, paper)
    main = [section for section in sections if section.main]
    curves = curves_of(main)
    figures: dict[str, Callable[[], Figure]] = {
        "training": lambda: _training(main, curves),
        "dynamics": lambda: _dynamics(main, curves),
        "accuracy": lambda: _accuracy(main),
        "collapse": lambda: _collapse(sections),
        "time": lambda: _time(main),
    }
    with matplotlib.style.context(["default", STYLE]):  # not the reader's own matplotlibrc
        return {
            f"plots/{name}.{kind}": content
            for name, draw in figures.items()
            for kind, content in render(draw()).items()
        }


def render(figure: Figure) -> dict[str, bytes]:
    """A figure as PNG and SVG by suffix, without dates or versions."""
    rendered = {}
    for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
        rendered[kind] = with_texts(buffer.getvalue()) if kind == "svg" else buffer.getvalue()
    return rendered


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def message(text: str) -> Figure:
    """A figure that says why there is nothing in it."""
    figure = _figure(6.4, 2)
    figure.text(0.5, 0.5, text, ha="center", va="center")
    return figure


def _legend(figure: Figure, entries: dict[str, Any]) -> None:
    """One legend for the whole figure, below all panels: it never covers data."""
    lines = math.ceil(len(entries) / max(2, int(figure.get_figwidth() / 2)))
    columns = math.ceil(len(entries) / lines)
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns)


# --- curves over epochs


def curves_of(sections: Sequence[Section]) -> dict[str, list[Curve]]:
    """Curves of all trained runs by benchmark; a row that stands in several sections has one."""
    curves: dict[str, dict[str, Curve]] = {}
    specs: Counter[tuple[str, str, int | None]] = Counter()
    for section in sections:
        found = curves.setdefault(section.benchmark, {})
        for row in section.rows:
            if row.group and row.group.first.trained and row.label not in found:
                cell = (section.benchmark, row.method, row.d)
                found[row.label] = _curve(row, row.group, LINE_STYLES[specs[cell] % len(LINE_STYLES)])
                specs[cell] += 1
    return {benchmark: list(found.values()) for benchmark, found in curves.items() if found}


def _curve(row: Row, group: Group, style: str) -> Curve:
    by_epoch = pd.concat(load_history(run) for run in group.runs).groupby("epoch")
    return Curve(row.label, colour(row.method, row.d), style, by_epoch.mean(), by_epoch.std().fillna(0))


def _training(sections: Sequence[Section], curves: dict[str, list[Curve]]) -> Figure:
    if not curves:
        return message("No trained runs in these results")
    rows = (("loss", "loss (scales differ by method)"), ("knn5_top1", "5-nn accuracy (%)"))
    figure, axes, entries = _curve_panels(sections, curves, rows)
    for axis, found in zip(axes[0], curves.values(), strict=True):
        _log_scale(axis, [value for curve in found for value in curve.mean["loss"]])
    for column, benchmark in enumerate(curves):
        entries.update(_baseline_lines(axes[1][column], sections, benchmark))
    _legend(figure, entries)
    return figure


def _log_scale(axis: Axes, values: Sequence[float]) -> None:
    """Losses of different methods lie far apart; losses near each other, or at or below zero, keep the linear scale."""
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

    if min(values) <= 0 or max(values) / min(values) < 4:
        return
    axis.set_yscale("log")
    narrow = max(values) / min(values) < 1000
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,)))
    axis.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axis.yaxis.set_minor_formatter(NullFormatter())


def _dynamics(sections: Sequence[Section], curves: dict[str, list[Curve]]) -> Figure:
    """5-nn against epoch and against training time; the paper's own figure, STL-10, comes first."""
    curves = dict(sorted(curves.items(), key=lambda item: item[0] != "stl10"))
    if not curves:
        return message("No trained runs in these results")
    rows = (("knn5_top1", "5-nn accuracy (%)"),) * 2
    figure, axes, entries = _curve_panels(sections, curves, rows, clock_row=1)
    for column, benchmark in enumerate(curves):
        for axis in axes[:, column]:
            entries.update(_baseline_lines(axis, sections, benchmark))
    _legend(figure, entries)
    return figure


def _collapse(all_sections: Sequence[Section]) -> Figure:
    """With whitening and without: the methods, and the ablation that takes the whitening away."""
    sections = [section for section in all_sections if section.main or section.experiment == "collapse"]
    curves = curves_of(sections)
    if not curves:
        return message("No trained runs in these results")
    rows = (("embedding_std", "embedding std"), ("effective_rank", "effective rank"))
    figure, axes, entries = _curve_panels(sections, curves, rows)
    for axis in (axis for row in axes for axis in row):
        axis.set_ylim(0, max(axis.dataLim.y1, 1e-6) * 1.08)  # collapse is what happens near zero
    _legend(figure, entries)
    return figure


def _curve_panels(
    sections: Sequence[Section],
    curves: dict[str, list[Curve]],
    rows: Sequence[tuple[str, str]],
    clock_row: int | None = None,
) -> tuple[Figure, Any, dict[str, Any]]:
    """One column of panels per benchmark, one row per quantity; returns the legend's entries too.

    The panels of `clock_row` have the training time as their axis, the others the epoch.
    """
    figure = _figure(max(6.4, 3.7 * len(curves) + 0.6), 3.0 * len(rows) + 0.7)
    axes = figure.subplots(len(rows), len(curves), squeeze=False, sharex="col" if clock_row is None else "none")
    entries: dict[str, Any] = {}
    for column, (benchmark, found) in enumerate(curves.items()):
        axes[0][column].set_title(_curve_title(sections, benchmark))
        unit, seconds = _time_unit(max(curve.mean["seconds"].iloc[-1] for curve in found))
        axes[-1 if clock_row is None else clock_row - 1][column].set_xlabel("epoch")
        for row, (quantity, name) in enumerate(rows):
            if column == 0:
                axes[row][column].set_ylabel(name)
            if row == clock_row:
                axes[row][column].set_xlabel(f"training time ({unit})")
            for curve in found:
                line = _draw_curve(axes[row][column], curve, quantity, seconds if row == clock_row else None)
                entries.setdefault(curve.label, line)
    figure.align_ylabels()
    return figure, axes, entries


def _time_unit(seconds: float) -> tuple[str, float]:
    """The unit in which a time reads well, and its seconds."""
    if seconds > 7200:
        return "h", 3600.0
    return ("min", 60.0) if seconds > 120 else ("s", 1.0)


def _draw_curve(axis: Axes, curve: Curve, quantity: str, unit_seconds: float | None = None) -> Line2D:
    """Draw one curve with its band, against epochs or in units of time; returns the line for the legend."""
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    mean = curve.mean[quantity].dropna()  # empty where an epoch was not evaluated
    std = curve.std[quantity][mean.index]
    x = curve.mean["seconds"][mean.index] / unit_seconds if unit_seconds else mean.index
    marker = "o" if len(mean) <= 30 else None
    width = 1.8 if len(mean) <= 200 else 1.2
    look = {"color": curve.colour, "linestyle": curve.style}
    axis.plot(x, mean, marker=marker, markersize=3.5, linewidth=width, **look)
    if std.any():
        axis.fill_between(x, mean - std, mean + std, color=curve.colour, alpha=0.2, linewidth=0)
    name = (METRICS | {key: heading for key, (heading, _) in DIAGNOSTICS.items()}).get(quantity, quantity)
    spreads = [f" ± {value:.2g}" if value else "" for value in std]
    told = zip(mean.index, mean, spreads, strict=True)
    add_texts(
        axis, x, mean, (f"{curve.label}, epoch {at:.0f}: {name} {value:.4g}{spread}" for at, value, spread in told)
    )
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    return Line2D([], [], **look)


def _curve_title(sections: Sequence[Section], benchmark: str) -> str:
    kinds = {row.recipe for s in sections if s.benchmark == benchmark for row in s.rows if row.group}
    return benchmark_title(benchmark) + (" (reduced runs)" if "reduced" in kinds else "")


def _baseline_lines(axis: Axes, sections: Sequence[Section], benchmark: str) -> dict[str, Any]:
    """Untrained baselines as level lines: what a training curve has to beat."""
    entries = {}
    for row in (row for section in sections if section.benchmark == benchmark for row in section.rows):
        if row.group and not row.group.first.trained and (summary := row.group.summary("knn5_top1")):
            style = "--" if row.method == "random" else ":"
            line = axis.axhline(summary.mean, color=colour(row.method, row.d), linestyle=style, zorder=1)
            entries[row.label] = line
    return entries


# --- time


def bars_of_time(sections: Sequence[Section]) -> dict[tuple[str, str], list[tuple[Row, Group]]]:
    """The rows with a time per iteration by benchmark and hardware; different hardware is never averaged."""
    bars: dict[tuple[str, str], list[tuple[Row, Group]]] = {}
    for row in (row for section in sections for row in section.rows if row.group and row.group.first.trained):
        by_hardware: dict[str, list[Run]] = {}
        for run in row.group.runs:
            threads = run.provenance["runtime"].get("threads")
            on_cpu = threads and not run.provenance["hardware"].get("gpu")
            suffix = f", {threads} thread{'s' if threads != 1 else ''}" if on_cpu else ""
            by_hardware.setdefault(run.hardware + suffix, []).append(run)
        for hardware, runs in by_hardware.items():
            group = Group(tuple(runs))
            if group.summary("ms_per_step"):
                bars.setdefault((row.group.first.benchmark, hardware), []).append((row, group))
    return bars


def _time(sections: Sequence[Section]) -> Figure:
    """Time per training iteration."""
    bars = bars_of_time(sections)
    if not bars:
        return message("No trained runs in these results")
    # Placed by hand, in inches: the layout engine is not deterministic with panels of such different heights.
    width, margin, bar, gap = 8.0, 2.2, 0.42, 0.75
    height = sum(bar * len(rows) + gap for rows in bars.values()) + 0.3
    figure = _figure(width, height)
    figure.set_layout_engine("none")
    top = height - 0.4
    for (benchmark, hardware), rows in bars.items():
        low = top - bar * len(rows)
        axis = figure.add_axes((margin / width, low / height, 1 - (margin + 0.2) / width, (top - low) / height))
        top = low - gap
        axis.set_title(f"{benchmark_title(benchmark)}: {hardware}", loc="left")
        for position, (row, group) in enumerate(rows):
            summary = group.summary("ms_per_step")
            axis.barh(position, summary.mean, height=0.6, color=colour(row.method, row.d), **_error_bar(summary))
            spec = group.first.spec
            views = f"{summary.mean:,.0f} ms for {row.d} x {spec['batch_size']} views" if row.d else ""
            _bar_label(axis, summary.mean + (summary.std or 0), position, views, "black")
        axis.set_yticks(range(len(rows)), [row.label for row, _ in rows])
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.set_xlim(0, 1.5 * max(group.summary("ms_per_step").mean for _, group in rows))
        axis.grid(axis="y", visible=False)
        axis.tick_params(axis="y", length=0)
    axis.set_xlabel("time per training iteration (ms)")
    return figure


# --- accuracies


def _accuracy(sections: Sequence[Section]) -> Figure:
    shown = [section for section in sections if section.runs]
    if not shown:
        return message("No runs in these results")
    heights = [_row_height(section) * len(section.rows) + 0.95 for section in shown]
    figure = _figure(11, sum(heights) + 0.5)
    axes = figure.subplots(len(shown), len(SHOWN_METRICS), squeeze=False, height_ratios=heights)
    for line, section in zip(axes, shown, strict=True):
        line[0].set_title(section.title, loc="left", fontweight="bold")
        for axis, metric in zip(line, SHOWN_METRICS, strict=True):
            _bars(axis, section.rows, metric, thick=_row_height(section) < PAIR_HEIGHT)
            axis.set_xlabel(f"{METRICS[metric]} accuracy (%)")
        line[0].set_yticks(range(len(section.rows)), [_tick(row) for row in section.rows])
    entries = _accuracy_entries(shown)
    if list(entries) != ["ours"]:  # bars of one kind explain themselves
        _legend(figure, entries)
    return figure


def _row_height(section: Section) -> float:
    """Inches per method: room for two bars where the paper has one too."""
    return PAIR_HEIGHT if section.in_paper else 0.42


def _bars(axis: Axes, rows: Sequence[Row], metric: str, thick: bool) -> None:
    """Ours filled, the paper's outlined below it; a bar that stands alone is centred."""
    height = 0.6 if thick else 0.36
    for position, row in enumerate(rows):
        ours = row.group.summary(metric) if row.group else None
        paper = row.paper.get(metric)
        offset = 0.2 if ours and paper else 0.0
        tint = colour(row.method, row.d)
        if ours:
            axis.barh(position - offset, ours.mean, height=height, color=tint, **_error_bar(ours))
            spread = "" if ours.std is None else f" ± {ours.std:.1f}"
            _bar_label(axis, ours.mean + (ours.std or 0), position - offset, f"{ours.mean:.1f}{spread}", "black")
        if paper and paper.value is not None:
            look = {"facecolor": "white", "edgecolor": tint, "hatch": HATCHES[paper.status]}
            axis.barh(position + offset, paper.value, height=height, **look)
            _bar_label(axis, paper.value, position + offset, paper.marked, "#555555")
    axis.set_yticks([])
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xlim(0, 122)  # the labels of bars near 100 need room
    axis.set_xticks(range(0, 101, 20))
    axis.grid(axis="y", visible=False)
    axis.tick_params(axis="y", length=0)


def _error_bar(summary: Summary) -> dict[str, Any]:
    """How `barh` is told the standard deviation over the seeds, if there are several."""
    return {} if summary.std is None else {"xerr": summary.std, "error_kw": {"capsize": 3, "elinewidth": 1.2}}


def _bar_label(axis: Axes, end: float, position: float, text: str, shade: str) -> None:
    axis.annotate(
        text, (end, position), xytext=(5, 0), textcoords="offset points", va="center", fontsize=9, color=shade
    )


def _tick(row: Row) -> str:
    if row.group and row.recipe in ("reduced", "changed"):
        epochs = f", {row.group.first.epochs} of {row.paper_epochs} epochs" if row.paper_epochs else ""
        return f"{row.label}\n{row.recipe}{epochs}"
    return row.label


def _accuracy_entries(sections: Sequence[Section]) -> dict[str, Any]:
    from matplotlib.patches import Patch

    rows = [row for section in sections for row in section.rows]
    spread = any(row.group and len(row.group.runs) > 1 for row in rows)
    entries: dict[str, Any] = {"ours ± std over seeds" if spread else "ours": Patch(color="#444444")}
    names = {"confirmed": "paper", "single": "paper, † one copy", "recalled": "paper, ‡ recalled"}
    drawn = {value.status for row in rows for metric, value in row.paper.items() if metric in SHOWN_METRICS}
    for status in names.keys() & drawn:
        entries[names[status]] = Patch(facecolor="white", edgecolor="#444444", hatch=HATCHES[status])
    return dict(sorted(entries.items()))  # ours, paper, then the marked ones


def colour(method: str, d: int | None) -> str:
    """The colour of a method, the same in every figure."""
    other = CITED_COLOUR if method in CITED_METHODS else OTHER_COLOUR
    return COLOURS.get(method_label(method, d), other)
