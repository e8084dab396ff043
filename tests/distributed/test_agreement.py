"""What happens to one process of a run happens to all: a signal, an error, a kill; any number of processes goes on."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from builders.forked import wait
from builders.processes import run_world, start_world
from builders.runs import Double, make_job, tiny_spec
from wmse.datasets import ArrayDataset
from wmse.distributed import ALONE, World
from wmse.errors import LOST_EXIT, DataError
from wmse.runs.job import Job
from wmse.training import CheckpointPolicy, Stopped, Trainer, pretrain
from wmse.training.checkpoint import list_checkpoints

CPU = torch.device("cpu")
SPEC = tiny_spec("wmse-2", epochs=3, lr_drops=[])  # of three steps each


def job(data: ArrayDataset, folder: Path, world: World = ALONE) -> Job:
    made = make_job(SPEC, data, folder, replace(Double(CPU), world=world))
    return replace(made, checkpoints=CheckpointPolicy(seconds=1e9, epochs=1, keep=2))


def before_step(number: int, act: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Call `act` before the step `number` (0, 1, ...) of this process."""
    take = Trainer.step

    def step(self: Trainer, index: torch.Tensor) -> object:
        if self.progress.step == number:
            act()
        return take(self, index)

    monkeypatch.setattr(Trainer, "step", step)


def assert_goes_on_alone(data: ArrayDataset, folder: Path, straight: Path) -> None:
    """One process finishes the run of several; the encoder is that of one process but for rounding."""
    pretrain(job(data, folder))
    pretrain(job(data, straight))
    found, expected = (load_file(path / "encoder.safetensors") for path in (folder, straight))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-6, msg=name)


def test_a_signal_to_one_process_stops_all_after_the_same_step(
    data: ArrayDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(world: World) -> None:
        if world.rank == 1:
            before_step(4, lambda: os.kill(os.getpid(), signal.SIGTERM), monkeypatch)
        with pytest.raises(Stopped, match="SIGTERM after step 5;"):
            pretrain(job(data, tmp_path / "run", world))

    run_world(2, work, tmp_path / "printed")
    assert [step for step, _ in list_checkpoints(tmp_path / "run/checkpoints")] == [5, 3]
    assert_goes_on_alone(data, tmp_path / "run", tmp_path / "straight")


def test_an_error_in_one_process_ends_all_with_its_message_once(
    data: ArrayDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise DataError("image.JPEG: broken")

    def work(world: World) -> None:
        if world.rank == 1:
            before_step(4, lambda: monkeypatch.setattr("wmse.images.ArrayImages.views", broken), monkeypatch)
        pretrain(job(data, tmp_path / "run", world))

    children = start_world(2, work, tmp_path / "printed")
    assert [wait(child) for child in children] == [1, 1]
    printed = "".join((tmp_path / "printed" / str(rank)).read_text() for rank in range(2))
    assert printed.count("image.JPEG: broken") == 1
    assert [step for step, _ in list_checkpoints(tmp_path / "run/checkpoints")] == [3]


def test_a_killed_process_ends_the_others_and_costs_the_steps_since_the_checkpoint(
    data: ArrayDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(world: World) -> None:
        if world.rank == 1:
            before_step(4, lambda: os.kill(os.getpid(), signal.SIGKILL), monkeypatch)
        pretrain(job(data, tmp_path / "run", world))

    children = start_world(2, work, tmp_path / "printed")
    assert [wait(child) for child in children] == [LOST_EXIT, -signal.SIGKILL]
    assert "process 0 of 2 lost contact" in (tmp_path / "printed/0").read_text()
    assert [step for step, _ in list_checkpoints(tmp_path / "run/checkpoints")] == [3]
    assert_goes_on_alone(data, tmp_path / "run", tmp_path / "straight")
