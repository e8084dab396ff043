"""Pictures of features: the images whose features are nearest to some, and all of them as a map."""

from __future__ import annotations

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
MOST_TEXT = 22  # Characters below an image.


@dataclass(frozen=True)
class Tile:
    """An image of a contact sheet: uint8 (side, side, 3), and the text below it."""

    pixels: np.ndarray
    text: str


def draw_sheet(rows: Sequence[Sequence[Tile]], title: str) -> bytes:
    """A PNG with an image in front of each row, and those that are nearest to it behind it."""
    import matplotlib.style
    from matplotlib.figure import Figure

    columns = max(len(row) for row in rows)
    with matplotlib.style.context(["default", STYLE, {"axes.grid": False}]):
        figure = Figure(figsize=(1.25 * columns + 0.3, 1.5 * len(rows) + 0.5))
        figure.suptitle(title, fontsize=10)
        axes = figure.subplots(len(rows), columns, squeeze=False)
        for line, row in zip(axes, rows, strict=True):
            for column, axis in enumerate(line):
                if column < len(row):
                    axis.imshow(row[column].pixels)
                    axis.set_xlabel(shorten_left(row[column].text), fontsize=5.5)
                axis.set(xticks=[], yticks=[])
                first = column == 0
                for side in axis.spines.values():
                    side.set(visible=first, linewidth=2, color=PALETTE[0])
        return render(figure)["png"]


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
        axis.set_title(title)
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
