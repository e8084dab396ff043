"""Pictures of features: maps of the test images of runs, a map of a folder, and the images that are nearest to some."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from wmse.errors import DataError
from wmse.report.compare import benchmark_title, compare
from wmse.report.paper import PaperValue
from wmse.report.plots import COLOURS, OTHER_COLOUR, STYLE, message, render
from wmse.report.results import Run
from wmse.runs.folder import RESULT

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The colours of groups, the largest group first; all further ones are grey.
PALETTE = (*(colour for name, colour in COLOURS.items() if name.startswith(("W-MSE", "SimCLR", "BYOL"))), OTHER_COLOUR)
PALETTE = (*PALETTE, "#F0E442", "#000000", "#8C564B", "#9467BD")
REST = "#BBBBBB"
MOST_TEXT = 20  # Characters below an image.
DPI = 150
TOP, TEXT, GAP = 36, 34, 8  # Pixels above all rows, below an image, and beside it.


@dataclass(frozen=True)
class Tile:
    """An image of a contact sheet: uint8 (side, side, 3), and the text below it."""

    pixels: np.ndarray
    text: str


def draw_sheet(rows: Sequence[Sequence[Tile]], title: str) -> bytes:
    """A PNG with an image at the beginning of each row, and behind it those that are nearest to it."""
    import matplotlib.style
    from matplotlib.figure import Figure

    side = rows[0][0].pixels.shape[0]
    height, width = TOP + len(rows) * (side + TEXT), max(len(row) for row in rows) * (side + GAP) + 2 * GAP
    page = np.full((height, width, 3), 255, np.uint8)
    with matplotlib.style.context(["default", STYLE, {"figure.constrained_layout.use": False}]):
        # One picture and texts beside it: an axis for each image would take minutes.
        figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
        figure.text(GAP / width, 1 - GAP / height, title, fontsize=7, va="top")
        for i, row in enumerate(rows):
            top = TOP + i * (side + TEXT)
            for j, tile in enumerate(row):
                left = GAP + j * (side + GAP) + (GAP if j else 0)
                page[top : top + side, left : left + side] = tile.pixels
                text = shorten_left(tile.text)
                figure.text(left / width, 1 - (top + side + 3) / height, text, fontsize=4.2, va="top", linespacing=1.1)
        figure.figimage(page, zorder=-1)
        content = io.BytesIO()
        figure.savefig(content, format="png", metadata={"Software": None})
        return content.getvalue()


def shorten_left(text: str) -> str:
    """The ends of lines, where names of files differ; what cannot be printed is escaped."""
    lines = [line if line.isprintable() else repr(line)[1:-1] for line in text.split("\n")]
    return "\n".join(line if len(line) <= MOST_TEXT else f"…{line[1 - MOST_TEXT :]}" for line in lines)


def draw_map(points: np.ndarray, groups: Sequence[str], shares: Sequence[float], title: str) -> dict[str, bytes]:
    """A map of samples, as PNG and SVG by suffix.

    Args:
        points: (n, 2), on the two principal axes.
        groups: of every sample, e.g. its class; "" for none. The largest groups have colours and a legend.
        shares: of the variance, of both axes, in 0..1.
    """
    import matplotlib.style
    from matplotlib.figure import Figure

    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(7.2, 5.6))
        axis = figure.subplots()
        scatter(axis, points, groups)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel(f"first principal axis ({100 * shares[0]:.0f} % of the variance)")
        axis.set_ylabel(f"second principal axis ({100 * shares[1]:.0f} %)")
        if any(groups):
            figure.legend(loc="outside right upper", markerscale=2.5, fontsize=9)
        return render(figure)


def compose_map(runs: Sequence[Run], paper: Sequence[PaperValue]) -> dict[str, bytes]:
    """The figure plots/map: the test images of each method's first run, coloured by class. Raises DataError."""
    import matplotlib.style
    from matplotlib.figure import Figure

    shown: dict[str, dict[str, Run]] = {}
    for section in (section for section in compare(runs, paper) if section.main):
        for row in section.rows:
            if row.group and row.group.first.map:
                shown.setdefault(section.benchmark, {}).setdefault(row.label, row.group.first)
    with matplotlib.style.context(["default", STYLE]):
        if not shown:
            figure = message("No features of runs in these results")
        else:
            columns = max(map(len, shown.values()))
            figure = Figure(figsize=(2.3 * columns + 0.4, 2.5 * len(shown) + 0.2))
            axes = figure.subplots(len(shown), columns, squeeze=False)
            for line, (benchmark, found) in zip(axes, shown.items(), strict=True):
                line[0].set_ylabel(benchmark_title(benchmark))
                for axis in line:
                    axis.set(xticks=[], yticks=[])
                for axis in line[len(found) :]:
                    axis.set_visible(False)
                for axis, (label, run) in zip(line, found.items(), strict=False):
                    classes, points = read_map(run)
                    scatter(axis, points, [str(label) for label in classes])
                    axis.set_title(label, fontsize=9)
        return {f"plots/map.{kind}": content for kind, content in render(figure).items()}


def read_map(run: Run) -> tuple[list[int], np.ndarray]:
    """Labels and coordinates (n, 2) of the map in a run's result. Raises DataError."""
    try:
        table = np.array([line.split() for line in (run.map or {})["points"].split("\n")], np.float64)
        if table.shape[1:] != (3,) or not np.isfinite(table).all():
            raise ValueError("not three finite numbers a line")
    except (KeyError, AttributeError, ValueError) as error:
        raise DataError(f"{run.path / RESULT}: key 'map' cannot be read ({error}): run `wmse evaluate` again") from None
    return table[:, 0].astype(int).tolist(), table[:, 1:]


def scatter(axis: Axes, points: np.ndarray, groups: Sequence[str]) -> None:
    """Dots, those of a group in its colour; in an order that hides no group behind another one."""
    names = [name for name, _ in Counter(groups).most_common(len(PALETTE)) if name]
    colours = dict(zip(sorted(names), PALETTE, strict=False))
    order = np.random.default_rng(0).permutation(len(points))
    axis.scatter(*points[order].T, s=7, c=[colours.get(groups[i], REST) for i in order], linewidths=0, rasterized=True)
    for name, colour in colours.items():
        axis.scatter([], [], s=7, color=colour, label=shorten_left(name))
    if set(groups) - set(names):
        axis.scatter([], [], s=7, color=REST, label="others" if names else "images")
