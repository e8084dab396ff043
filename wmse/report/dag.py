"""A figure of the workflow's rules as Snakemake itself connects them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from wmse.errors import DataError
from wmse.report.plots import render

NODE = re.compile(r'^\s*(\w+)\[label = "(\w{1,60})\b', re.MULTILINE)
EDGE = re.compile(r"^\s*(\w+) -> (\w+)", re.MULTILINE)
MOST_RULES = 50  # that a figure has room for


def parse_dot(text: str) -> tuple[list[str], list[tuple[str, str]]]:
    """Rules and (from, to) edges of `snakemake --rulegraph`. Raises DataError if that is not what it is."""
    names = dict(NODE.findall(text))
    rules = list(dict.fromkeys(names.values()))
    if not 0 < len(rules) <= MOST_RULES:
        found = f"{len(rules)} rules, more than a figure has room for" if rules else "no rule"
        raise DataError(f"{found} in the input; give it the output of `snakemake --rulegraph`")
    edges = list(dict.fromkeys((names.get(a), names.get(b)) for a, b in EDGE.findall(text)))
    if any(None in edge for edge in edges) or any(after in _reached(edges, after) for _, after in edges):
        raise DataError("an arrow of the input is part of a circle or leads to no rule: it is no workflow's graph")
    return rules, edges


def _reached(edges: list[tuple[str, str]], start: str) -> set[str]:
    """Every rule that some path leads to from `start`."""
    reached: set[str] = set()
    ahead = [start]
    while ahead:
        rule = ahead.pop()
        following = {after for before, after in edges if before == rule} - reached
        reached |= following
        ahead += following
    return reached


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
    reached = {rule: _reached(edges, rule) for edge in edges for rule in edge}
    return [
        (before, after)
        for before, after in edges
        if not any(a == before and b != after and after in reached[b] for a, b in edges)
    ]


def draw_dag(text: str, jobs: Mapping[str, int]) -> dict[str, bytes]:
    """The figure as PNG and SVG by suffix, from a rule graph and the number of jobs of each rule."""
    from matplotlib.figure import Figure

    for rule, number in jobs.items():
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 10**9:
            raise DataError(f"--jobs: the number of jobs of {rule[:60]!r} must be a whole number from 0")
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
