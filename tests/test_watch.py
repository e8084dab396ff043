"""`wmse watch`: what it makes of the files of runs that wait, go on, stopped, failed or are done."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from builders.runs import EVERY_STEP, TINY, make_job, tiny_spec
from wmse.cli import main
from wmse.config import RunSpec, load_project
from wmse.datasets import ArrayDataset
from wmse.locks import exclusive_lock
from wmse.runs.evaluate import evaluate
from wmse.runs.folder import RunFolder
from wmse.runs.state import STATES, RunState, look_at_runs
from wmse.training import Stopped, Trainer, pretrain
from wmse.training.history import EpochRecord, history_csv
from wmse.watch import as_table, plain_lines, summarize

CONFIG = {"experiments": [{"benchmarks": ["cifar10"], "methods": ["wmse-2", "random"]}], "parameters": {"*": TINY}}


def epochs(count: int, seconds: float = 60.0) -> list[EpochRecord]:
    """A history in which every second epoch was evaluated."""
    return [
        EpochRecord(
            i, 3 * i, 400 * i, seconds * i, 2 - i / 10, 1e-3, 700.0, 0.9, 4.0, None if i % 2 else 40.0 + i, 99.0
        )
        for i in range(1, count + 1)
    ]


def put(results: Path, spec: RunSpec, finished: int = 0, **files: str) -> RunFolder:
    """A run's folder with so many epochs and some of its files."""
    folder = RunFolder.of(results, spec.run)
    folder.path.mkdir(parents=True)
    if finished:
        folder.history.write_text(history_csv(epochs(finished)))
    for name, text in files.items():
        getattr(folder, name).write_text(text)
    return folder


def look(results: Path, *specs: RunSpec) -> list[RunState]:
    return look_at_runs(specs, results)


