"""A figure of the workflow's rules as Snakemake itself connects them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from wmse.errors import DataError
from wmse.report.plots import render

NODE = re.compile(r'^\s*(\w+)\[label = "([^"]+)"', re.MULTILINE)
EDGE = re.compile(r"^\s*(\w+) -> (\w+)", re.MULTILINE)


def parse_dot(text: str) -> tuple[list[str], list[tuple[str, str]]]:
    """Rules and (from, to) edges of `snakemake --rulegraph`. Raises DataError if there is no rule in it."""
    names = {number: label.partition("\\n")[0] for number, label in NODE.findall(text)}
    if not names:
        raise DataError("no rule in the input; give it the output of `snakemake --rulegraph`")
    return list(names.values()), [(names[a], names[b]) for a, b in EDGE.findall(text)]


def layers(rules: list[str], edges: list[tuple[str, str]]) -> dict[str, int]:
    """Each rule's place from left to right: after the rules that it needs, or, if it needs none, before its users."""
    place = dict.fromkeys(rules, 0)
    for _ in rules:  # as many rounds as the longest chain can need
        for before, after in edges:
            place[after] = max(place[after], place[before] + 1)
    for rule in set(rules) - {after for _, after in edges}:
        place[rule] = min((place[after] - 1 for before, after in edges if before == rule), default=0)
    return place


def direct(edges: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The edges that no longer path says already (the transitive reduction of an acyclic graph)."""

    def reaches(start: str, goal: str) -> bool:
        return any(after == goal or reaches(after, goal) for before, after in edges if before == start)

    return [
        (before, after)
        for before, after in edges
        if not any(a == before and b != after and reaches(b, after) for a, b in edges)
    ]


def draw_dag(text: str, jobs: Mapping[str, int]) -> dict[str, bytes]:
    """The figure as PNG and SVG by suffix, from a rule graph and the number of jobs of each rule."""
    from matplotlib.figure import Figure

    rules, edges = parse_dot(text)
    place = layers(rules, edges)
    columns = [[rule for rule in rules if place[rule] == layer] for layer in range(max(place.values()) + 1)]
    height = max(map(len, columns))
    figure = Figure(figsize=(2.1 * len(columns), 0.9 * height + 0.3))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set_axis_off()
    axis.set_xlim(-0.5, len(columns) - 0.5)
    axis.set_ylim(-0.5, height - 0.5)
    position = {
        rule: (x, (height - 1) / 2 + (len(column) - 1) / 2 - y)
        for x, column in enumerate(columns)
        for y, rule in enumerate(column)
    }
    boxes = {}
    for rule, (x, y) in position.items():
        text = f"{rule}\n{jobs[rule]} jobs" if jobs.get(rule, 1) != 1 else rule
        style = {"boxstyle": "round,pad=0.5", "facecolor": "#E8F1F8", "edgecolor": "#0072B2"}
        boxes[rule] = axis.text(x, y, text, ha="center", va="center", fontsize=11, bbox=style, zorder=2)
    figure.draw_without_rendering()  # gives the boxes their sizes
    to_data = axis.transData.inverted()
    extent = {rule: box.get_bbox_patch().get_window_extent().transformed(to_data) for rule, box in boxes.items()}
    for before, after in direct(edges):
        look = {"arrowstyle": "-|>", "color": "#888888", "shrinkA": 0, "shrinkB": 0}
        start, end = (extent[before].x1, position[before][1]), (extent[after].x0, position[after][1])
        axis.annotate("", end, xytext=start, arrowprops=look, zorder=1)
    return render(figure)
