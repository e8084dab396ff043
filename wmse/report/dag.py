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
    for before, after in edges:
        bend = 0.25 if place[after] - place[before] > 1 else 0.0
        look = {"arrowstyle": "-|>", "color": "#888888", "shrinkA": 34, "shrinkB": 38}
        look["connectionstyle"] = f"arc3,rad={bend}"
        axis.annotate("", position[after], xytext=position[before], arrowprops=look, zorder=1)
    for rule, (x, y) in position.items():
        text = f"{rule}\n{jobs[rule]} jobs" if jobs.get(rule, 1) != 1 else rule
        box = {"boxstyle": "round,pad=0.5", "facecolor": "#E8F1F8", "edgecolor": "#0072B2"}
        axis.text(x, y, text, ha="center", va="center", fontsize=11, bbox=box, zorder=2)
    return render(figure)
