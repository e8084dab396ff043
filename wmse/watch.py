"""`wmse watch`: all runs of a configuration in one table, while the workflow or anybody else computes them."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from rich import box
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from wmse.config import Project
from wmse.runs.state import STATES, RunState, clock, look_at_runs

NONE = "—"
COLOURS = {"training": "cyan", "evaluating": "cyan", "failed": "bold red", "stopped": "yellow", "done": "green"}


def watch(
    project: Project,
    results: Path,
    output: Callable[[str], None],
    seconds: float,
    *,
    once: bool = False,
    as_json: bool = False,
) -> None:
    """Show the runs every so many seconds until all are done, or `once`.

    On a terminal the table stays in its place; elsewhere, and `once`, `output` gets it as lines of text or one of JSON.
    """
    screen = not once and not as_json and sys.stdout.isatty()
    with Live(auto_refresh=False) if screen else contextlib.nullcontext() as live:
        while True:
            states = look_at_runs(project.runs, results)
            summary = f"{project.settings['preset']}: {summarize(states)}"
            if live:
                live.update(as_table(states, summary), refresh=True)
            elif as_json:
                output(json.dumps({"preset": project.settings["preset"], "runs": list(map(asdict, states))}))
            else:
                for line in [*plain_lines(states), summary]:
                    output(line)
            if once or all(state.state == "done" for state in states):
                return
            time.sleep(seconds)


def summarize(states: Sequence[RunState]) -> str:
    """`2 training, 3 waiting, 1 done; 1:02:03 of training left, one run after another`."""
    counts = Counter(state.state for state in states)
    text = ", ".join(f"{counts[name]} {name}" for name in STATES if counts[name])
    left = [state.seconds_left for state in states if state.seconds_left]
    unknown = any(state.epochs and state.seconds_left is None for state in states)
    if left:
        text += f"; {'more than ' if unknown else ''}{clock(sum(left))} of training left, one run after another"
    return text


def as_table(states: Sequence[RunState], summary: str = "") -> Table:
    """The runs in the order of `STATES`, below the summary; without one, plain and without a bar."""
    look = {"title": Text(summary), "title_justify": "left", "box": box.SIMPLE_HEAD} if summary else {"box": None}
    table = Table(pad_edge=False, **look)
    table.add_column("run", overflow="fold")
    table.add_column("state")
    if summary:
        table.add_column("")
    for name in ("epoch", "step", "views/s", "left", "loss", "5-nn"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    for state in sorted(states, key=lambda state: STATES.index(state.state)):
        # Names and messages are no markup.
        bar = (
            [ProgressBar(state.steps or 1, state.step if state.steps else 0, 16) if state.epochs else ""]
            if summary
            else []
        )
        style = COLOURS.get(state.state, "") if summary else ""
        table.add_row(Text(state.run), Text(state.state, style), *bar, *_figures(state), Text(state.note))
    return table


def _figures(state: RunState) -> list[str]:
    """Epoch, step, views/s, time left, loss and 5-nn."""
    if not state.epochs:
        return [NONE] * 6
    return [
        f"{state.epoch}/{state.epochs}",
        f"{state.step:,}" + (f"/{state.steps:,}" if state.steps else ""),
        _number(state.views_per_second, ",.0f"),
        NONE if state.seconds_left is None or state.state == "done" else clock(state.seconds_left),
        _number(state.loss, ".4f"),
        _number(state.knn, ".2f"),
    ]


def _number(value: float | None, form: str) -> str:
    return NONE if value is None else format(value, form)


def plain_lines(states: Sequence[RunState]) -> list[str]:
    """The table as text, as wide as it needs to be."""
    text = io.StringIO()
    Console(file=text, width=10_000, color_system=None, force_terminal=False).print(as_table(states))
    return [line.rstrip() for line in text.getvalue().splitlines()]
