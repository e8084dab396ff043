"""A figure of the workflow's rules as Snakemake itself connects them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter

from wmse.errors import DataError
from wmse.report.plots import render

NODE = re.compile(r'^\s*(\w+)\[label = "(\w{1,60})\b', re.MULTILINE)
EDGE = re.compile(r"^\s*(\w+) -> (\w+)", re.MULTILINE)
MOST_RULES = 50  # A figure has room for no more.
Needs = dict[str, set[str]]  # Each rule with the rules whose output it takes.


def parse_dot(text: str) -> Needs:
    """The graph in the output of `snakemake --rulegraph`. Raises DataError if it is something else."""
    names = dict(NODE.findall(text))
    needs: Needs = {rule: set() for rule in names.values()}
    if not 0 < len(needs) <= MOST_RULES:
        found = f"{len(needs)} rules, more than a figure has room for" if needs else "no rule"
        raise DataError(f"{found} in the input; give it the output of `snakemake --rulegraph`")
    try:
        for before, after in EDGE.findall(text):
            needs[names[after]].add(names[before])
        all_needs(needs)
    except (KeyError, CycleError):
        problem = "an arrow of the input is part of a circle or leads to no rule: it is no workflow's graph"
        raise DataError(problem) from None
    return needs


def all_needs(needs: Needs) -> Needs:
    """Each rule with all that it needs, directly or by way of others; a rule stands after those. Raises CycleError."""
    found: Needs = {}
    for rule in TopologicalSorter(needs).static_order():
        found[rule] = needs[rule].union(*(found[before] for before in needs[rule]))
    return found


def layers(needs: Needs) -> dict[str, int]:
    """Each rule's place from left to right: after the rules that it needs, or, if it needs none, before its users."""
    place: dict[str, int] = {}
    for rule, earlier in all_needs(needs).items():
        place[rule] = max((place[before] + 1 for before in earlier), default=0)
    for source in (rule for rule in needs if not needs[rule]):
        place[source] = min((place[user] - 1 for user in needs if source in needs[user]), default=0)
    return place


def direct(needs: Needs) -> Needs:
    """The graph without the edges that a longer path says already (its transitive reduction)."""
    found = all_needs(needs)
    return {rule: before.difference(*(found[other] for other in before)) for rule, before in needs.items()}


def draw_dag(text: str, jobs: Mapping[str, int]) -> dict[str, bytes]:
    """The figure as PNG and SVG by suffix, from a rule graph and the number of jobs of each rule."""
    from matplotlib.figure import Figure

    for rule, number in jobs.items():
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 10**9:
            raise DataError(f"--jobs: the number of jobs of {rule[:60]!r} must be a whole number from 0")
    needs = parse_dot(text)
    place = layers(needs)
    columns = [[rule for rule in needs if place[rule] == layer] for layer in range(max(place.values()) + 1)]
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
    for before, after in sorted((before, rule) for rule, needed in direct(needs).items() for before in needed):
        look = {"arrowstyle": "-|>", "color": "#888888", "shrinkA": 0, "shrinkB": 0}
        start, end = (extent[before].x1, position[before][1]), (extent[after].x0, position[after][1])
        axis.annotate("", end, xytext=start, arrowprops=look, zorder=1)
    return render(figure)
