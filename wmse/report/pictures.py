"""Pictures of features: the images whose features are nearest to some, and all of them as a map."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from wmse.report.plots import COLOURS, OTHER_COLOUR, STYLE, render

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
