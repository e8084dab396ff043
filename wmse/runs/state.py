"""How far runs are, read from what they write anyway: history, checkpoints, records, logs, and the lock they hold."""

from __future__ import annotations

import csv
import functools
import os
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from wmse.config import RunSpec
from wmse.errors import DataError
from wmse.locks import lock_holder
from wmse.runs.folder import CHECKPOINT_NAME, RunFolder
from wmse.runs.record import METRICS, read_record

STATES = ("training", "evaluating", "failed", "stopped", "trained", "waiting", "done")  # What to look at first.
ERROR = "wmse: error: "
LONGEST_LINE = 20_000  # Bytes of a message.
LATEST = 3  # Epochs by which the time left is told.


@dataclass(frozen=True)
class RunState:
    """One run now; what is not known, or does not apply, is None.

    Attributes:
        state: one of STATES. "stopped" goes on from `step`, "trained" waits for its evaluation.
        epoch, step: finished ones; within an epoch a checkpoint is the last that is known of its steps.
        views_per_second, loss: of the last epoch.
        knn: the latest 5-nn accuracy in percent.
        seconds_left: of training, without evaluations.
        metrics: the accuracies of the finished run in percent, by their names in result.json.
        note: why it failed, or what cannot be read.
    """

    run: str
    state: str
    epochs: int
    epoch: int = 0
    step: int = 0
    steps: int | None = None
    views_per_second: float | None = None
    loss: float | None = None
    knn: float | None = None
    seconds_left: float | None = None
    metrics: Mapping[str, float] | None = None
    note: str = ""

    def describe(self) -> str:
        """`training at step 120 of 468, 0:02:10 left`, `finished: linear top-1 57.60 %, 5-nn 52.15 %`: in one line."""
        at = f" at step {self.step:,}" + (f" of {self.steps:,}" if self.steps else "")
        if self.state == "done":
            shown = {name: value for name, value in (self.metrics or {}).items() if name != "linear_top5"}
            figures = ", ".join(f"{METRICS[name]} {value:.2f} %" for name, value in shown.items())
            return f"finished: {figures}" if figures else "finished"
        if self.state == "training" and self.seconds_left is not None:
            return f"training{at}, {clock(self.seconds_left)} left"
        if self.state in ("training", "stopped"):
            return self.state + at
        if self.state == "failed":
            return f"failed: {self.note}"
        return {"waiting": "not started", "trained": "trained, to be evaluated"}.get(self.state, self.state)


def clock(seconds: float) -> str:
    """`1 day, 2:03:04`."""
    return str(timedelta(seconds=round(seconds)))


def look_at_runs(runs: Sequence[RunSpec], results: Path) -> list[RunState]:
    """The state of every run in the folder `results`, in their order; nothing that lies there is an error.

    How long a run will take that has no epoch yet is told by another whose steps cost the same, if there is one.
    """
    states, paces = [], dict[Hashable, float]()
    for spec in runs:
        folder = RunFolder.of(results, spec.run)
        try:
            history = _history(folder.history, folder.history.stat().st_mtime_ns) if folder.history.exists() else []
            states.append(_state(spec, folder, history))
            if history:
                paces[spec.benchmark, spec.same_step()] = _pace(history)
        except (OSError, ValueError, KeyError, TypeError, DataError) as error:
            states.append(RunState(spec.run, "failed", spec.epochs, note=f"cannot be read: {error}"))
    for i, (spec, state) in enumerate(zip(runs, states, strict=True)):
        pace = paces.get((spec.benchmark, spec.same_step()))
        if spec.trained and pace and state.seconds_left is None:
            states[i] = replace(state, seconds_left=pace * spec.epochs)
    return states


def _state(spec: RunSpec, folder: RunFolder, history: Sequence[dict[str, Any]]) -> RunState:
    error = _last_error(folder)
    found = [int(named[1]) for path in folder.checkpoints.glob("*") if (named := CHECKPOINT_NAME.fullmatch(path.name))]
    if holder := lock_holder(folder.lock):
        name = "evaluating" if holder.startswith("wmse evaluate") else "training"
    elif folder.result.exists():
        name = "done"
    elif error:
        name = "failed"
    elif folder.pretrained.exists():
        name = "trained"
    else:
        name = "stopped" if history or found else "waiting"
    state = RunState(spec.run, name, spec.epochs if spec.trained else 0, note=error if name == "failed" else "")
    metrics = _metrics(folder.result, folder.result.stat().st_mtime_ns) if name == "done" else None
    state = replace(state, step=max(found, default=0), metrics=metrics)
    if not history:
        return state
    last, done = history[-1], len(history)
    measured = [line["knn5_top1"] for line in history if line["knn5_top1"] is not None]
    left = (spec.epochs - done) * _pace(history)
    if name == "training":
        left -= time.time() - folder.history.stat().st_mtime
    return replace(
        state,
        epoch=done,
        step=max(state.step, int(last["step"])),
        steps=round(spec.epochs * last["step"] / done),
        views_per_second=last["views_per_second"],
        loss=last["loss"],
        knn=measured[-1] if measured else None,
        seconds_left=max(left, 0.0),
    )


def _pace(history: Sequence[dict[str, Any]]) -> float:
    """Seconds of training an epoch, of the latest few: the machine may have been busier before."""
    latest = history[-LATEST - 1 :]
    before = latest[0]["seconds"] if len(history) > LATEST else 0.0
    return (history[-1]["seconds"] - before) / min(len(history), LATEST)


@functools.lru_cache(maxsize=1000)
def _history(path: Path, changed: int) -> list[dict[str, Any]]:
    """The lines of a history.csv, read again when it has `changed`. ValueError: there is something else in it."""
    with open(path, encoding="utf-8", newline="") as file:
        return [{key: float(value) if value else None for key, value in row.items()} for row in csv.DictReader(file)]


@functools.lru_cache(maxsize=1000)
def _metrics(path: Path, changed: int) -> dict[str, float]:
    """The accuracies in a result.json, read again when it has `changed`; none where it holds none."""
    found = read_record(path).get("metrics", dict, optional=True) or {}
    return {name: float(found[name]) for name in METRICS if found.get(name) is not None}


def _last_error(folder: RunFolder) -> str:
    """The message with which the last command on the run ended, if it ended with one."""
    logs = [path for path in (folder.pretrain_log, folder.evaluate_log) if path.exists()]
    if not logs:
        return ""
    with open(max(logs, key=lambda path: path.stat().st_mtime_ns), "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - LONGEST_LINE))
        lines = file.read().decode("utf-8", "replace").split("\n")
    last = next((line for line in reversed(lines) if line.strip()), "")
    return last.removeprefix(ERROR) if last.startswith(ERROR) else ""