def test_a_run_is_followed_from_its_first_step_to_its_result(
    data: ArrayDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tiny_spec("wmse-2")
    folder = RunFolder.of(tmp_path, spec.run)
    seen: list[RunState] = []
    step = Trainer.step

    def watched(trainer: Trainer, *index: Any) -> Any:
        output = step(trainer, *index)
        seen.extend(look(tmp_path, spec))
        if len(seen) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return output

    monkeypatch.setattr(Trainer, "step", watched)
    assert look(tmp_path, spec) == [RunState(spec.run, "waiting", 3)]
    with pytest.raises(Stopped):
        pretrain(make_job(spec, data, folder.path, checkpoints=EVERY_STEP))
    assert [(state.state, state.epoch, state.step) for state in seen] == [
        ("training", 0, 0),
        ("training", 0, 1),
        ("training", 0, 2),
        ("training", 1, 3),
        ("training", 1, 4),
    ]
    (stopped,) = look(tmp_path, spec)
    assert (stopped.state, stopped.epoch, stopped.step, stopped.steps, stopped.knn) == ("stopped", 1, 5, 9, None)
    pretrain(make_job(spec, data, folder.path))
    (trained,) = look(tmp_path, spec)
    assert (trained.state, trained.step, trained.steps, trained.seconds_left) == ("trained", 9, 9, 0)
    evaluate(make_job(spec, data, folder.path))
    (done,) = look(tmp_path, spec)
    last = folder.history.read_text().splitlines()[-1].split(",")
    assert done.state == "done"
    assert [str(done.loss), str(done.views_per_second), str(done.knn)] == [last[4], last[6], last[9]]


def test_times_left_come_from_the_epochs_so_far_or_from_a_run_of_the_same_cost(tmp_path: Path) -> None:
    specs = [tiny_spec("wmse-2", seed) for seed in range(3)] + [tiny_spec("wmse-4"), tiny_spec("random")]
    put(tmp_path, specs[0], 2)
    os.utime(put(tmp_path, specs[1], 2).history, (0, 0))
    with exclusive_lock(RunFolder.of(tmp_path, specs[1].run).lock, "wmse pretrain of it"):
        states = look(tmp_path, *specs)
    assert [state.state for state in states] == ["stopped", "training", "waiting", "waiting", "waiting"]
    assert [state.seconds_left for state in states] == [60, 0, 180, None, None]  # the second is long overdue
    assert summarize(states) == (
        "1 training, 1 stopped, 3 waiting; more than 0:04:00 of training left, one run after another"
    )
    assert summarize(states[:1]) == "1 stopped; 0:01:00 of training left, one run after another"


def test_a_slow_beginning_does_not_count_for_the_time_left(tmp_path: Path) -> None:
    slow = [replace(record, seconds=record.seconds + 1000.0) for record in epochs(4)]
    spec = tiny_spec(epochs=6)
    put(tmp_path, spec).history.write_text(history_csv(slow))
    step = epochs(2)[1].seconds - epochs(1)[0].seconds
    assert look(tmp_path, spec)[0].seconds_left == 2 * step


@pytest.mark.parametrize(
    ("files", "state", "note"),
    [
        (
            {"pretrain_log": "epoch 1\nwmse: error: the loss is [red]nan[/red]: lower lr\n"},
            "failed",
            "the loss is [red]nan",
        ),
        ({"pretrain_log": "wmse: error: no data\nepoch 1\n"}, "stopped", ""),
        ({"pretrain_log": "", "evaluate_log": "wmse: error: no encoder\n"}, "failed", "no encoder"),
        ({"pretrain_log": "wmse: error: before\n", "pretrained": "{}", "result": "{}"}, "done", ""),
        ({"history": "epoch,step\n1,x\n"}, "failed", "cannot be read: could not convert string to float: 'x'"),
        ({"history": "epoch,step\n1,2\n"}, "failed", "cannot be read: 'knn5_top1'"),
        ({"history": ""}, "waiting", ""),
    ],
)
def test_how_a_run_ended_is_read_from_its_files(tmp_path: Path, files: dict[str, str], state: str, note: str) -> None:
    spec = tiny_spec("wmse-2")
    put(tmp_path, spec, 2, **files)
    (found,) = look(tmp_path, spec)
    assert found.state == state
    assert found.note.startswith(note)
    assert bool(found.note) == bool(note)
    assert note in "\n".join(plain_lines([found]))


def test_an_evaluation_is_told_from_a_training(tmp_path: Path) -> None:
    spec = tiny_spec("random")
    with exclusive_lock(put(tmp_path, spec).lock, f"wmse evaluate {spec.run}"):
        assert [state.state for state in look(tmp_path, spec)] == ["evaluating"]


def test_the_table_has_a_bar_on_a_screen_and_what_needs_a_look_comes_first() -> None:
    states = [RunState(f"run{i}", state, 3, steps=9, step=3) for i, state in enumerate(reversed(STATES))]
    table = as_table(states, "summary")
    assert [str(cell) for cell in table.columns[1].cells] == list(STATES)
    assert len(table.columns) == 1 + len(as_table(states).columns)
    assert all(cell.completed == 3 for cell in table.columns[2].cells)


def test_output_that_is_no_terminal_is_plain_and_ends_with_the_last_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    assert main(["watch", "--once", "--root", str(tmp_path)]) == 0
    assert capsys.readouterr().out.endswith("quick: 2 waiting\n")
    trained, random = load_project(CONFIG).runs
    put(tmp_path / "results", trained, 3, result="{}")
    put(tmp_path / "results", random, result="{}")
    assert main(["watch", "--root", str(tmp_path), "--log", str(tmp_path / "log")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ["run", "state", "epoch", "step", "views/s", "left", "loss", "5-nn"],
        [trained.run, "done", "3/3", "9/9", "700", "—", "1.7000", "42.00"],
        [random.run, "done", *"——————"],
        ["quick:", "2", "done"],
    ]
    assert (tmp_path / "log").read_text().splitlines() == lines
